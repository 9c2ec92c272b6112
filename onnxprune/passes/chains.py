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
at the first edge whose weight, even with the best source there is, cannot win. Large graphs are searched by
``onnxprune.passes.compiled_search`` where numba can be loaded, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.passes.anchored_chains import anchored_edges
from onnxprune.passes.chain_stages import BlockStage, Chain, Floats, LinkStage, Stages, stages_of
from onnxprune.passes.channel_graph import BoolArray, ChannelGraph, Vertices, consistent_edges

__all__ = ["Chain", "LeanOrder", "NumpySearch", "chains", "descending", "lean_edges", "lean_mask", "log_weights"]

_COMPILED_FROM = 100_000  # kernel slices; numba takes seconds to compile once, and part of one to load


def log_weights(graph: ChannelGraph, norms: Mapping[int, NDArray[np.floating]]) -> dict[int, Floats]:
    """Log weights of kernel slices: their norm [out, in per group] times the gain behind them."""
    with np.errstate(divide="ignore"):
        logs = {node: np.log(np.asarray(norm, np.float64)) for node, norm in norms.items() if node in graph.block_of}
    return {node: log + graph.block_of[node].gain[:, None] for node, log in logs.items()}


def chains(graph: ChannelGraph, weights: Mapping[int, Floats]) -> Iterator[Chain]:
    """The paths that LEAN takes, one after another, while there is one whose product is above 1."""
    search = _search(stages_of(graph, weights), sum(weight.size for weight in weights.values()))
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


class LeanOrder:
    """The order in which LEAN takes kernel slices: path after path, each from its start to its end, then singly by
    weight; slices without a weight (−∞) come last, as stored. Paths are only looked for as far as they are asked for.

    Slices are numbered layer after layer (nodes in order), in each as stored.
    """

    def __init__(self, graph: ChannelGraph, weights: Mapping[int, Floats]) -> None:
        self.graph, self.weights = graph, weights
        self.nodes = sorted(weights)
        self.starts = np.cumsum([0, *(weights[node].size for node in self.nodes)])
        self._start = dict(zip(self.nodes, self.starts.tolist(), strict=False))
        self._on_paths: list[int] = []
        self._order: Vertices | None = None

    @cached_property
    def _paths(self) -> Iterator[Chain]:
        return chains(self.graph, self.weights)

    @cached_property
    def _singly(self) -> Vertices:
        every = np.concatenate([np.zeros(0), *(self.weights[node].ravel() for node in self.nodes)])
        return descending(every)

    def order(self, upto: int) -> Vertices:
        """All slices, in order; beyond the first ``upto`` (or as many as were asked for before), by weight alone.

        The very same array as before, where no more paths were looked for.
        """
        while len(self._on_paths) < upto and (chain := next(self._paths, None)) is not None:
            for node, out, i in chain.slices:
                self._on_paths.append(self._start[node] + out * self.weights[node].shape[1] + i)
            self._order = None
        if self._order is None:
            self._order = self._ordered()
        return self._order

    def _ordered(self) -> Vertices:
        first = np.array(self._on_paths, np.int64)
        taken = np.zeros(int(self.starts[-1]), np.bool_)
        taken[first] = True
        return np.concatenate([first, self._singly[~taken[self._singly]]])

    def blocks(self, values: NDArray[Any]) -> dict[int, NDArray[Any]]:
        """A value for every slice → node of each layer → its values, [out, in per group]."""
        parts = np.split(values, self.starts[1:-1]) if self.nodes else []
        return {node: part.reshape(self.weights[node].shape) for node, part in zip(self.nodes, parts, strict=True)}


def descending(values: NDArray[np.floating]) -> Vertices:
    """The order that sorts values from large to small, equal ones by place; faster than a stable sort."""
    order = np.argsort(-values)
    equal = np.append(values[order[1:]] == values[order[:-1]], False)
    tied = np.flatnonzero(equal | np.roll(equal, 1))
    order[tied] = order[tied][np.lexsort((order[tied], -values[order[tied]]))]
    return order


def _flat(weights: Mapping[int, Floats], kept: Mapping[int, BoolArray]) -> tuple[Floats, Vertices]:
    """Weights of all slices not yet kept (else −∞), layer after layer, and where each layer begins, and the end."""
    flat = [np.where(kept[node], -np.inf, weights[node]).ravel() for node in sorted(weights)]
    return np.concatenate([np.zeros(0), *flat]), np.cumsum([0, *(len(part) for part in flat)])


def _keep_singly(weights: Mapping[int, Floats], kept: dict[int, BoolArray], count: int) -> None:
    """Keep so many more slices, by weight."""
    every, bounds = _flat(weights, kept)
    best = np.argsort(-every, kind="stable")[: max(count, 0)]
    best = best[every[best] > -np.inf]
    for node, low, high in zip(sorted(weights), bounds[:-1], bounds[1:], strict=True):
        kept[node].ravel()[best[(best >= low) & (best < high)] - low] = True


