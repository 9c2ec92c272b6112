"""LEAN's selection: take the strongest path, keep its edges, remove them from the graph, repeat.

Schoonhoven et al. 2020 (arXiv 2011.06751), section 3.3, as their code does it. With weights w of kernel slices (norm
times the gain that follows), the best path that ends in v has the value

    dist(v) = max over u of max(1, dist(u)) · w(u, v)          for kernel slices
    dist(v) = max over u of dist(u) · gain(u, v)               for links, which are travelled but never taken

so a path starts and ends at a kernel slice, anywhere; only what lies behind its last slice may add a gain. While some
path has a product above 1, the one with the largest is taken: its slices are kept and leave the graph. Then slices are
taken singly, by weight. In logarithms (float64) all of this is sums, and the comparison is with 0.

Ties: among path ends with equal value the one with the lowest number; among in-edges with equal sums the one of larger
weight, then the one stored first; a path begins as late as it can. Single slices with equal weight: by node, then as
stored. The result does not depend on how the search proceeds.

Removing edges only lowers distances, and a distance changes only if the edge that gave it left or its source changed.
So after each path the stages are passed once in topological order, and only such rows are evaluated again; a row stops
at the first edge whose weight, even with the best source there is, cannot win.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.passes.anchored_chains import anchored_edges
from onnxprune.passes.chain_stages import BlockStage, Floats, LinkStage, Stages, stages_of
from onnxprune.passes.channel_graph import BoolArray, ChannelGraph, Vertices, consistent_edges

__all__ = ["Chain", "chains", "lean_edges", "lean_mask", "log_weights"]

_HEAD = 12  # edges of a row that are looked at first


@dataclass(frozen=True)
class Chain:
    """A path: the logarithm of its product, and its kernel slices from its start to its end as (node of the
    contraction, output, input within the group)."""

    value: float
    slices: tuple[tuple[int, int, int], ...]


def log_weights(graph: ChannelGraph, norms: Mapping[int, NDArray[np.floating]]) -> dict[int, Floats]:
    """Log weights of kernel slices: their norm [out, in per group] times the gain behind them."""
    with np.errstate(divide="ignore"):
        logs = {node: np.log(np.asarray(norm, np.float64)) for node, norm in norms.items() if node in graph.block_of}
    return {node: log + graph.block_of[node].gain[:, None] for node, log in logs.items()}


def chains(graph: ChannelGraph, weights: Mapping[int, Floats]) -> Iterator[Chain]:
    """The paths that LEAN takes, one after another, while there is one whose product is above 1."""
    search = _Search(stages_of(graph, weights))
    while (chain := search.take()) is not None:
        yield chain


def lean_mask(graph: ChannelGraph, norms: Mapping[int, NDArray[np.floating]], keep: int, *, anchored: bool = False,
              exceed: bool = True) -> dict[int, BoolArray]:  # fmt: skip
    """The kernel slices that LEAN keeps, without those that no longer lie between a model input and a model output.

    Args:
        graph: the channel graph.
        norms: node of a contraction → norms of its slices, [out, in per group]; 0 for slices that are gone already.
            Layers that are not listed are left alone.
        keep: how many slices to take, before those that came out dead are dropped.
        anchored: take only paths from a model input to a model output (``onnxprune.passes.anchored_chains``).
        exceed: the path that reaches ``keep`` is kept whole; False leaves it out.

    Returns: node of each listed layer → bool [out, in per group].
    """
    choose = anchored_edges if anchored else lean_edges
    found = choose(graph, log_weights(graph, norms), keep, exceed=exceed)
    alive = consistent_edges(graph, found)
    return {node: alive[node] for node in found}


def lean_edges(graph: ChannelGraph, weights: Mapping[int, Floats], keep: int, *,
               exceed: bool = True) -> dict[int, BoolArray]:  # fmt: skip
    """LEAN's choice of at least ``keep`` kernel slices (a path is kept whole), if there are as many with a weight.

    Args:
        graph: the channel graph.
        weights: see ``log_weights``; −∞ for slices that are gone already. Layers that are not listed are left alone:
            paths run through them at no cost, from every input to every output.
        keep: how many to keep.
        exceed: the path that reaches ``keep`` is kept whole; False takes single slices in its place.

    Returns: node of each listed layer → bool [out, in per group].
    """
    kept = {node: np.zeros(weight.shape, np.bool_) for node, weight in weights.items()}
    count = 0
    for chain in chains(graph, weights) if keep > 0 else ():
        if not exceed and count + len(chain.slices) > keep:
            break
        for node, out, i in chain.slices:
            kept[node][out, i] = True
        count += len(chain.slices)
        if count >= keep:
            return kept
    _keep_singly(weights, kept, keep - count)
    return kept


def _keep_singly(weights: Mapping[int, Floats], kept: dict[int, BoolArray], count: int) -> None:
    """Keep so many more slices, by weight."""
    nodes = sorted(weights)
    flat = [np.where(kept[node], -np.inf, weights[node]).ravel() for node in nodes]
    every = np.concatenate([np.zeros(0), *flat])
    best = np.argsort(-every, kind="stable")[: max(count, 0)]
    best = best[every[best] > -np.inf]
    bounds = np.cumsum([0, *(len(part) for part in flat)])
    for node, low, high in zip(nodes, bounds[:-1], bounds[1:], strict=True):
        kept[node].ravel()[best[(best >= low) & (best < high)] - low] = True


class _Search:
    """Distances of all nodes, kept exact as edges leave."""

    def __init__(self, found: Stages) -> None:
        self.found = found
        self.distance = np.full(found.size, -np.inf)
        self.column = np.zeros(found.size, np.int64)  # place of the best in-edge in its row
        self.before = np.zeros(found.size, np.int64)  # its source
        self.changed = np.zeros(found.size, np.bool_)
        self.stage = np.zeros(found.size, np.int64)
        for number, stage in enumerate(found.stages):
            self.stage[stage.low : stage.low + stage.rows] = number
            self._evaluate(number, np.arange(stage.rows))
        self.changed[:] = False

    def take(self) -> Chain | None:
        """The best path, whose edges leave; None where no product is above 1."""
        score = self.distance + self.found.bonus
        end = int(score.argmax())
        if score[end] <= 0:
            return None
        path = self._path(end)
        chain = Chain(float(score[end]), tuple(self._slice(node) for node in path))
        for node in path:
            self._remove(node)
        self._update(path)
        return chain

    def _path(self, end: int) -> list[int]:
        """The nodes whose best in-edge is a slice of the best path to a node, from its start on."""
        path, node = [], end
        while True:
            stage = self.found.stages[self.stage[node]]
            source = int(self.before[node])
            if isinstance(stage, BlockStage):
                path.append(node)
                place = stage.order[node - stage.low, self.column[node]]
                if self.distance[source] + stage.offset[place] <= 0:
                    return path[::-1]
            node = source

    def _slice(self, node: int) -> tuple[int, int, int]:
        stage = self.found.stages[self.stage[node]]
        assert isinstance(stage, BlockStage)
        row = node - stage.low
        return stage.block.node, row, int(stage.order[row, self.column[node]]) % stage.block.shape[1]

    def _remove(self, node: int) -> None:
        """The best in-edge of a node leaves its row."""
        stage = self.found.stages[self.stage[node]]
        assert isinstance(stage, BlockStage)
        row, column = node - stage.low, int(self.column[node])
        stage.order[row, column:-1] = stage.order[row, column + 1 :]
        stage.weight[row, column:-1] = stage.weight[row, column + 1 :]

    def _update(self, path: list[int]) -> None:
        """Evaluate again what depends on the edges that left."""
        lost = {int(self.stage[node]): node for node in path}
        pending = [False] * len(self.found.stages)
        for number in lost:
            pending[number] = True
        for number in range(min(lost), len(pending)):
            if not pending[number]:
                continue
            stage = self.found.stages[number]
            high = stage.low + stage.rows
            stale = self.changed[self.before[stage.low : high]]
            if number in lost:
                stale[lost[number] - stage.low] = True
            rows = stale.nonzero()[0]
            if len(rows) and self._evaluate(number, rows):
                for reader in self.found.readers[number]:
                    pending[reader] = True
        self.changed[:] = False

    def _evaluate(self, number: int, rows: Vertices) -> bool:
        """Distances of these rows of a stage; whether any changed."""
        stage = self.found.stages[number]
        if isinstance(stage, LinkStage):
            best, column, before = self._links(stage, rows)
        else:
            best, column, before = self._slices(stage, rows)
        nodes = rows + stage.low
        differs = best != self.distance[nodes]
        self.column[nodes] = column
        self.before[nodes] = before
        self.distance[nodes] = best
        self.changed[nodes] = differs
        return bool(differs.any())

    def _links(self, stage: LinkStage, rows: Vertices) -> tuple[Floats, Vertices, Vertices]:
        sources = stage.source[rows]
        sums = self.distance[sources] + stage.weight[rows]
        column = sums.argmax(axis=1)
        every = np.arange(len(rows))
        return sums[every, column], column, sources[every, column]

    def _slices(self, stage: BlockStage, rows: Vertices) -> tuple[Floats, Vertices, Vertices]:
        ahead = self.distance[stage.source] + stage.offset
        np.maximum(ahead, 0.0, out=ahead)
        order, weight = stage.order[rows, :_HEAD], stage.weight[rows, : _HEAD + 1]
        width = order.shape[1]
        sums = ahead[order] + weight[:, :width]
        column = sums.argmax(axis=1)
        every = np.arange(len(rows))
        best = sums[every, column]
        if width < stage.order.shape[1]:
            unsure = (weight[:, width] + ahead.max() >= best).nonzero()[0]
            if len(unsure):
                full = ahead[stage.order[rows[unsure]]] + stage.weight[rows[unsure], :-1]
                column[unsure] = full.argmax(axis=1)
                best[unsure] = full[np.arange(len(unsure)), column[unsure]]
        return best, column, stage.source[stage.order[rows, column]]
