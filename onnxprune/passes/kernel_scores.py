"""Methods at kernel granularity: each says which kernel slices stay if so many may.

Most give every slice a score, and the strongest stay: the baselines of both papers. What stays of them need not be
connected; slices that no input reaches any more, or that reach no output, are then cut too, since they do nothing (see
``on_paths``). ``lean`` ranks by chains, which mostly are connected; ``topology`` guarantees it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import ChannelMap, Contraction
from onnxprune.passes.anchored_chains import anchored_edges
from onnxprune.passes.chains import LeanOrder, descending, log_weights
from onnxprune.passes.channel_graph import EdgeMask, accessible
from onnxprune.passes.kernel_slices import Kernels
from onnxprune.passes.norms import FloatArray, frobenius_block, l1_block, operator_block
from onnxprune.passes.topology import Connected, connected_selection

__all__ = ["KERNEL_METHODS", "KernelMethod", "Magnitude", "Selection", "strongest"]


@dataclass(frozen=True)
class Selection:
    """``choose``: how many non-zero slices may stay at most, those that always stay included → the edge mask; nearly
    monotone. ``least``: how many have to."""

    choose: Callable[[int], EdgeMask]
    least: int


class KernelMethod(Protocol):
    """What selection needs of a method at kernel granularity."""

    name: ClassVar[str]

    def selection(self, kernels: Kernels) -> Selection: ...


@dataclass(frozen=True)
class _OneByOne:
    """The strongest slices stay, whatever becomes of the others. ``seed``: of ``random`` alone; ``norm_grid``: of
    ``sv`` alone (see ``operator_norms``)."""

    seed: int = 0
    norm_grid: int | None = None

    def scores(self, channel_map: ChannelMap, c: Contraction) -> FloatArray:
        """Score per kernel slice, [out, in per group]; higher is kept."""
        raise NotImplementedError

    def selection(self, kernels: Kernels) -> Selection:
        return strongest(kernels, _scored(kernels, self.scores))


def _scored(kernels: Kernels, score: Callable[[ChannelMap, Contraction], FloatArray]) -> dict[int, FloatArray]:
    """Scores of the slices that may be chosen."""
    return {c.node: score(kernels.channel_map, c) for held in kernels.free for c in held.contractions}


@dataclass(frozen=True)
class Magnitude(_OneByOne):
    """Frobenius norm, compared across layers as it is: what consistent selection is held against.

    Not as a multiple of the layer's mean, as at channel granularity: that fills quiet layers with slices that the
    network hardly notices (it lost on four of the five nets of ``benchmarks/papers.py``).
    """

    name: ClassVar[str] = "magnitude"

    def scores(self, channel_map: ChannelMap, c: Contraction) -> FloatArray:
        return frobenius_block(channel_map, c).astype(np.float64)


@dataclass(frozen=True)
class L1(_OneByOne):
    """Sum of magnitudes, compared across layers as it is: the baseline of the LEAN paper."""

    name: ClassVar[str] = "l1"

    def scores(self, channel_map: ChannelMap, c: Contraction) -> FloatArray:
        return l1_block(channel_map, c).astype(np.float64)


@dataclass(frozen=True)
class OperatorNorm(_OneByOne):
    """Largest singular value of the slice as a convolution, compared across layers as it is ("SV" in the LEAN paper)."""

    name: ClassVar[str] = "sv"

    def scores(self, channel_map: ChannelMap, c: Contraction) -> FloatArray:
        return operator_block(channel_map, c, self.norm_grid).astype(np.float64)


@dataclass(frozen=True)
class Random(_OneByOne):
    """The baseline every method must beat."""

    name: ClassVar[str] = "random"

    def scores(self, channel_map: ChannelMap, c: Contraction) -> FloatArray:
        shape = (len(c.outputs), len(c.inputs) // c.groups)
        return np.random.default_rng((self.seed, c.node)).random(shape)


def strongest(kernels: Kernels, scores: Mapping[int, FloatArray]) -> Selection:
    """Best score first; equal ones in the order of the model. A shared slice has the best of its scores."""
    entries = _Entries(kernels)
    best = [np.maximum.reduce([scores[node] for node in held.nodes])[kernels.nonzero[held.node]] for held in kernels.free]
    order = descending(np.concatenate([np.zeros(0), *best]))
    return Selection(lambda count: entries.first(order, count), kernels.fixed)


class _Entries:
    """The slices that may be chosen: those that are not zero, layer after layer, a shared one once."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        counts = [int(np.count_nonzero(kernels.nonzero[held.node])) for held in kernels.free]
        self.ends = np.cumsum([0, *counts])
        self.reads = np.repeat([len(held.nodes) for held in kernels.free], counts)

    def first(self, order: NDArray[np.int64], count: int) -> EdgeMask:
        """The mask with as many slices as may stay, in this order (entries)."""
        spent = self.kernels.fixed + np.cumsum(self.reads[order])
        taken = np.zeros(len(self.reads), np.bool_)
        taken[order[: np.searchsorted(spent, count, side="right")]] = True
        chosen = {held.node: np.zeros_like(self.kernels.nonzero[held.node]) for held in self.kernels.free}
        for held, start, end in zip(self.kernels.free, self.ends, self.ends[1:], strict=False):
            chosen[held.node][self.kernels.nonzero[held.node]] = taken[start:end]
        return self.kernels.mask(chosen)

    @cached_property
    def numbers(self) -> dict[int, NDArray[np.int64]]:
        """Node → the number of each of its slices, [out, in per group]; −1 for slices that are zero."""
        found = {}
        for held, start, end in zip(self.kernels.free, self.ends, self.ends[1:], strict=False):
            block = np.full(self.kernels.nonzero[held.node].shape, -1, np.int64)
            block[self.kernels.nonzero[held.node]] = np.arange(start, end)
            found.update(dict.fromkeys(held.nodes, block))
        return found


