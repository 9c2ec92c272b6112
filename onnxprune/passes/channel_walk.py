"""What every node does to channels, node by node: the raw material of the channel graph.

The channel map couples: a convolution with groups, heads or an Add makes many channels one group. The channel graph
must tell them apart, so each node's rule (``onnxprune.ops``) is applied here to *fresh ids*, handed out per node and
axis of what it reads. What the rule unifies then says which positions of its inputs and outputs are the same channel
*in this node*, and nothing else. Ids of different nodes never meet, so one call of ``connected_components`` serves all.

A rule unifies for two reasons: positions are the same channel (``NodeContext.unify``), or they have to leave together
though they are not (``MapBuilder.unify``). For a grouped contraction only the former counts; for a Reshape that joins
heads, channels coupled this way share a position of the output, and both count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.channels import Axes, Contraction, Ids, MapBuilder, NodeContext
from onnxprune.graph import Graph, captured_by
from onnxprune.ops.shuffle import find_shuffles
from onnxprune.ops.table import is_derived, is_size, outputs_of
from onnxprune.shapes import Shapes

__all__ = ["Step", "Walk", "walk"]

_SIZES = frozenset(("Shape", "Size"))


@dataclass(frozen=True)
class Step:
    """A node that computes on activations: the tensors it reads and makes, with ids on their labelled axes.

    Constants, sizes and what is computed from them alone are not listed.
    """

    node: int
    reads: tuple[tuple[str, Axes], ...]
    made: tuple[tuple[str, Axes], ...]
    contractions: tuple[Contraction, ...]


@dataclass(frozen=True)
class Walk:
    """``inputs``: model inputs and their axes; ``steps`` in topological order; ``same``: id → number of its channel
    within its node (ids with equal numbers are the same channel; 0 belongs to positions that hold no channel)."""

    inputs: tuple[tuple[str, Axes], ...]
    steps: tuple[Step, ...]
    same: Ids


@dataclass
class _Builder(MapBuilder):
    """A builder that keeps couplings apart from identities."""

    couplings: list[tuple[Ids, Ids]] = field(default_factory=list)
    is_identity: bool = False

    def unify(self, a: Ids, b: Ids) -> None:
        if self.is_identity:
            super().unify(a, b)
        else:
            self.couplings.append((a, b))

    def settle(self, coupled: bool) -> None:
        """End a node; its couplings count (``coupled``) or not."""
        for a, b in self.couplings if coupled else ():
            super().unify(a, b)
        self.couplings.clear()


class _Context(NodeContext):
    builder: _Builder

    def unify(self, a: Ids | None, b: Ids | None, reason: str = "") -> Ids | None:
        self.builder.is_identity = True
        try:
            return super().unify(a, b, reason)
        finally:
            self.builder.is_identity = False


def walk(graph: Graph, shapes: Shapes) -> Walk:
    """Apply every node's rule to fresh ids."""
    chosen = _channel_axes(graph, shapes)
    builder = _Builder(graph, shapes)
    for name in graph.inputs:
        builder.axes[name] = _labelled(builder, name, (chosen[name],))
    inputs = tuple((name, builder.axes[name]) for name in graph.inputs)
    steps = tuple(_steps(builder, set(graph.inputs)))
    return Walk(inputs, steps, _components(builder))


def _labelled(builder: MapBuilder, name: str, axes: Sequence[int | None]) -> Axes:
    """Fresh ids on these axes of a tensor."""
    shape = builder.shapes.of.get(name, ())
    return tuple(builder.fresh_or_plain(size) if a in axes else None for a, size in enumerate(shape))


def _steps(builder: _Builder, live: set[str], until_contraction: bool = False) -> Iterator[Step]:
    """``live``: tensors that hold activations. ``until_contraction``: do not go on behind contractions."""
    graph = builder.graph
    shuffles = find_shuffles(graph, builder.shapes)
    inside = {index for shuffle in shuffles.values() for index in shuffle.inner}
    for index, node in enumerate(graph.nodes):
        names = [shuffles[index].source] if index in shuffles else [*node.input, *sorted(captured_by(node))]
        held = dict.fromkeys(name for name in names if name in live)
        context = _Context(builder, index)
        if index in inside or (until_contraction and not held and not is_derived(context)):
            continue
        for name in dict.fromkeys(names):
            builder.axes[name] = tuple(
                None if ids is None else builder.fresh_or_plain(len(ids)) for ids in builder.axes.get(name, ())
            )
        count = len(builder.contractions)
        outputs = outputs_of(context, shuffles)
        found = tuple(builder.contractions[count:])
        builder.settle(all(c.groups == 1 for c in found))
        made = tuple((name, axes) for name, axes in zip(node.output, outputs, strict=False) if name)
        builder.axes.update(made)
        if is_derived(context):
            builder.derived.update(name for name, _ in made)
        if held and node.op_type not in _SIZES and not is_size(builder, context):
            yield Step(index, tuple((name, builder.axes[name]) for name in held), made, found)
            if not (until_contraction and found):
                live.update(name for name, _ in made)


def _channel_axes(graph: Graph, shapes: Shapes) -> dict[str, int | None]:
    """The axis of every model input that a contraction sums over; else axis 1, if there is one."""
    builder = _Builder(graph, shapes)
    for name in graph.inputs:
        builder.axes[name] = _labelled(builder, name, range(len(shapes.of.get(name, ()))))
    start = {name: builder.axes[name] for name in graph.inputs}
    joined: list[tuple[Ids, Ids]] = []
    previous = dict(start)
    for step in _steps(builder, set(graph.inputs), until_contraction=True):
        for name, axes in step.reads:  # the fresh ids of this use are those that the tensor was made with
            made = previous[name]
            joined += [(a, b) for a, b in zip(made, axes, strict=True) if a is not None and b is not None]
        previous.update(step.made)
    builder.is_identity = True
    for a, b in joined:
        builder.unify(a, b)
    same = _components(builder)
    summed = np.unique(np.concatenate([np.zeros(0, np.int32), *(same[c.inputs] for c in builder.contractions)]))
    return {name: _chosen(axes, same, summed) for name, axes in start.items()}


def _chosen(axes: Axes, same: Ids, summed: Ids) -> int | None:
    for a, ids in enumerate(axes):
        if ids is not None and len(ids) and np.all(np.isin(same[ids], summed)):
            return a
    return 1 if len(axes) > 1 else None


def _components(builder: MapBuilder) -> Ids:
    """Id → number of its channel; 0 for id 0 alone, which is the same as nothing."""
    left = np.concatenate([np.zeros(0, np.int32), *(ids.ravel() for ids in builder.left)])
    right = np.concatenate([np.zeros(0, np.int32), *(ids.ravel() for ids in builder.right)])
    real = (left != 0) & (right != 0)
    pairs = coo_array((np.ones(int(real.sum()), np.int8), (left[real], right[real])), shape=(builder.size,) * 2)
    found: Ids = connected_components(pairs, directed=False)[1].astype(np.int32) + 1
    found[0] = 0
    return found
