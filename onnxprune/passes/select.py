"""Selection: which groups are kept, from a score per group and a budget.

Groups fall into *families*: groups that appear along exactly the same axes of the same constants, such as all channels
between two convolutions. A family's groups are interchangeable in cost, so a selection is the number kept of each
family, and the best-scored ones are kept. One global threshold on the score decides these numbers, moved to the nearest
width that the target runs well (or all up, or all down, where that fills the budget better); a bisection finds the
lowest threshold whose cost fits the budget; then single steps are added while they still fit.

What stays is topologically consistent: every contraction of a kept output keeps an input, and groups that are on no
path from an input to an output any more are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.alignment import Alignment, Reader
from onnxprune.channels import ChannelMap
from onnxprune.passes.cost import Cost, Tally
from onnxprune.passes.families import families
from onnxprune.passes.flow import Blocks, flow
from onnxprune.passes.norms import FloatArray

__all__ = ["Selection", "consistent", "reachable", "reachable_each", "round_up", "select"]

_FULL = 0.98  # share of the budget from which on it counts as filled
_ROUNDINGS = (0.5, 0.0, 1.0)  # to the nearest good width, else up, else down
_ROUNDS = 4  # times the budget that dead groups free is given out again

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """``keep``: bool [groups]; its ``cost``, the ``budget`` it had to fit, and the cost of the ``whole`` model.

    Where it does not fit, the budget cannot be met; ``keep`` is then the least that can be kept.
    """

    keep: BoolArray
    cost: float
    budget: float
    whole: float

    @property
    def fits(self) -> bool:
        """Whether the budget is met."""
        return _fits(self.cost, self.budget)


def _fits(cost: float, budget: float) -> bool:
    """2 of 10 is a share of 0.8 less, though 1 − 0.8 is a little less than 0.2 as a binary number."""
    return cost <= budget * (1 + 1e-12)


class _Search:
    """The kept groups as a function of a threshold on the score."""

    def __init__(
        self, channel_map: ChannelMap, scores: FloatArray, alignment: Alignment, dead: BoolArray | None = None
    ) -> None:
        self.map = channel_map
        self.banned = np.zeros(channel_map.groups, np.bool_) if dead is None else dead.copy()
        free = channel_map.free[(scores[channel_map.free] < np.inf) & ~self.banned[channel_map.free]]
        family = families(channel_map)
        # Best first within each family; ties by group number, so that the result does not depend on sorting.
        order = np.lexsort((free, -scores[free], family[free]))
        self.groups = free[order]
        self.scores = scores[self.groups]
        _, self.starts, self.sizes = np.unique(family[self.groups], return_index=True, return_counts=True)
        self.rank = np.arange(len(self.groups)) - np.repeat(self.starts, self.sizes)
        self.at_least = self._at_least(scores, family)
        repeats = self._repeats()
        readers = self._readers(family)
        self.widths = [
            alignment.widths(int(n), int(r), reader) for n, r, reader in zip(self.sizes, repeats, readers, strict=True)
        ]
        self.steps = _Steps(self.widths)

    def _at_least(self, scores: FloatArray, family: IntArray) -> IntArray:
        """1 for families that hold the best-scored input of a contraction that has no input which always stays."""
        needed = np.zeros(len(self.starts), np.int64)
        index = {int(f): i for i, f in enumerate(family[self.groups[self.starts]])} if len(self.starts) else {}
        searched = np.zeros(self.map.groups, np.bool_)
        searched[self.groups] = True
        for _, inputs in self.map.needs:
            inputs = inputs[~self.banned[inputs]]
            if len(inputs) and np.all(searched[inputs]):
                best = inputs[np.lexsort((inputs, -scores[inputs]))[0]]
                needed[index[int(family[best])]] = 1
        return needed

    def _repeats(self) -> IntArray:
        """How often a group of each family appears along an axis of a constant, at least."""
        least = np.full(self.map.groups, np.iinfo(np.int64).max)
        for axes in self.map.uses.values():
            for ids in axes:
                if ids is not None:
                    groups, counts = np.unique(ids, return_counts=True)
                    least[groups] = np.minimum(least[groups], counts)
        return least[self.groups[self.starts]] if len(self.starts) else np.zeros(0, np.int64)

    def _readers(self, family: IntArray) -> list[Reader]:
        """Who reads the channels of each family."""
        read: dict[int, set[Reader]] = {}
        for c in self.map.contractions:
            node = self.map.graph.nodes[c.node]
            kernel = self.map.shapes.of.get(node.input[c.weight], ())[2:]
            dense: Reader = "dense" if c.groups == 1 and kernel and min(kernel) >= 3 else "any"
            reader: Reader = "matrix" if node.op_type in ("Gemm", "MatMul") else dense
            for f in np.unique(family[c.inputs]).tolist():
                read.setdefault(f, set()).add(reader)
        found = [read.get(int(f), set()) for f in family[self.groups[self.starts]]] if len(self.starts) else []
        return [next(iter(readers)) if len(readers) == 1 else "any" for readers in found]

    def counts(self, threshold: float, rounding: float) -> IntArray:
        """Kept per family: those that score at least the threshold, moved to a good width (see ``_Steps``)."""
        if not len(self.starts):
            return np.zeros(0, np.int64)
        raw = np.add.reduceat((self.scores >= threshold).astype(np.int64), self.starts)
        return np.maximum(self.steps.rounded(raw, rounding), self.at_least)

    def between(self, family: int, low: int, high: int) -> IntArray:
        """The groups by which a family of ``high`` kept ones differs from one of ``low``."""
        start = self.starts[family]
        groups = self.groups[start + low : start + high]
        return groups[~self.banned[groups]]

    def keep(self, counts: IntArray) -> BoolArray:
        kept = np.ones(self.map.groups, np.bool_)
        kept[self.groups] = self.rank < np.repeat(counts, self.sizes)
        return kept & ~self.banned


class _Steps:
    """The good widths of all families in one array, to look up one in each family at once."""

    def __init__(self, widths: Sequence[IntArray]) -> None:
        self.all = np.concatenate([np.zeros(0, np.int64), *widths])
        lengths = np.array([len(each) for each in widths], np.int64)
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths
        self.apart = int(self.all.max(initial=0)) + 1
        self.keys = self.all + np.repeat(np.arange(len(widths)), lengths) * self.apart

    def rounded(self, counts: IntArray, rounding: float) -> IntArray:
        """A good width beside each count (int [families]): the upper one beyond ``rounding`` (0..1) of the way from
        the lower to the upper."""
        above = np.searchsorted(self.keys, counts + np.arange(len(counts)) * self.apart)
        above = np.minimum(above, self.ends - 1)
        low, high = self.all[np.maximum(above - 1, self.starts)], self.all[above]
        up = (counts <= low) | (counts >= high) | (counts - low > rounding * (high - low))
        return np.where(up, high, low)


def consistent(channel_map: ChannelMap, blocks: Blocks, keep: BoolArray, scores: FloatArray) -> BoolArray:
    """Drop groups that are on no path from an input to an output; where that would leave a contraction of a kept
    output without any input (all its weights are zero), its best-scored input stays."""
    alive = flow(channel_map, blocks, keep).alive
    kept = keep & (alive | channel_map.frozen)
    missing = True
    while missing:  # a channel that is given back may be coupled with one whose turn is over
        missing = False
        for outputs, inputs in reversed(channel_map.needs):
            if len(inputs) and np.any(kept[outputs]) and not np.any(kept[inputs]):
                kept[inputs[np.lexsort((inputs, -scores[inputs]))[0]]] = missing = True
    return kept


Name = TypeVar("Name", bound=str)


def reachable(channel_map: ChannelMap, cost: Cost) -> float:
    """The largest share (0..1) of a cost that can be removed with every output still reached."""
    return reachable_each(channel_map, {"": cost})[""]


def reachable_each(channel_map: ChannelMap, costs: Mapping[Name, Cost]) -> dict[Name, float]:
    """``reachable`` for several costs, for the work of one."""
    everything, least = np.ones(channel_map.groups, np.bool_), _least(channel_map)
    whole = {name: cost(everything) for name, cost in costs.items()}
    return {name: 1 - cost(least) / whole[name] if whole[name] else 0.0 for name, cost in costs.items()}


def _least(channel_map: ChannelMap) -> BoolArray:
    """As little as can be kept, whatever the scores (bool [groups])."""
    scores = np.zeros(channel_map.groups)
    search = _Search(channel_map, scores, Alignment(1))
    return consistent(channel_map, {}, search.keep(search.at_least), scores)


def select(
    channel_map: ChannelMap,
    scores: FloatArray,
    cost: Cost,
    sparsity: float,
    alignment: Alignment,
    blocks: Blocks | None = None,
    dead: BoolArray | None = None,
) -> Selection:
    """The best-scored groups whose cost is at most (1 − sparsity) of the whole.

    ``blocks``: which kernel slices are not zero (see ``flow``); without them, all are taken to carry a signal.
    ``dead``: bool [groups], groups that leave in any case.
    """
    search = _Search(channel_map, scores, alignment, dead)
    total = cost(np.ones(channel_map.groups, np.bool_))
    budget = (1 - sparsity) * total
    least = consistent(channel_map, blocks or {}, search.keep(search.at_least), scores)
    if not _fits(cost(least), budget):
        least = min(least, _least(channel_map), key=cost)
        return Selection(least, cost(least), budget, total)
    keep = least
    for _ in range(_ROUNDS):
        found = search.keep(_counts(search, cost, budget))
        keep = consistent(channel_map, blocks or {}, found, scores)
        if np.array_equal(keep, found):
            break
        search.banned |= found & ~keep  # what is dead frees budget for what is not
    best = keep if cost(keep) <= budget else least
    return Selection(best, cost(best), budget, total)


def round_up(channel_map: ChannelMap, keep: BoolArray, alignment: Alignment) -> BoolArray:
    """Keep more groups of a family until its width is one that is not slower than a wider one (bool [groups])."""
    search = _Search(channel_map, keep.astype(np.float64), Alignment(alignment.safe))
    counts = (
        np.add.reduceat(keep[search.groups].astype(np.int64), search.starts) if len(search.starts) else search.at_least
    )
    wanted = [int(w[np.searchsorted(w, k)]) for w, k in zip(search.widths, counts, strict=True)]
    return search.keep(np.array(wanted, np.int64)) | keep


def _counts(search: _Search, cost: Cost, budget: float) -> IntArray:
    """Counts that fill the budget best. Where steps are coarse, rounding one way may leave much of it unused."""
    best, most = search.at_least, -np.inf
    for rounding in _ROUNDINGS:
        below, above = _bisect(search, cost, budget, rounding)
        for start in (below, _one_step_less(search, cost, budget, above)):
            counts = _fill(search, cost, budget, start)
            spent = cost(search.keep(counts))
            if most < spent <= budget:
                best, most = counts, spent
            if spent >= _FULL * budget:
                return best
    return best


def _one_step_less(search: _Search, cost: Cost, budget: float, counts: IntArray) -> IntArray:
    """Counts that are just beyond the budget, less the one step that fits it best; the least there is if none does."""
    best, most = None, -np.inf
    tally = Tally(cost, search.keep(counts))
    for family in np.flatnonzero(counts > search.at_least).tolist():
        fewer = _below(search, family, counts[family])
        spent = tally.without(search.between(family, fewer, counts[family]))
        if most < spent <= budget:
            best, most = family, spent
    if best is None:
        return search.at_least
    found = counts.copy()
    found[best] = _below(search, best, counts[best])
    return found


def _below(search: _Search, family: int, count: int) -> int:
    """The good width below a count."""
    widths = search.widths[family]
    return max(int(widths[np.searchsorted(widths, count) - 1]), int(search.at_least[family]))


def _bisect(search: _Search, cost: Cost, budget: float, rounding: float) -> tuple[IntArray, IntArray]:
    """Counts at the lowest threshold that fits, and at the one before it; cost falls as the threshold rises."""
    thresholds = np.append(np.unique(search.scores), np.inf)
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        if cost(search.keep(search.counts(thresholds[middle], rounding))) <= budget:
            high = middle
        else:
            low = middle + 1
    counts = search.counts(thresholds[low], rounding)
    fitting = counts if cost(search.keep(counts)) <= budget else search.at_least
    return fitting, search.counts(thresholds[max(low - 1, 0)], rounding)


def _fill(search: _Search, cost: Cost, budget: float, counts: IntArray) -> IntArray:
    """Add steps, best score first, while they fit."""
    counts, tally = counts.copy(), Tally(cost, search.keep(counts))

    def step(family: int) -> tuple[float, int]:
        return -float(search.scores[search.starts[family] + counts[family]]), family

    steps = [step(family) for family in np.flatnonzero(counts < search.sizes).tolist()]
    heapify(steps)
    while steps:
        family = heappop(steps)[1]
        widths = search.widths[family]
        wider = int(widths[np.searchsorted(widths, counts[family], side="right")])
        if tally.add(search.between(family, counts[family], wider), budget):
            counts[family] = wider
            if wider < search.sizes[family]:
                heappush(steps, step(family))
    return counts
