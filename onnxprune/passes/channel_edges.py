"""Building the channel graph from what every node's rule says (see ``onnxprune.passes.channel_walk``).

For each node: positions of what it reads and what it makes that carry equal numbers are the same channel, which gives
the links; its contraction gives a block. What of its inputs is neither, is joined to everything through a hub.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import Axes, ChannelMap, Contraction, Ids
from onnxprune.ops.contraction import conv
from onnxprune.ops.einsum import einsum
from onnxprune.ops.recurrent import GATES
from onnxprune.ops.table import rule_of
from onnxprune.passes.channel_graph import Block, ChannelGraph, Span, Vertices
from onnxprune.passes.channel_walk import Step, Walk, walk
from onnxprune.passes.flow import keeps_apart
from onnxprune.passes.gains import diagonal_gain

__all__ = ["channel_graph"]

_SUMMING = (conv.__module__, einsum.__module__)  # what is left of their inputs' axes passes index by index

_JOINING = "Concat"  # operators with this ending lay operands side by side: a plain one fills the places without ids


def channel_graph(channel_map: ChannelMap) -> ChannelGraph:
    """The channel graph of a model. Blocks carry the node indices of ``channel_map.contractions``."""
    found = walk(channel_map.graph, channel_map.shapes)
    assembly = _Assembly(channel_map, found)
    for name, axes in found.inputs:
        assembly.add_tensor(name, axes)
    for step in found.steps:
        assembly.add(step)
    return assembly.finished()


@dataclass(frozen=True)
class _Axis:
    """A labelled axis of what a node reads or makes: its channel numbers (see ``Walk.same``)."""

    name: str
    axis: int
    same: Ids


def _labelled(tensors: Sequence[tuple[str, Axes]], same: Ids) -> list[_Axis]:
    return [_Axis(name, a, same[ids]) for name, axes in tensors for a, ids in enumerate(axes) if ids is not None]


class _Assembly:
    def __init__(self, channel_map: ChannelMap, found: Walk) -> None:
        self.map, self.graph, self.shapes, self.walk = channel_map, channel_map.graph, channel_map.shapes, found
        self.spans: list[Span] = []
        self.place: dict[tuple[str, int | None], Vertices] = {}
        self.of_tensor: dict[str, list[Vertices]] = {}
        self.blocks: list[Block] = []
        self.links: list[tuple[Vertices, Vertices, NDArray[np.float64]]] = []
        self.demands: list[tuple[Vertices, Vertices]] = []
        self.mixing: list[tuple[Vertices, Vertices]] = []
        self.size = 0

    # -- vertices

    def _span(self, name: str, axis: int | None, size: int, is_hub: bool = False) -> Vertices:
        self.spans.append(Span(name, axis, self.size, size, is_hub))
        self.size += size
        return np.arange(self.size - size, self.size)

    def add_tensor(self, name: str, axes: Axes) -> None:
        """Vertices for a tensor: its labelled axes, or one."""
        labelled = [(a, len(ids)) for a, ids in enumerate(axes) if ids is not None]
        sizes: list[tuple[int | None, int]] = [*labelled] or [(None, 1)]
        for axis, size in sizes:
            self.place[name, axis] = self._span(name, axis, size)
            self.of_tensor.setdefault(name, []).append(self.place[name, axis])

    def _whole(self, name: str) -> Vertices:
        """One vertex for all of a tensor [1]: its only one, or a hub behind those it has."""
        if (name, None) not in self.place:
            held = np.concatenate(self.of_tensor[name])
            self.place[name, None] = self._span(name, None, 1, is_hub=True)
            self._link(held, self.place[name, None])
        return self.place[name, None]

    # -- edges

    def _link(self, source: Vertices, target: Vertices, gain: NDArray[np.float64] | float = 0.0) -> None:
        source, target, gain = np.broadcast_arrays(source, target, np.asarray(gain, np.float64))
        self.links.append((source, target, gain))

    def add(self, step: Step) -> None:
        """A node's vertices and edges."""
        same = self.walk.same
        reads, made = _labelled(step.reads, same), _labelled(step.made, same)
        contractions = [(c, self._sources(c, reads)) for c in step.contractions if self._reads_activation(c, step)]
        consumed = {self.graph.nodes[c.node].input[c.data] for c, _ in contractions}
        related = {id(m): [r for r in reads if _meet(r.same, m.same)] for m in made}
        used = {(r.name, r.axis) for found in related.values() for r in found}
        joined = consumed | {name for name, _ in used}
        spills = [
            (self._whole(name), m, at) for m in made for name, at in self._spills(step, m, related[id(m)], joined)
        ]
        joints = [self._joints(r, m) for m in made for r in related[id(m)]]
        ending = [r for r in reads if r.name in joined and (r.name, r.axis) not in used]
        demands = [self._aside(r) for r in ending if not self._feeds(r, contractions)]
        mixing = [self._aside(r) for r in reads if (r.name, r.axis) in used and self._mixes(step.node)]
        factors = [
            (self._whole(name), m) for m in made for name in self._factors(step, m, related[id(m)], joined - consumed)
        ]
        apart = len(step.made) > 1 or self.graph.nodes[step.node].op_type in GATES
        units = [self._units(c) if apart else None for c, _ in contractions]
        mixing += [self._behind(held) for held in units if held is not None]
        for name, axes in step.made:
            self.add_tensor(name, axes)
        for source, m, at, is_vertex in (joint for found in joints for joint in found):
            gain = self._gain(step.node, m)
            self._link(source, at if is_vertex else self.place[m.name, m.axis][at], 0.0 if is_vertex else gain[at])
        for (c, sources), unit in zip(contractions, units, strict=True):
            self._block(c, sources, unit, step, made)
        for whole, m, at in spills:
            self._link(whole, self.place[m.name, m.axis][at], self._gain(step.node, m)[at])
        self._into_plain(step, consumed)
        into = [held for name, _ in step.made for held in self.of_tensor[name]]
        self.demands += [(hub, held) for hub in demands for held in into]
        self.mixing += [(hub, held) for hub in mixing for held in into]
        self.mixing += [(whole, self.place[m.name, m.axis]) for whole, m in factors]

    def _factors(self, step: Step, m: _Axis, related: Sequence[_Axis], joined: set[str]) -> Iterator[str]:
        """Tensors that are joined to other axes of what a node makes: an index of this one depends on them, too."""
        if not self.graph.nodes[step.node].op_type.endswith(_JOINING):
            yield from (n for n, _ in step.reads if n in joined and all(r.name != n for r in related))

    def _mixes(self, node: int) -> bool:
        """Whether channels that a node passes on have an influence on each other."""
        proto = self.graph.nodes[node]
        rule = rule_of(proto.op_type, proto.domain)
        return rule is not None and not (rule.channels.__module__ in _SUMMING or keeps_apart(self.map, node, 0))

    def _feeds(self, r: _Axis, contractions: Sequence[tuple[Contraction, Vertices]]) -> bool:
        """Whether an axis is the one that a contraction sums over."""
        own = self.place[r.name, r.axis]
        return any(np.array_equal(sources.ravel(), own) for _, sources in contractions)

    def _aside(self, r: _Axis) -> Vertices:
        """A hub [1] behind an axis that ends at a node while another axis of its tensor goes on."""
        return self._behind(self.place[r.name, r.axis])

    def _behind(self, vertices: Vertices) -> Vertices:
        """A hub [1] behind these."""
        name = self.spans[bisect_right(self.spans, int(vertices[0]), key=lambda span: span.first) - 1].tensor
        hub = self._span(name, None, 1, is_hub=True)
        self._link(vertices, hub)
        return hub

    def _reads_activation(self, c: Contraction, step: Step) -> bool:
        return any(name == self.graph.nodes[c.node].input[c.data] for name, _ in step.reads)

    def _sources(self, c: Contraction, reads: Sequence[_Axis]) -> Vertices:
        """The input vertices of a contraction [groups, in per group]."""
        data = self.graph.nodes[c.node].input[c.data]
        wanted = self.walk.same[c.inputs]
        for r in reads:
            if r.name == data and np.array_equal(r.same, wanted):
                return self.place[r.name, r.axis].reshape(c.groups, -1)
        return np.repeat(self._whole(data), len(c.inputs)).reshape(c.groups, -1)

    def _units(self, c: Contraction) -> Vertices | None:
        """Vertices of their own for the outputs of a contraction that several tensors carry (a recurrent layer)."""
        return self._span(self.graph.nodes[c.node].output[0], None, len(c.outputs), is_hub=True)

    def _block(self, c: Contraction, sources: Vertices, units: Vertices | None, step: Step,
               made: Sequence[_Axis]) -> None:  # fmt: skip
        fitting = [m for m in made if _is_output(c, m, self.walk.same)]
        count = len(c.outputs)
        if units is None and fitting:
            targets = self.place[fitting[0].name, fitting[0].axis]
        elif units is None:
            targets = np.repeat(self._any_of(step.made[0][0]), count)
        else:
            targets = units
            for m in fitting:
                self._link(units, self.place[m.name, m.axis])
            for name, _ in step.made if not fitting else ():
                self._link(units, self.place[name, None] if (name, None) in self.place else self._any_of(name))
        self.blocks.append(Block(c.node, sources, targets, np.zeros(count)))

    def _any_of(self, name: str) -> Vertices:
        """A vertex [1] that stands for a tensor just made, whatever axes it has: its first."""
        return self.of_tensor[name][0][:1]

    def _joints(self, r: _Axis, m: _Axis) -> list[tuple[Vertices, _Axis, Vertices, bool]]:
        """Links from an axis that is read to one that is made: (sources, axis, places along it or hub vertices)."""
        here = self.place[r.name, r.axis]
        if np.array_equal(r.same, m.same) and len(np.unique(r.same)) == len(r.same):
            return [(here, m, np.arange(len(here)), False)]
        left, right = _pairs(r.same, m.same)
        if len(left) <= 2 * (len(r.same) + len(m.same)):
            return [(here[left], m, right, False)]
        channels = np.intersect1d(r.same, m.same)
        hubs = self._span(r.name, None, len(channels), is_hub=True)
        inward, outward = np.isin(r.same, channels), np.isin(m.same, channels)
        return [
            (here[inward], m, hubs[np.searchsorted(channels, r.same[inward])], True),
            (hubs[np.searchsorted(channels, m.same[outward])], m, np.flatnonzero(outward), False),
        ]

    def _spills(self, step: Step, m: _Axis, related: Sequence[_Axis],
                joined: set[str]) -> Iterator[tuple[str, Vertices]]:  # fmt: skip
        """Tensors all of which is joined to an axis that is made, and the places along it.

        Those that nothing else joins to what the node makes; where operands are laid side by side, those without ids
        along the axis, at the places without; and all, where nothing tells where the axis comes from.
        """
        made_by_block = any(_is_output(c, m, self.walk.same) for c in step.contractions)
        for name, _ in step.reads:
            if self.graph.nodes[step.node].op_type.endswith(_JOINING):
                if all(r.name != name for r in related):
                    yield name, np.flatnonzero(m.same == 0)
            elif name not in joined or not (related or made_by_block):
                yield name, np.arange(len(m.same))

    def _into_plain(self, step: Step, consumed: set[str]) -> None:
        """What has no labelled axis depends on all that is read."""
        plain = [name for name, axes in step.made if all(ids is None for ids in axes)]
        for made in plain:
            for name, _ in step.reads:
                if name not in consumed:
                    self._link(np.concatenate(self.of_tensor[name]), self.place[made, None])

    def _gain(self, node: int, m: _Axis) -> NDArray[np.float64]:
        found = diagonal_gain(self.graph, self.shapes, node, m.axis, len(m.same))
        return np.zeros(len(m.same)) if found is None else np.asarray(found)

    # -- the result

    def finished(self) -> ChannelGraph:
        nothing = np.zeros(0, np.int64)
        source = np.concatenate([nothing, *(s.ravel() for s, _, _ in self.links)])
        target = np.concatenate([nothing, *(t.ravel() for _, t, _ in self.links)])
        gain = np.concatenate([np.zeros(0), *(g.ravel() for _, _, g in self.links)])
        order = np.lexsort((source, target))
        source, target, gain = source[order], target[order], gain[order]
        hubs = np.concatenate([nothing, *(np.repeat(a, len(b)) for a, b in self.mixing)])
        mixed = np.concatenate([nothing, *(b for _, b in self.mixing)])
        by_target = np.argsort(mixed, kind="stable")
        blocks = _fold_gains(self.size, self.blocks, source, target, gain)
        return ChannelGraph(
            tuple(self.spans),
            blocks,
            source,
            target,
            gain,
            inputs=np.concatenate([nothing, *(v for name, _ in self.walk.inputs for v in self.of_tensor[name])]),
            demand_source=np.concatenate([nothing, *(np.repeat(a, len(b)) for a, b in self.demands)]),
            demand_target=np.concatenate([nothing, *(b for _, b in self.demands)]),
            mixing_source=hubs[by_target],
            mixing_target=mixed[by_target],
            outputs=np.concatenate([nothing, *(v for name in self.graph.outputs for v in self.of_tensor.get(name, []))]),
        )


