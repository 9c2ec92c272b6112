"""The anchored variant of LEAN: every path runs from a model input to a model output.

Repeatedly take the path of largest product among those that have a kernel slice not yet kept, and keep its slices.
Kept slices stay in the graph, since an output is reached through slices that others use too; so the strongest path
*through* each slice never changes:

    through(u → v) = ahead(u) + w(u, v) + behind(v)

with ahead the best path from an input to u and behind the best one from v to an output (logarithms, float64). Taking
paths in falling order is thus taking slices in falling order of ``through``, each with its best prefix and suffix. Every
kept slice lies on a kept path from an input to an output: the selection is topologically consistent by construction.

Ties: slices with equal values by node, then as stored; prefix and suffix by the first link, else the first slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.passes.chain_stages import Chain, Floats
from onnxprune.passes.channel_graph import Block, BoolArray, ChannelGraph, Vertices

__all__ = ["anchored_chains", "anchored_edges"]

_NOTHING = -np.inf


def anchored_edges(graph: ChannelGraph, weights: Mapping[int, Floats], keep: int, *,
                   exceed: bool = True) -> dict[int, BoolArray]:  # fmt: skip
    """At least ``keep`` kernel slices (the last path is kept whole), if so many lie on paths from input to output.

    Args, returns: as ``onnxprune.passes.chains.lean_edges``.
    """
    ways = _Ways(graph, weights)
    nodes = sorted(weights)
    order, _ = ways.ranked(nodes)
    low, high = 0, len(order)
    while low < high:  # fewest leading slices whose paths have as many slices as asked for
        middle = (low + high) // 2
        if _count(ways.completed(nodes, order[:middle])) >= keep:
            high = middle
        else:
            low = middle + 1
    found = ways.completed(nodes, order[:low])
    if not exceed and low and _count(found) > keep:
        return ways.completed(nodes, order[: low - 1])
    return found


def anchored_chains(graph: ChannelGraph, weights: Mapping[int, Floats]) -> Iterator[Chain]:
    """The paths that this variant takes, strongest first; each has a kernel slice that those before it lack."""
    ways = _Ways(graph, weights)
    nodes = sorted(weights)
    bounds = np.cumsum([0, *(weights[node].size for node in nodes)])
    seen: set[tuple[int, int, int]] = set()
    for place, value in zip(*ways.ranked(nodes), strict=True):
        number = int(np.searchsorted(bounds, place, "right")) - 1
        out, i = divmod(int(place - bounds[number]), weights[nodes[number]].shape[1])
        if (nodes[number], out, i) not in seen:
            chain = Chain(float(value), tuple(ways.path(nodes[number], out, i)))
            seen.update(chain.slices)
            yield chain


def _count(kept: Mapping[int, BoolArray]) -> int:
    return sum(int(np.count_nonzero(held)) for held in kept.values())


@dataclass
class _Side:
    """Best values of all vertices, and the edge each comes by: a link (its number), or a slice of a block (−1: none).

    ``other``: the vertex at its far end.
    """

    best: Floats
    link: Vertices
    block: Vertices
    slice: Vertices
    other: Vertices

    @classmethod
    def empty(cls, size: int) -> _Side:
        none = [np.full(size, -1) for _ in range(4)]
        return cls(np.full(size, _NOTHING), *none)

    def offer(self, at: Vertices, values: Floats, link: Vertices | None, block: int, slices: Vertices,
              other: Vertices) -> None:  # fmt: skip
        """Take what is better than what is known. ``at`` may repeat; the first of the best then counts."""
        order = np.lexsort((np.arange(len(at)), -values, at))
        order = order[np.append(True, np.diff(at[order]) != 0)] if len(at) else order
        order = order[values[order] > self.best[at[order]]]
        at = at[order]
        self.best[at] = values[order]
        self.link[at] = -1 if link is None else link[order]
        self.block[at], self.slice[at] = block, slices[order]
        self.other[at] = other[order]


class _Ways:
    """The best paths from inputs (``ahead``) and to outputs (``behind``)."""

    def __init__(self, graph: ChannelGraph, weights: Mapping[int, Floats]) -> None:
        self.graph, self.weights = graph, weights
        self.ahead, self.behind = _Side.empty(graph.size), _Side.empty(graph.size)
        self.ahead.best[graph.inputs] = self.behind.best[graph.outputs] = 0.0
        stages = list(graph.stages())
        for _, links, blocks in stages:
            self._by_links(links, True)
            for block in blocks:
                self._forwards(block)
        for _, links, blocks in reversed(stages):
            for block in reversed(blocks):
                self._backwards(block)
            self._by_links(links, False)

    def _weight(self, block: Block) -> Floats:
        """Log weights [groups, out per group, in]; a layer that is left alone has its gains only."""
        held = self.weights.get(block.node)
        full = np.broadcast_to(block.gain[:, None], block.shape) if held is None else held
        return full.reshape(block.groups, -1, block.shape[1])

    def _by_links(self, links: slice, forwards: bool) -> None:
        graph = self.graph
        near, far = graph.link_target[links], graph.link_source[links]
        if not forwards:
            near, far = far, near
        side = self.ahead if forwards else self.behind
        numbers = np.arange(links.start, links.stop)
        side.offer(near, side.best[far] + graph.link_gain[links], numbers, -1, np.full(len(numbers), -1), far)

    def _forwards(self, block: Block) -> None:
        sums = self._weight(block) + self.ahead.best[block.sources][:, None, :]
        column = sums.argmax(axis=2)
        values = np.take_along_axis(sums, column[:, :, None], 2).ravel()
        rows = np.arange(block.shape[0])
        group = rows // max(1, sums.shape[1])
        other = block.sources[group, column.ravel()]
        self.ahead.offer(block.targets, values, None, block.node, rows * block.shape[1] + column.ravel(), other)

    def _backwards(self, block: Block) -> None:
        targets = block.targets.reshape(block.groups, -1)
        sums = self._weight(block) + self.behind.best[targets][:, :, None]
        row = sums.argmax(axis=1)  # [groups, in]
        values = np.take_along_axis(sums, row[:, None, :], 1).ravel()
        out = row + np.arange(block.groups)[:, None] * sums.shape[1]
        slices = (out * block.shape[1] + np.arange(block.shape[1])).ravel()
        self.behind.offer(block.sources.ravel(), values, None, block.node, slices, block.targets[out.ravel()])

    def through(self, block: Block) -> Floats:
        """The best path from input to output through every slice, [out, in per group]."""
        targets = block.targets.reshape(block.groups, -1)
        value = self.ahead.best[block.sources][:, None, :] + self._weight(block) + self.behind.best[targets][:, :, None]
        return np.asarray(value.reshape(block.shape))

    def ranked(self, nodes: list[int]) -> tuple[Vertices, Floats]:
        """The slices of these layers (counted through all) on any path, best path first, and its value."""
        through = [self.through(self.graph.block_of[node]).ravel() for node in nodes]
        every = np.concatenate([np.zeros(0), *through])
        order = np.argsort(-every, kind="stable")
        order = order[every[order] > _NOTHING]
        return order, every[order]

    def path(self, node: int, out: int, i: int) -> Iterator[tuple[int, int, int]]:
        """The slices of the best path through a slice, of layers that have weights."""
        block = self.graph.block_of[node]
        source = int(block.sources[out // (block.shape[0] // block.groups), i])
        yield from reversed(list(self._trace(self.ahead, source)))
        yield node, out, i
        yield from self._trace(self.behind, int(block.targets[out]))

    def _trace(self, side: _Side, vertex: int) -> Iterator[tuple[int, int, int]]:
        while side.other[vertex] >= 0:
            node = int(side.block[vertex])
            if node in self.weights:
                yield node, *divmod(int(side.slice[vertex]), self.graph.block_of[node].shape[1])
            vertex = int(side.other[vertex])

    def completed(self, nodes: list[int], chosen: Vertices) -> dict[int, BoolArray]:
        """These slices (counted through all ``nodes``) and all slices of their best prefixes and suffixes."""
        graph = self.graph
        kept = {node: np.zeros(self.weights[node].shape, np.bool_) for node in nodes}
        bounds = np.cumsum([0, *(kept[node].size for node in nodes)])
        chosen = np.sort(chosen)
        ends = np.searchsorted(chosen, bounds)
        starts, stops = np.zeros(graph.size, np.bool_), np.zeros(graph.size, np.bool_)
        for node, bound, low, high in zip(nodes, bounds[:-1], ends[:-1], ends[1:], strict=True):
            block, places = graph.block_of[node], chosen[low:high] - bound
            kept[node].ravel()[places] = True
            out, i = np.divmod(places, block.shape[1])
            starts[block.sources[out // max(1, block.shape[0] // block.groups), i]] = True
            stops[block.targets[out]] = True
        for span in reversed(graph.spans):
            self._follow(self.ahead, starts, span.vertices, kept)
        for span in graph.spans:
            self._follow(self.behind, stops, span.vertices, kept)
        return kept

    def _follow(self, side: _Side, wanted: BoolArray, span: slice, kept: Mapping[int, BoolArray]) -> None:
        """Pass on from the wanted vertices of a span to those their best edges come from, and keep these edges."""
        here = span.start + wanted[span].nonzero()[0]
        here = here[side.other[here] >= 0]
        wanted[side.other[here]] = True
        for node in np.unique(side.block[here]).tolist() if len(here) else ():
            if node in kept:
                kept[node].ravel()[side.slice[here[side.block[here] == node]]] = True