def _search(found: Stages, slices: int) -> Search:
    """Compiled where that pays and numba works here; the paths are the same."""
    if slices < _COMPILED_FROM:
        return NumpySearch(found)
    try:
        from onnxprune.passes.compiled_search import CompiledSearch
    except (ImportError, OSError):  # not installed, not for this numpy; its library cannot be loaded
        return NumpySearch(found)
    return CompiledSearch(found)


class Search(Protocol):
    """Takes one path after another."""

    def take(self) -> Chain | None: ...


class NumpySearch:
    """Distances of all nodes, kept exact as edges leave."""

    def __init__(self, found: Stages) -> None:
        self.found = found
        self.distance = np.full(found.size, -np.inf)
        self.column = np.zeros(found.size, np.int64)  # place of the best in-edge in its row
        self.before = np.zeros(found.size, np.int64)  # its source
        self.changed = np.zeros(found.size, np.bool_)
        self.stage = [0] * found.size
        self.rows = [_Rows(self, number) for number in range(len(found.stages))]
        for number, rows in enumerate(self.rows):
            self.stage[rows.low : rows.high] = [number] * (rows.high - rows.low)
            rows.evaluate(np.arange(rows.high - rows.low))
        self.changed[:] = False

    def take(self) -> Chain | None:
        """The best path, whose edges leave; None where no product is above 1."""
        score = self.distance + self.found.bonus
        end = int(score.argmax())
        value = score.item(end)
        if value <= 0:
            return None
        lost, slices = self._remove_path(end)
        self._update(lost)
        return Chain(value, slices)

    def _remove_path(self, node: int) -> tuple[dict[int, int], tuple[tuple[int, int, int], ...]]:
        """Take the slices of the best path to a node out; stage → row that lost its best edge, and the slices."""
        lost: dict[int, int] = {}
        slices = []
        stages, distance = self.found.stages, self.distance
        starts = False
        while not starts:
            number = self.stage[node]
            stage, source = stages[number], self.before.item(node)
            if isinstance(stage, BlockStage):
                row, column = node - stage.low, self.column.item(node)
                place = stage.order.item(row, column)
                slices.append((stage.block.node, row, place % stage.block.shape[1]))
                stage.remove(row, column)
                lost[number] = row
                starts = distance.item(source) + stage.offset.item(place) <= 0
            node = source
        return lost, tuple(slices[::-1])

    def _update(self, lost: dict[int, int]) -> None:
        """Evaluate again what depends on the edges that left."""
        pending = [False] * len(self.rows)
        for number in lost:
            pending[number] = True
        readers, changed = self.found.readers, self.changed
        for number in range(min(lost), len(pending)):
            if not pending[number]:
                continue
            rows = self.rows[number]
            stale = changed.take(rows.before)
            if number in lost:
                stale[lost[number]] = True
            found = stale.nonzero()[0]
            if len(found) and rows.evaluate(found):
                for reader in readers[number]:
                    pending[reader] = True
        changed[:] = False


class _Rows:
    """The rows of a stage, with views of what a search knows of its nodes."""

    def __init__(self, search: NumpySearch, number: int) -> None:
        self.stage = search.found.stages[number]
        self.low = self.stage.low
        self.high = self.low + self.stage.rows
        own = slice(self.low, self.high)
        self.every = search.distance
        self.distance, self.changed = search.distance[own], search.changed[own]
        self.column, self.before = search.column[own], search.before[own]
        self.ahead = np.empty(self.stage.source.shape)

    def evaluate(self, rows: Vertices) -> bool:
        """Distances of these rows anew; whether any changed."""
        stage = self.stage
        best, column, before = self._slices(stage, rows) if isinstance(stage, BlockStage) else self._links(stage, rows)
        differs = best != self.distance.take(rows)
        self.column[rows] = column
        self.before[rows] = before
        if not differs.any():
            return False
        self.distance[rows] = best
        self.changed[rows] = differs
        return True

    def _links(self, stage: LinkStage, rows: Vertices) -> tuple[Floats, Vertices, Vertices]:
        sources = stage.source[rows]
        sums = self.every.take(sources) + stage.weight[rows]
        column = sums.argmax(axis=1)
        every = np.arange(len(rows))
        return sums[every, column], column, sources[every, column]

    def _slices(self, stage: BlockStage, rows: Vertices) -> tuple[Floats, Vertices, Vertices]:
        ahead = self.ahead
        self.every.take(stage.source, out=ahead, mode="clip")
        ahead += stage.offset
        np.maximum(ahead, 0.0, out=ahead)
        order = stage.head_order.take(rows, axis=0)
        sums = ahead.take(order)
        sums += stage.head_weight.take(rows, axis=0)
        column = sums.argmax(axis=1)
        first = np.arange(0, sums.size, sums.shape[1])
        first += column
        best, place = sums.take(first), order.take(first)
        unsure = (stage.beyond.take(rows) + ahead.max() >= best).nonzero()[0]
        if len(unsure):
            full = stage.order[rows[unsure]]
            wide = ahead[full] + stage.weight[rows[unsure], :-1]
            column[unsure] = far = wide.argmax(axis=1)
            every = np.arange(len(unsure))
            best[unsure], place[unsure] = wide[every, far], full[every, far]
        return best, column, stage.source.take(place)