def _meet(a: Ids, b: Ids) -> bool:
    """Whether two axes have a channel in common."""
    return bool(np.any(np.isin(a, b) & (a != 0)))


def _is_output(c: Contraction, m: _Axis, same: Ids) -> bool:
    return np.array_equal(same[c.outputs], m.same)


def _pairs(a: Ids, b: Ids) -> tuple[Vertices, Vertices]:
    """All (i, j) with a[i] == b[j] ≠ 0."""
    order = np.argsort(a, kind="stable")
    low, high = (np.searchsorted(a[order], b, side) for side in ("left", "right"))
    count = np.where(b == 0, 0, high - low)
    right = np.repeat(np.arange(len(b)), count)
    within = np.arange(len(right)) - np.repeat(np.cumsum(count) - count, count)
    return order[np.repeat(low, count) + within], right


def _fold_gains(size: int, blocks: Sequence[Block], source: Vertices, target: Vertices,
                gain: NDArray[np.float64]) -> tuple[Block, ...]:  # fmt: skip
    """Move gains that directly follow a block's output, with nobody else reading it, from their links to the block.

    LEAN's edge weight: the norm of a slice times the gain of the BatchNorm behind it.
    """
    owner = np.full(size, -1)
    for block in blocks:
        owner[block.targets] = block.targets
    once = np.bincount(target, minlength=size)[target] == 1
    once &= np.bincount(source, minlength=size)[source] == 1
    fed = owner >= 0
    once &= ~fed[target]
    moved = np.zeros(size)
    for e in _in_waves(source, target, once, owner):
        np.add.at(moved, owner[target[e]], gain[e])
        gain[e] = 0.0
    return tuple(replace(block, gain=moved[block.targets]) for block in blocks)


def _in_waves(source: Vertices, target: Vertices, once: NDArray[np.bool_], owner: Vertices) -> Iterator[Vertices]:
    """Links along unbranched chains behind block outputs, those next to a block first; ``owner`` grows with them."""
    leaving = np.full(len(owner), -1)
    leaving[source[once]] = np.flatnonzero(once)
    wave = np.flatnonzero(once & (owner[source] >= 0))
    while len(wave):
        owner[target[wave]] = owner[source[wave]]
        yield wave
        following = leaving[target[wave]]
        wave = np.sort(following[following >= 0])
