"""The channel graph: every channel of every tensor is a vertex of its own, every kernel slice an edge.

A vertex is an index of a labelled axis of a tensor (``onnxprune.channels``); a tensor without a labelled axis is one
vertex. Edges are of two kinds:

- *blocks*: a contraction joins its input channels to its output channels through kernel slices, [out, in per group].
  They are dense, so only the vertices along both sides are stored. Depthwise kernels are slices like all others.
- *links*: every other operator joins a channel to itself (Add: both operands to the sum; Concat, Split, a shuffle: to
  its new place; heads: many to one). A link can carry a gain, such as a BatchNorm's |γ|/√(σ² + ε).

Where an operator sums up or is not understood, everything it reads is joined to everything it makes, through one further
vertex (a *hub*) that stands for a whole tensor. Where it mixes channels and still has one output for each (a
LayerNormalization, the units of a recurrent layer), a path goes from a channel to itself, and *mixing* edges say that
every channel has an influence on all others. No path runs over them; ``mixing=True`` counts them as links. With them,
reachability errs on the safe side only: what is not accessible does not depend on any model input, and what is not
co-accessible has no influence on any output.

Vertices are numbered in topological order: every edge goes from a lower to a higher number, and the vertices of one
``Span`` have no edges among each other, so passes over the graph go span by span with one numpy call each.

An *edge mask* says which kernel slices are there: node of a contraction → bool [out, in per group], as in
``onnxprune.passes.norms.slices``; blocks it does not name have all theirs. A vertex is *accessible* iff a path of links
and kept slices leads to it from a model input, *co-accessible* iff one leads from it to a model output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["Block", "BoolArray", "ChannelGraph", "EdgeMask", "Span", "Vertices", "accessible", "coaccessible",
           "consistent_edges"]  # fmt: skip

BoolArray = NDArray[np.bool_]
Vertices = NDArray[np.int64]
EdgeMask = Mapping[int, BoolArray]


def _none() -> Vertices:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class Span:
    """Vertices ``first`` … ``first + size − 1``: the indices of an axis of a tensor.

    ``axis`` is None where one vertex stands for the whole tensor, as it has no labelled axis or (``is_hub``) beside
    those it has.
    """

    tensor: str
    axis: int | None
    first: int
    size: int
    is_hub: bool = False

    @property
    def vertices(self) -> slice:
        return slice(self.first, self.first + self.size)


@dataclass(frozen=True)
class Block:
    """The kernel slices of a contraction.

    ``node``: its index. ``sources``: vertices [groups, in per group]; ``targets``: vertices [out], those of group g
    being the g-th run of out/groups. A vertex may be there several times (a tensor that is one vertex).
    ``gain``: log gain of each output that directly follows [out] (a BatchNorm behind a Conv), to be added to the log
    norms of its slices.
    """

    node: int
    sources: Vertices
    targets: Vertices
    gain: NDArray[np.float64]

    @property
    def groups(self) -> int:
        return len(self.sources)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in per group)"""
        return len(self.targets), self.sources.shape[1]


@dataclass(frozen=True)
class ChannelGraph:
    """The graph of a model.

    ``blocks``: in topological order, one per contraction that reads an activation. ``link_source``, ``link_target``,
    ``link_gain``: links, sorted by target then source; gains are logarithms. ``demand_source``, ``demand_target``: a
    tensor with several labelled axes goes on along one of them, and others end here (a convolution sums over channels
    and ends the joints of a skeleton): no path goes this way, but what is at the source matters as the target does;
    sorted by source. ``mixing_source`` (hubs), ``mixing_target``: mixing edges, sorted by target.
    ``inputs``, ``outputs``: vertices of model inputs and outputs.
    """

    spans: tuple[Span, ...]
    blocks: tuple[Block, ...]
    link_source: Vertices
    link_target: Vertices
    link_gain: NDArray[np.float64]
    demand_source: Vertices
    demand_target: Vertices
    inputs: Vertices
    outputs: Vertices
    mixing_source: Vertices = field(default_factory=_none)
    mixing_target: Vertices = field(default_factory=_none)

    @property
    def size(self) -> int:
        """Number of vertices."""
        return self.spans[-1].first + self.spans[-1].size if self.spans else 0

    @cached_property
    def span_starts(self) -> Vertices:
        return np.array([span.first for span in self.spans], np.int64)

    @cached_property
    def block_of(self) -> dict[int, Block]:
        """Node → its block."""
        return {block.node: block for block in self.blocks}

    @cached_property
    def _blocks_into(self) -> dict[int, list[Block]]:
        """Number of a span → the blocks that end in it."""
        found: dict[int, list[Block]] = {}
        for block in self.blocks:
            if len(block.targets):
                place = int(np.searchsorted(self.span_starts, block.targets[0], "right")) - 1
                found.setdefault(place, []).append(block)
        return found

    @cached_property
    def _link_bounds(self) -> Vertices:
        """Where the links into each span begin, and their end."""
        return np.searchsorted(self.link_target, np.append(self.span_starts, self.size))

    def stages(self) -> Iterator[tuple[Span, slice, list[Block]]]:
        """The spans in topological order, each with the links (a slice of ``link_…``) and blocks that end in it."""
        bounds = self._link_bounds
        for place, span in enumerate(self.spans):
            yield span, slice(int(bounds[place]), int(bounds[place + 1])), self._blocks_into.get(place, [])

    def beside(self, vertex: int) -> Vertices:
        """What a vertex matters as much as (see ``demand_source``), though no path goes there."""
        low, high = np.searchsorted(self.demand_source, (vertex, vertex + 1))
        return self.demand_target[low:high]

    def mixing_into(self, span: Span) -> slice:
        """The mixing edges (a slice of ``mixing_…``) that end in a span."""
        low, high = np.searchsorted(self.mixing_target, (span.first, span.first + span.size))
        return slice(int(low), int(high))

    def name(self, vertex: int) -> tuple[str, int | None]:
        """The tensor of a vertex, and the index of its channel (None: all of it)."""
        span = self.spans[int(np.searchsorted(self.span_starts, vertex, "right")) - 1]
        return span.tensor, None if span.axis is None else vertex - span.first

    def vertices_of(self, tensor: str) -> Vertices:
        """All vertices of a tensor."""
        held = [np.arange(span.first, span.first + span.size) for span in self.spans if span.tensor == tensor]
        return np.concatenate([np.zeros(0, np.int64), *held])


