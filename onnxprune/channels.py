"""The channel map: which channel each index of each axis of each tensor is.

Every axis of a tensor is either *plain* (``None``: batch, height, a model input's features; its size never changes) or
carries a vector of channel ids, one per index. Axes are independent: index (i, j) belongs to channel i of the first
axis and to channel j of the second. Each stored constant begins with fresh ids on all its axes, once per use; an
operator's rule then says which ids are the same channel (``unify``), which may never leave (``freeze``), and what the
axes of its outputs carry. A convolution's output channels are thus simply axis 0 of its weight.

Unifying is a list of id pairs; one call of ``connected_components`` turns it into *groups* of coupled channels, and
from then on every axis carries group numbers. Group 0 is what never leaves and has no channel of its own.

A Reshape that splits a channel axis in two (heads × head width) leaves a tensor that must stay rectangular. Such a
*site* couples the channels along all new axes but one. Which one is a choice: the largest at first; where all of that
axis turns out frozen, the map is built again with another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.graph import Edge, Graph, attribute, node_name
from onnxprune.measure import is_weight
from onnxprune.quantised import point_name
from onnxprune.shapes import Shape, Shapes

__all__ = [
    "FIXED_SIZE",
    "INNERMOST",
    "OUTERMOST",
    "Axes",
    "ChannelMap",
    "Contraction",
    "Frozen",
    "Ids",
    "MapBuilder",
    "NodeContext",
    "Opaque",
    "Point",
    "Shuffle",
    "Term",
    "check_length",
    "solve",
]

Ids = NDArray[np.int32]
Axes = tuple[Ids | None, ...]
Way = TypeVar("Way")

FIXED_SIZE = "coupled with an axis of fixed size"
"""Why channels stay that meet an axis without any (``onnxprune.origins`` says where that comes from)."""
INNERMOST, OUTERMOST = -1, -2  # what a site may be told to prefer, besides 0 (its first choice), 1, …

Point = int | str
"""What stands for zero in a tensor: a number, or the name of the scalar tensor that holds it at run time."""

_ZERO_KEEPING = frozenset(
    (
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Neg",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    )
)
"""Operators through which a zero of a stored constant arrives as a zero."""
_COMPUTING = frozenset(("Cast", "Neg"))
"""Those of them that change other numbers."""


_LONGEST = 1 << 19
"""Indices of an axis whose channels are told apart: a vocabulary has less, a size that somebody made up has more."""
_MOST = 1 << 25
"""Channels of a model."""


class Opaque(Exception):  # noqa: N818 - a refusal, not an error: caught by the builder, never seen outside
    """An operator's rule does not cover this node; its channels are frozen for the given reason."""


def check_length(size: int, most: int = _LONGEST) -> None:
    """Raises Opaque for an array of channels so long that only a made-up size can ask for it."""
    if size > most:
        raise Opaque("it is longer than any axis of channels")