@dataclass(frozen=True)
class Lean:
    """Slices in the order in which LEAN takes chains of them (Schoonhoven et al. 2020), as published: a chain starts and
    ends anywhere, as long as its product is above 1; then singly, by operator norm times the gain behind it.

    Where these leave an output without any input, the order decides like a strength in ``topology``.
    """

    seed: int = 0
    norm_grid: int | None = None
    name: ClassVar[str] = "lean"

    def selection(self, kernels: Kernels) -> Selection:
        lean = LeanOrder(kernels.graph, _chain_weights(kernels, self.norm_grid))
        entries = _Entries(kernels)
        ranking: list[_Ranking] = []  # the latest: a search asks for several numbers of slices

        def select(count: int) -> EdgeMask:
            order = lean.order(count - kernels.fixed)
            if not ranking or ranking[0].order is not order:
                ranking[:] = [_Ranking(kernels, entries, lean, order)]
            return ranking[0].choose(count)

        return Selection(select, kernels.fixed)


@dataclass(frozen=True)
class _Ranking:
    """A choice by LEAN's order, as far as it is known."""

    kernels: Kernels
    entries: _Entries
    lean: LeanOrder
    order: NDArray[np.int64]

    def choose(self, count: int) -> EdgeMask:
        """The first slices, where these reach every output that can be reached; else the best by this order that do."""
        mask, spare = self.entries.first(self._entry_order, count), count - self.kernels.fixed
        if spare <= 0 or np.array_equal(self._outputs(mask), self._possible) or spare < self._problem.least:
            return mask
        return self.kernels.mask(connected_selection(self._problem, spare))

    def _outputs(self, mask: EdgeMask) -> NDArray[np.bool_]:
        return accessible(self.kernels.graph, mask)[self.kernels.graph.outputs]

    @cached_property
    def _possible(self) -> NDArray[np.bool_]:
        return self._outputs(self.kernels.nonzero)

    @cached_property
    def _entry_order(self) -> NDArray[np.int64]:
        """Entries where each comes first."""
        number = [self.entries.numbers[node].ravel() for node in self.lean.nodes]
        order = np.concatenate([np.zeros(0, np.int64), *number])[self.order]
        order = order[order >= 0]
        if len(order) == len(self.entries.reads):
            return order
        return order[np.sort(np.unique(order, return_index=True)[1])]

    @cached_property
    def _problem(self) -> Connected:
        """The earlier in the order, the stronger."""
        strength = np.empty(len(self.order))
        strength[self.order] = -np.arange(len(self.order), dtype=np.float64)
        return _connected(self.kernels, self.lean.blocks(strength))


@dataclass(frozen=True)
class AnchoredLean:
    """LEAN with chains that all run from a model input to a model output."""

    seed: int = 0
    norm_grid: int | None = None
    name: ClassVar[str] = "lean-anchored"

    def selection(self, kernels: Kernels) -> Selection:
        weights = _chain_weights(kernels, self.norm_grid)

        def select(count: int) -> EdgeMask:
            kept = anchored_edges(kernels.graph, weights, count - kernels.fixed, exceed=False)
            chosen = {held.node: np.logical_or.reduce([kept[node] for node in held.nodes]) for held in kernels.free}
            mask = kernels.mask(chosen)
            if kernels.count(mask) <= count:
                return mask
            return strongest(kernels, {node: np.where(kept[node], weights[node], -np.inf) for node in kept}).choose(count)

        return Selection(select, kernels.fixed)


def _chain_weights(kernels: Kernels, norm_grid: int | None) -> dict[int, NDArray[np.float64]]:
    """Log of operator norm times gain, −∞ for slices that are zero."""
    return log_weights(kernels.graph, _scored(kernels, partial(operator_block, grid=norm_grid)))


@dataclass(frozen=True)
class Topology:
    """Magnitude, every slice on a kept path, every output reached (after Sahbi 2022): where the strongest slices are
    connected and reach every output, it is these."""

    seed: int = 0
    norm_grid: int | None = None
    name: ClassVar[str] = "topology"

    def selection(self, kernels: Kernels) -> Selection:
        problem = _connected(kernels, _scored(kernels, Magnitude().scores))
        return Selection(
            lambda count: kernels.mask(connected_selection(problem, count - kernels.fixed)),
            kernels.fixed + problem.least,
        )


def _connected(kernels: Kernels, scores: Mapping[int, FloatArray]) -> Connected:
    """Slices that are zero are not there; those that may not be chosen stay."""
    nothing = {b.node: np.zeros(b.shape) for b in kernels.graph.blocks}
    strength = {n: np.where(kernels.nonzero[n], scores.get(n, nothing[n]), -np.inf) for n in nothing}
    leader = {node: held.node for held in kernels.free for node in held.nodes}
    return Connected(kernels.graph, strength, frozenset(set(strength) - set(leader)), leader)


KERNEL_METHODS: dict[str, Callable[[int, int | None], KernelMethod]] = {
    "lean": Lean,
    "lean-anchored": AnchoredLean,
    "topology": Topology,
    "magnitude": Magnitude,
    "l1": L1,
    "sv": OperatorNorm,
    "random": Random,
}
"""Method name → constructor from a seed and the grid of operator norms."""