def accessible(graph: ChannelGraph, mask: EdgeMask, *, mixing: bool = False) -> BoolArray:
    """Which vertices a path of links and kept kernel slices reaches from a model input (bool [vertices])."""
    reached = np.zeros(graph.size, np.bool_)
    reached[graph.inputs] = True
    for span, links, blocks in graph.stages():
        if mixing:
            held = graph.mixing_into(span)
            reached[graph.mixing_target[held][reached[graph.mixing_source[held]]]] = True
        live = reached[graph.link_source[links]]
        reached[graph.link_target[links][live]] = True
        for block in blocks:
            reached[block.targets[_reached_outputs(block, mask.get(block.node), reached)]] = True
    return reached


def coaccessible(graph: ChannelGraph, mask: EdgeMask, *, mixing: bool = False) -> BoolArray:
    """From which vertices a path of links and kept kernel slices leads to a model output (bool [vertices])."""
    reaches = np.zeros(graph.size, np.bool_)
    reaches[graph.outputs] = True
    for span, links, blocks in reversed(list(graph.stages())):
        if span.is_hub and len(graph.demand_source):
            reaches[span.first] |= np.any(reaches[graph.beside(span.first)])
        for block in blocks:
            reaches[block.sources[_reaching_inputs(block, mask.get(block.node), reaches)]] = True
        live = reaches[graph.link_target[links]]
        reaches[graph.link_source[links][live]] = True
        if mixing:
            held = graph.mixing_into(span)
            reaches[graph.mixing_source[held][reaches[graph.mixing_target[held]]]] = True
    return reaches


def consistent_edges(graph: ChannelGraph, mask: EdgeMask) -> dict[int, BoolArray]:
    """The kept kernel slices of all blocks that lie on a path from a model input to a model output."""
    ahead, behind = accessible(graph, mask), coaccessible(graph, mask)
    found = {}
    for block in graph.blocks:
        kept = mask.get(block.node)
        outputs, inputs = _by_group(block, behind[block.targets]), np.asarray(ahead[block.sources])
        both = (outputs[:, :, None] & inputs[:, None, :]).reshape(block.shape)
        found[block.node] = both if kept is None else both & kept
    return found


def _by_group(block: Block, values: BoolArray) -> BoolArray:
    """[out] → [groups, out per group]"""
    return np.asarray(values.reshape(block.groups, -1))


def _reached_outputs(block: Block, kept: BoolArray | None, reached: BoolArray) -> BoolArray:
    """bool [out]"""
    live = np.asarray(reached[block.sources])
    if kept is None:
        return np.repeat(live.any(axis=1), len(block.targets) // block.groups)
    split = kept.reshape(block.groups, -1, block.shape[1])
    return np.asarray((split & live[:, None, :]).any(axis=2).ravel())


def _reaching_inputs(block: Block, kept: BoolArray | None, reaches: BoolArray) -> BoolArray:
    """bool [groups, in per group]"""
    live = _by_group(block, np.asarray(reaches[block.targets]))
    if kept is None:
        return np.broadcast_to(live.any(axis=1, keepdims=True), block.sources.shape)
    split = kept.reshape(block.groups, -1, block.shape[1])
    return np.asarray((split & live[:, :, None]).any(axis=1))