@dataclass(frozen=True)
class Frozen:
    """Why groups may not leave: the node that froze them and the reason in words."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True)
class Contraction:
    """A node that joins input channels to output channels through a stored weight (Conv, Gemm, MatMul).

    ``inputs`` [in] and ``outputs`` [out] are group numbers. The weight's axes ``in_axis`` and ``out_axis`` run over the
    input channels of one convolution group and over all output channels; ``groups`` is the Conv attribute.
    ``bias``: index of the node's bias input, or None.
    """

    node: int
    data: int
    weight: int
    bias: int | None
    in_axis: int
    out_axis: int
    inputs: Ids
    outputs: Ids
    groups: int = 1


@dataclass(frozen=True)
class Term:
    """Part of a cost (multiply-accumulates, kernel slices): ``coefficient`` × the kept channels along each axis."""

    node: int
    coefficient: float
    axes: tuple[Ids, ...]


@dataclass(frozen=True)
class Shuffle:
    """A permutation of one axis, written as Reshape → Transpose → Reshape (see ``onnxprune.ops.shuffle``).

    ``order[i]`` is the index of ``source`` that becomes index i of the last output; ``inner`` are the indices of the
    Reshape and the Transpose before the last Reshape.
    """

    source: str
    axis: int
    order: NDArray[np.int64]
    inner: tuple[int, int]


@dataclass(frozen=True)
class ChannelMap:
    """What the map found, in group numbers.

    ``axes``: tensor → its axes, for every activation of known shape. ``uses``: use of a constant → its axes.
    ``frozen``: bool [groups]; ``reasons``: group → why, for frozen groups with a reason of their own.
    ``masked``: uses whose values the masked reference sets to zero at removed channels → the tensor that says what
    zero is there ('': 0), for quantised numbers.
    ``renormalised``: normalisations (node, channels they run over) that may be computed over fewer channels.
    ``needs``: (outputs, inputs) pairs: while any of the outputs is kept, at least one of the inputs must be.
    """

    graph: Graph
    shapes: Shapes
    axes: dict[str, Axes]
    uses: dict[Edge, Axes]
    frozen: NDArray[np.bool_]
    reasons: dict[int, Frozen]
    contractions: tuple[Contraction, ...]
    macs: tuple[Term, ...]
    slices: tuple[Term, ...]
    masked: dict[Edge, str]
    needs: tuple[tuple[Ids, Ids], ...]
    shuffles: dict[int, Shuffle]
    renormalised: tuple[tuple[str, Ids], ...]
    group_of: Ids  # id → group, for the builder's sites

    @property
    def groups(self) -> int:
        """Number of groups, group 0 (what never leaves) included."""
        return len(self.frozen)

    @cached_property
    def free(self) -> NDArray[np.int64]:
        """The groups that may leave."""
        return np.flatnonzero(~self.frozen)

    def constant_uses(self) -> dict[str, list[Edge]]:
        """Stored constant → its labelled uses."""
        found: dict[str, list[Edge]] = {}
        for edge in self.uses:
            found.setdefault(self.graph.nodes[edge[0]].input[edge[1]], []).append(edge)
        return found


@dataclass
class MapBuilder:
    """The state of one walk over the nodes in topological order. ``preferences``: site → which of its candidates
    (by rank, INNERMOST or OUTERMOST)."""

    graph: Graph
    shapes: Shapes
    allow_renorm: bool = False
    preferences: Mapping[int, int] = field(default_factory=dict)
    size: int = 1  # ids handed out so far; id 0 is what never leaves
    left: list[Ids] = field(default_factory=list)
    right: list[Ids] = field(default_factory=list)
    freezes: list[tuple[Ids, int, str]] = field(default_factory=list)
    axes: dict[str, Axes] = field(default_factory=dict)
    uses: dict[Edge, Axes] = field(default_factory=dict)
    derived: set[str] = field(default_factory=set)  # computed from stored constants alone
    zero: set[str] = field(default_factory=set)  # removed channels are exactly zero here in the masked reference
    rest: dict[str, Point] = field(default_factory=dict)  # or exactly this, the zero of quantised numbers
    contractions: list[Contraction] = field(default_factory=list)
    macs: list[Term] = field(default_factory=list)
    slices: list[Term] = field(default_factory=list)
    masked: dict[Edge, str] = field(default_factory=dict)
    needs: list[tuple[Ids, Ids]] = field(default_factory=list)
    sites: dict[int, list[Ids]] = field(default_factory=dict)
    shuffles: dict[int, Shuffle] = field(default_factory=dict)
    renormalised: list[tuple[str, Ids]] = field(default_factory=list)

    def fresh(self, count: int) -> Ids:
        """New channels. Raises Opaque for more than a sensible model has."""
        check_length(count)
        check_length(self.size + count, _MOST)
        ids = np.arange(self.size, self.size + count, dtype=np.int32)
        self.size += count
        return ids

    def fresh_or_plain(self, count: int) -> Ids | None:
        """New channels; None for an axis of more than a sensible model has."""
        try:
            return self.fresh(count)
        except Opaque:
            return None

    def unify(self, a: Ids, b: Ids) -> None:
        """Declare the channels at equal positions to be the same."""
        a, b = np.broadcast_arrays(a, b)
        self.left.append(a)
        self.right.append(b)

    def freeze(self, ids: Ids, node: int, reason: str) -> None:
        """Declare that these channels may never leave."""
        self.freezes.append((ids, node, reason))


class NodeContext:
    """What an operator's rule sees of a node and may say about its channels."""

    def __init__(self, builder: MapBuilder, index: int) -> None:
        self.builder = builder
        self.index = index
        self.node = builder.graph.nodes[index]
        self.heard: set[int] = set()  # inputs of which the rule has looked at the channels

    # -- reading

    def has(self, k: int) -> bool:
        """Whether input k is given."""
        return k < len(self.node.input) and bool(self.node.input[k])

    def shape(self, k: int) -> Shape:
        """Shape of input k. Raises Opaque where it is unknown."""
        return self._shape_of(self.node.input[k])

    def out_shape(self, k: int = 0) -> Shape:
        return self._shape_of(self.node.output[k])

    def is_fixed(self, k: int, axis: int) -> bool:
        """Whether the size of an axis of input k does not depend on dimensions that the model leaves open."""
        return self.builder.shapes.is_fixed(self.node.input[k], axis)

    def out_is_fixed(self, axis: int, k: int = 0) -> bool:
        return self.builder.shapes.is_fixed(self.node.output[k], axis)

    def is_read(self, k: int) -> bool:
        """Whether anyone reads output k."""
        name = self.node.output[k] if k < len(self.node.output) else ""
        graph = self.builder.graph
        return bool(name) and (name in graph.consumers or name in graph.captured or name in graph.outputs)

    def _shape_of(self, name: str) -> Shape:
        found = self.builder.shapes.of.get(name)
        if found is None:
            raise Opaque(f"the shape of '{name}' is not known")
        return found

    def is_constant(self, k: int) -> bool:
        """Whether input k is a stored constant or computed from stored constants alone."""
        name = self.node.input[k]
        return name in self.builder.graph.constants or name in self.builder.derived

    def integers(self, k: int) -> list[int] | None:
        """The value of a small integer input that does not depend on the model's inputs, if known."""
        name = self.node.input[k] if self.has(k) else ""
        value = self.builder.shapes.values.get(name)
        if value is None and name in self.builder.graph.constants:
            value = self.builder.graph.values(name)
        return None if value is None else [int(v) for v in np.atleast_1d(value).ravel()]

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        value = attribute(self.node, name)
        return default if value is None else int(value)  # type: ignore[call-overload]

    def integer_list(self, name: str) -> list[int] | None:
        """An integer-list attribute, or None."""
        value = attribute(self.node, name)
        return None if value is None else [int(v) for v in value]  # type: ignore[attr-defined]

    def axis(self, name: str, default: int, rank: int) -> int:
        """An axis attribute, counted from the front."""
        return self.integer(name, default) % max(rank, 1)

    def axes(self, k: int) -> Axes:
        """The axes of input k. A stored constant gets fresh channels on every axis, once per use."""
        name = self.node.input[k]
        shape = self.shape(k)
        self.heard.add(k)
        if name not in self.builder.graph.constants:
            return self.builder.axes.get(name, (None,) * len(shape))
        edge = (self.index, k)
        if edge not in self.builder.uses:
            # an empty tensor can declare any length
            self.builder.uses[edge] = tuple(self.builder.fresh_or_plain(size) for size in shape)
        return self.builder.uses[edge]

    def parameter_axes(self, k: int) -> Axes:
        """The axes of input k as far as it is computed; a stored constant keeps its size and has none."""
        self.heard.add(k)
        return self.builder.axes.get(self.node.input[k], ())

    # -- saying

    def freeze_unheard(self) -> None:
        """Freeze what the rule takes as it comes, such as the scales of a Resize that are computed from constants."""
        for k in range(len(self.node.input)):
            if self.has(k) and k not in self.heard:
                for ids in self.builder.axes.get(self.node.input[k], ()):
                    self.freeze(ids, "read as a parameter")

    def unify(self, a: Ids | None, b: Ids | None, reason: str = FIXED_SIZE) -> Ids | None:
        """The two axes are the same; a plain one freezes the other. Returns the axis that results."""
        if a is None and b is None:
            return None
        if a is None or b is None:
            self.freeze(a if b is None else b, reason)
            return None
        if a is not b:
            self.builder.unify(a, b)
        return a

    def freeze(self, ids: Ids | None, reason: str) -> None:
        if ids is not None:
            self.builder.freeze(ids, self.index, reason)

    def freeze_input(self, k: int, reason: str) -> None:
        """Freeze every axis of input k."""
        if self.has(k) and self.node.input[k] in self.builder.shapes.of:
            for ids in self.axes(k):
                self.freeze(ids, reason)

    def freeze_all(self, reason: str) -> list[Axes]:
        """Freeze every input; the outputs are plain."""
        for k in range(len(self.node.input)):
            self.freeze_input(k, reason)
        return self.plain_outputs()

    def plain_outputs(self) -> list[Axes]:
        sizes = (self.builder.shapes.of.get(name, ()) for name in self.node.output)
        return [(None,) * len(shape) for shape in sizes]

    def choose(self, candidates: Sequence[int], sizes: Sequence[int]) -> int:
        """Pick the axis that keeps its channels apart at a site where several could: the largest, unless overruled."""
        preference = self.builder.preferences.get(self.index, 0)
        if preference < 0:
            return max(candidates) if preference == INNERMOST else min(candidates)
        order = sorted(candidates, key=lambda axis: (-sizes[axis], axis))
        return order[preference % len(order)]

    def turn(self, ways: Sequence[Way]) -> Way:
        """Pick one of the ways of a site, named in the order they are to be tried: the first, unless overruled.

        The last is that of the innermost axis, the first that of the outermost.
        """
        preference = self.builder.preferences.get(self.index, 0)
        return ways[0 if preference == OUTERMOST else preference if preference < 0 else preference % len(ways)]

    def site(self, ids: Ids) -> None:
        """Remember the channels that a choice left, so that a frozen outcome can be revised."""
        self.builder.sites.setdefault(self.index, []).append(ids)

    def mask(self, k: int) -> None:
        """The masked reference zeroes removed channels of input k, or of the constants it is computed from.

        Raises Opaque, with nothing said, where an operator on the way does not keep a zero.
        """
        self.builder.masked.update(self._sources(k))

    def mask_where_possible(self, k: int) -> bool:
        """Like ``mask``, where the result is exact without it too; whether removed channels of input k are zero now."""
        try:
            self.mask(k)
        except Opaque:
            return False
        return self.is_constant(k)

    def _sources(self, k: int) -> dict[Edge, str]:
        """The uses of stored constants that become zero where input k has to be zero → what zero is there."""
        graph = self.builder.graph
        pending = [((self.index, k), self._stored_point(self.index, k))]
        found: dict[Edge, str] = {}
        while pending:
            edge, point = pending.pop()
            name = graph.nodes[edge[0]].input[edge[1]]
            if name in graph.constants:
                found[edge] = point
            elif name in self.builder.derived and (point or name not in self.builder.zero):
                pending += self._data_edges(graph.producer[name], point)
        return found

    def _data_edges(self, maker: int, point: str) -> list[tuple[Edge, str]]:
        """The inputs of a node on stored constants that have to be zero for its output to be zero (``point``)."""
        node = self.builder.graph.nodes[maker]
        if node.op_type == "DequantizeLinear" and not point:
            return [((maker, 0), self._stored_point(maker, 0))]
        if node.op_type == "QuantizeLinear" and point in node.input[2:3]:
            return [((maker, 0), "")]
        if node.op_type not in _ZERO_KEEPING or (point and node.op_type in _COMPUTING):
            raise Opaque(f"its constant is computed by {node.op_type}")
        if point and self.builder.graph.values(point).size > 1:
            raise Opaque("its quantised constant is computed, and its zero is not the same along its axis")
        wide = len(node.input) if node.op_type == "Concat" else 1
        return [((maker, i), point) for i in range(wide)]

    def _stored_point(self, index: int, k: int) -> str:
        """The stored zero point of an input of a node; '' where it is 0."""
        graph, name = self.builder.graph, point_name(self.builder.graph.nodes[index], k)
        if name and name not in graph.constants:
            raise Opaque("its zero point is computed")
        return name if name and np.any(graph.values(name)) else ""

    def point(self, name: str) -> Point | None:
        """What a zero point tensor ('': there is none) stands for; None where it varies along an axis."""
        graph = self.builder.graph
        if not name:
            return 0
        if name not in graph.constants:
            return name
        held = np.unique(graph.values(name))
        return int(held[0]) if held.size == 1 else None

    def zeroed(self, k: int) -> bool:
        """Whether removed channels of input k are exactly zero in the masked reference (quantised: the zero point)."""
        name, point = self.node.input[k], self.point(point_name(self.node, k))
        held = 0 if name in self.builder.zero else self.builder.rest.get(name)
        return (self.index, k) in self.builder.masked or (held is not None and held == point)

    def zeroed_if_possible(self, k: int) -> bool:
        """Whether removed channels of input k are zero; a stored constant is made so, where that is exact."""
        return self.mask_where_possible(k) if self.is_constant(k) else self.zeroed(k)

    def rests(self, k: int, *outputs: str) -> None:
        """Outputs hold what input k holds at removed channels."""
        held = self.builder.rest.get(self.node.input[k])
        if held is not None:
            self.builder.rest.update(dict.fromkeys(outputs, held))

    def quantise_zero(self, point: str) -> None:
        """The first output is quantised with this zero point: that is what its zero, if it has one, becomes."""
        name, held = self.node.output[0], self.point(point)
        if name in self.builder.zero and held != 0:
            self.builder.zero.discard(name)
            if held is not None:
                self.builder.rest[name] = held

    def need(self, outputs: Ids | None, inputs: Ids | None) -> None:
        """While any output channel is kept (always, if the output is plain), one of the inputs must be."""
        if inputs is not None:
            self.builder.needs.append((np.zeros(1, np.int32) if outputs is None else outputs, inputs))

    def contraction(
        self,
        *,
        data: int,
        weight: int,
        bias: int | None,
        in_axis: int,
        out_axis: int,
        inputs: Ids,
        outputs: Ids,
        groups: int = 1,
    ) -> None:
        self.builder.contractions.append(
            Contraction(self.index, data, weight, bias, in_axis, out_axis, inputs, outputs, groups)
        )

    def macs(self, coefficient: float, *axes: tuple[Ids | None, int]) -> None:
        """Multiply-accumulates: the coefficient times every axis, given as (ids or None, size)."""
        self.builder.macs.append(self._term(coefficient, axes))

    def slices(self, coefficient: float, *axes: tuple[Ids | None, int]) -> None:
        """Kernel slices of a stored weight: the coefficient times every axis, given as (ids or None, size)."""
        self.builder.slices.append(self._term(coefficient, axes))

    def _term(self, coefficient: float, axes: Sequence[tuple[Ids | None, int]]) -> Term:
        plain = prod(size for ids, size in axes if ids is None)
        return Term(self.index, coefficient * plain, tuple(ids for ids, _ in axes if ids is not None))


def solve(builder: MapBuilder) -> ChannelMap:
    """Turn ids into groups. Group 0 holds id 0 alone; frozen groups keep their number and a reason."""
    _couple_shared_constants(builder)
    left = np.concatenate([np.zeros(0, np.int32), *(ids.ravel() for ids in builder.left)])
    right = np.concatenate([np.zeros(0, np.int32), *(ids.ravel() for ids in builder.right)])
    apart = (left != 0) & (right != 0)
    fixed = np.where(left == 0, right, left)[~apart]
    ones = np.ones(int(apart.sum()), np.int8)
    links = coo_array((ones, (left[apart], right[apart])), shape=(builder.size, builder.size))
    count, group = connected_components(links, directed=False)
    group = _number_from_zero(group.astype(np.int32))
    frozen = np.zeros(count, np.bool_)
    frozen[0] = True
    frozen[group[fixed]] = True
    reasons = _reasons(builder, group, frozen)
    return ChannelMap(
        graph=builder.graph,
        shapes=builder.shapes,
        axes={name: _grouped(axes, group) for name, axes in builder.axes.items()},
        uses={edge: _grouped(axes, group) for edge, axes in builder.uses.items()},
        frozen=frozen,
        reasons=reasons,
        contractions=tuple(
            Contraction(
                c.node, c.data, c.weight, c.bias, c.in_axis, c.out_axis, group[c.inputs], group[c.outputs], c.groups
            )
            for c in builder.contractions
        ),
        macs=_grouped_terms(builder.macs, group),
        slices=_grouped_terms(builder.slices, group),
        masked=dict(builder.masked),
        needs=tuple((group[outputs], group[inputs]) for outputs, inputs in builder.needs),
        shuffles=builder.shuffles,
        renormalised=tuple((name, group[ids]) for name, ids in builder.renormalised),
        group_of=group,
    )


def _number_from_zero(group: Ids) -> Ids:
    """Swap group numbers so that id 0 is in group 0."""
    if group[0] == 0:
        return group
    swapped = np.where(group == group[0], 0, np.where(group == 0, group[0], group))
    return swapped.astype(np.int32)


def _grouped(axes: Axes, group: Ids) -> Axes:
    return tuple(None if ids is None else group[ids] for ids in axes)


def _grouped_terms(terms: Sequence[Term], group: Ids) -> tuple[Term, ...]:
    return tuple(Term(t.node, t.coefficient, tuple(group[ids] for ids in t.axes)) for t in terms)


def _reasons(builder: MapBuilder, group: Ids, frozen: NDArray[np.bool_]) -> dict[int, Frozen]:
    """Mark frozen groups; the first node that froze a group gives the reason."""
    reasons: dict[int, Frozen] = {}
    for ids, index, reason in builder.freezes:
        found = np.unique(group[ids])
        frozen[found] = True
        node = builder.graph.nodes[index] if index >= 0 else None
        cause = Frozen(node_name(node), node.op_type, reason) if node else Frozen("", "model", reason)
        for g in found.tolist():
            reasons.setdefault(g, cause)
    return reasons


def _couple_shared_constants(builder: MapBuilder) -> None:
    """A constant read in several places can be masked in only one way.

    Weights (rank ≥ 2), and vectors that the masked reference changes, are therefore the same channels wherever they
    are read; a constant that is masked in one use and divides or scales in another is left alone.
    """
    graph = builder.graph
    by_name: dict[str, list[Edge]] = {}
    for edge in builder.uses:
        by_name.setdefault(graph.nodes[edge[0]].input[edge[1]], []).append(edge)
    for name, edges in by_name.items():
        masked = [edge for edge in edges if edge in builder.masked]
        if not (masked or (len(edges) > 1 and is_weight(graph.constants[name]))):
            continue
        if len(graph.constants[name].dims) < 2 and not np.any(graph.values(name)):
            continue
        if masked and _is_parameter(builder, name):
            _freeze_uses(builder, edges[:1], f"constant '{name}' is shared with a parameter")
        for edge in edges[1:]:
            for a, b in zip(builder.uses[edges[0]], builder.uses[edge], strict=True):
                if a is not None and b is not None:
                    builder.unify(a, b)
        if 0 < len(masked) < len(edges) or not _have_one_zero(builder, masked):
            _freeze_uses(builder, edges[:1], f"constant '{name}' is shared between unlike uses")


def _have_one_zero(builder: MapBuilder, edges: Sequence[Edge]) -> bool:
    """Whether uses of a constant agree on what zero is there."""
    names = sorted({builder.masked[edge] for edge in edges})
    points = [builder.graph.values(name) if name else np.zeros((), np.int8) for name in names]
    return all(np.array_equal(point, points[0]) for point in points[1:])


def _is_parameter(builder: MapBuilder, name: str) -> bool:
    """Whether a constant is also read where it has no channels: as a bound, a scale, a size."""
    return any(edge not in builder.uses for edge in builder.graph.consumers[name])


def _freeze_uses(builder: MapBuilder, edges: Sequence[Edge], reason: str) -> None:
    for edge in edges:
        for ids in builder.uses[edge]:
            if ids is not None:
                builder.freeze(ids, edge[0], reason)
