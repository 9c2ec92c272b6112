"""Topologically consistent magnitude: the strongest kernel slices such that every one lies on a kept path from a model
input to a model output, and every output that can be reached still is (after Sahbi 2022, 2023).

Three steps, each within the budget:

1. a *skeleton* of few slices that reaches every output: the path of fewest further slices, one output after another;
2. the *core* of the m strongest slices: those on a path. It only grows with m, so a bisection finds the largest that
   fits. Where so few reach some outputs only, the skeleton joins them;
3. *filling up*: the strongest slice that is not kept, completed by its widest path from an input and to an output, kept
   slices being free, as long as it is stronger than what the budget buys between channels that are connected already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxprune.passes.best_paths import BestPaths, Floats, Slice, Wiring
from onnxprune.passes.chains import descending
from onnxprune.passes.channel_graph import BoolArray, ChannelGraph, accessible, coaccessible, consistent_edges

__all__ = ["Connected", "connected_selection"]

_ROUNDS = 60  # of filling up by paths
_PATHS = 64  # completed in one round, on widths as they were at its beginning
_SCANNED = 1 << 18  # slices looked at together, strongest first


@dataclass
class Connected:
    """The choice of slices in one graph.

    ``strength``: node of a contraction → float64 [out, in per group]; −∞: there is no such slice. ``fixed``: nodes of
    which all slices stay and cost nothing. ``leader``: node → the node whose slices it shares (itself, if not listed).
    """

    graph: ChannelGraph
    strength: Mapping[int, Floats]
    fixed: frozenset[int] = frozenset()
    leader: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wiring = Wiring(self.graph)
        sharing: dict[int, list[int]] = {}
        for block in self.graph.blocks:
            if block.node not in self.fixed:
                sharing.setdefault(self.leader.get(block.node, block.node), []).append(block.node)
        self.speaker = {node: nodes[0] for nodes in sharing.values() for node in nodes}
        best = [np.maximum.reduce([self.strength[node] for node in nodes]).ravel() for nodes in sharing.values()]
        prices = [np.full(len(found), len(nodes)) for found, nodes in zip(best, sharing.values(), strict=True)]
        self.nodes = [nodes[0] for nodes in sharing.values()]
        self.starts = np.cumsum([0, *map(len, best)])[:-1]
        self.first = dict(zip(self.nodes, self.starts.tolist(), strict=True))
        self.flat = np.concatenate([np.zeros(0), *best])
        self.price = np.concatenate([np.zeros(0, np.int64), *prices])
        self._alike = bool(np.all(self.price == 1))
        there = np.flatnonzero(self.flat > -np.inf)
        self.order = there[descending(self.flat[there])]

    def mask(self, chosen: BoolArray) -> dict[int, BoolArray]:
        """The edge mask of a choice, bool [slices]."""
        found = {node: self.strength[node] > -np.inf for node in self.fixed if node in self.graph.block_of}
        for node, speaker in self.speaker.items():
            part = chosen[self.first[speaker] :][: self.strength[node].size]
            found[node] = part.reshape(self.strength[node].shape)
        return found

    def _entries(self, slices: Iterable[Slice]) -> NDArray[np.int64]:
        """Places in the flat arrays, without what is fixed."""
        free = [(self.speaker[n], o, k) for n, o, k in slices if n not in self.fixed]
        return np.array([self.first[n] + o * self.strength[n].shape[1] + k for n, o, k in free], np.int64)

    def core(self, chosen: BoolArray) -> BoolArray:
        """Those of a choice that lie on a path (bool [slices])."""
        alive = consistent_edges(self.graph, self.mask(chosen))
        found = np.zeros(len(self.flat), np.bool_)
        for node, speaker in self.speaker.items():
            found[self.first[speaker] :][: alive[node].size] |= alive[node].ravel()
        return found & chosen

    def cost(self, chosen: BoolArray) -> int:
        return int(np.count_nonzero(chosen) if self._alike else self.price[chosen].sum())

    # ---- 1: the skeleton

    @cached_property
    def skeleton(self) -> BoolArray:
        """Few slices, strong ones among equally few, that reach every output that can be reached (bool [slices])."""
        chosen = np.zeros(len(self.flat), np.bool_)
        rank = np.zeros(len(self.flat))
        rank[self.order] = np.arange(1, len(self.order) + 1) / (len(self.order) + 1) / (len(self.graph.spans) + 1)
        while True:
            price = np.where(self.flat > -np.inf, -np.where(chosen, 0.0, self.price + rank), -np.inf)
            paths = self._paths(price, 0.0, np.add)
            lengths = paths.ahead[self.graph.outputs]
            missing = self.graph.outputs[(lengths < 0) & (lengths > -np.inf)]
            if not len(missing):
                return self.core(chosen)
            near = missing[paths.ahead[missing] > -2.0]  # one more slice each: no other way is shorter
            for vertex in near if len(near) else missing[[paths.ahead[missing].argmax()]]:
                chosen[self._entries(paths.prefix(int(vertex)))] = True

    @property
    def least(self) -> int:
        """The cost of the skeleton."""
        return self.cost(self.skeleton)

    def _paths(self, flat: Floats, always: float, join: np.ufunc) -> BestPaths:
        weights = {}
        for block in self.graph.blocks:
            strength = self.strength[block.node]
            if block.node in self.fixed:
                weights[block.node] = np.where(strength > -np.inf, always, -np.inf)
            else:
                part = flat[self.first[self.speaker[block.node]] :][: strength.size]
                weights[block.node] = part.reshape(strength.shape)
        return BestPaths(self.wiring, weights, join, always)

    # ---- 2: the core

    def largest_core(self, budget: int) -> BoolArray:
        """The core of as many of the strongest slices as fit; with the skeleton, where they miss an output alone
        (bool [slices])."""
        enough = self._enough
        bare = self._core_of(enough, bare=True)
        if self.cost(bare) <= budget:
            return self._largest(budget, enough, len(self.order), bare)
        return self._largest(budget, 0, enough, self.skeleton)

    def _largest(self, budget: int, low: int, high: int, best: BoolArray) -> BoolArray:
        """Between ``low`` of the strongest slices, of which the core is ``best``, and ``high``."""
        bare = best is not self.skeleton
        while low < high:
            middle = (low + high + 1) // 2
            found = self._core_of(middle, bare)
            if self.cost(found) <= budget:
                low, best = middle, found
            else:
                high = middle - 1
        return best

    def _core_of(self, count: int, bare: bool) -> BoolArray:
        chosen = np.zeros(len(self.flat), np.bool_) if bare else self.skeleton.copy()
        chosen[self.order[:count]] = True
        return self.core(chosen)

    @cached_property
    def _enough(self) -> int:
        """How many of the strongest slices reach every output that all of them do."""
        low, high = 0, len(self.order)
        while low < high:
            middle = (low + high) // 2
            if self._reached(self.order[:middle]) == self._reached(self.order):
                high = middle
            else:
                low = middle + 1
        return low

    def _reached(self, entries: NDArray[np.int64]) -> int:
        """How many outputs these slices reach."""
        chosen = np.zeros(len(self.flat), np.bool_)
        chosen[entries] = True
        return int(np.count_nonzero(accessible(self.graph, self.mask(chosen))[self.graph.outputs]))

    # ---- 3: filling up

    def filled(self, chosen: BoolArray, budget: int) -> BoolArray:
        """More slices, with what connects them, until the budget is spent or nothing fits (bool [slices])."""
        chosen = chosen.copy()
        rest = self.core(self.flat > -np.inf) & ~chosen
        stale, joined, paths = True, chosen, None
        for connecting in (*(True,) * _ROUNDS, False):
            left = budget - self.cost(chosen)
            if left <= 0:
                break
            if stale:
                joined, paths = self._joined(chosen), None
            near, apart = self._strongest(rest, joined, left)
            if connecting and len(apart):
                paths = paths or self._paths(np.where(chosen, np.inf, self.flat), np.inf, np.minimum)
                stale = self._connect(chosen, apart, left, paths)
                rest[apart] = False
            elif len(near):
                chosen[near], stale = True, True
            else:
                break
            rest &= ~chosen
        return chosen

    def _strongest(self, rest: BoolArray, joined: BoolArray, left: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the slices that are not kept: those between connected channels that so much buys, and stronger others,
        which cost more than one slice each; the strongest first."""
        near, apart = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for start in range(0, len(self.order), _SCANNED):
            run = self.order[start : start + _SCANNED]
            run = run[rest[run]]
            near.append(run[joined[run]])
            apart.append(run[~joined[run]])
            if sum(map(len, near)) >= left:
                break
        within, beyond = np.concatenate(near), np.concatenate(apart)
        within = within[np.cumsum(self.price[within]) <= left]
        weakest = self.flat[within[-1]] if len(within) else -np.inf
        return within, beyond[self.flat[beyond] >= weakest][: _PATHS if left > 1 else 0]

    def _joined(self, chosen: BoolArray) -> BoolArray:
        """Slices between a channel that an input reaches and one that reaches an output (bool [slices])."""
        mask = self.mask(chosen)
        ahead, behind = accessible(self.graph, mask), coaccessible(self.graph, mask)
        found = np.zeros(len(self.flat), np.bool_)
        for block in self.graph.blocks:
            if block.node in self.speaker:
                outputs = behind[block.targets].reshape(block.groups, -1, 1)
                both = outputs & ahead[block.sources][:, None, :]
                found[self.first[self.speaker[block.node]] :][: both.size] |= both.ravel()
        return found

    def _connect(self, chosen: BoolArray, apart: NDArray[np.int64], left: int, paths: BestPaths) -> bool:
        """Add those of these slices that fit with what connects them, in this order; whether any did."""
        before = left
        for entry in apart.tolist():
            new = np.unique(self._way(paths, entry))
            new = new[~chosen[new]]
            price = int(self.price[new].sum())
            if price <= left:
                chosen[new] = True
                left -= price
        return left < before

    def _way(self, paths: BestPaths, entry: int) -> NDArray[np.int64]:
        """A slice with the widest paths to it and from it. A shared slice lies where its widest path is."""
        speaker = self.nodes[int(np.searchsorted(self.starts, entry, "right")) - 1]
        out, k = divmod(entry - self.first[speaker], self.strength[speaker].shape[1])
        found = []
        for node in (node for node, other in self.speaker.items() if other == speaker):
            block = self.graph.block_of[node]
            source = int(block.sources[out * block.groups // len(block.targets), k])
            target = int(block.targets[out])
            width = min(paths.ahead[source], paths.behind[target])
            found.append((width, -node, source, target))
        width, node, source, target = max(found)
        assert width > -np.inf, "only slices on some path are asked for"
        return self._entries([*paths.prefix(source), (-node, out, k), *paths.suffix(target)])


def connected_selection(problem: Connected, budget: int) -> dict[int, BoolArray]:
    """The edge mask of the strongest slices that cost at most ``budget``, all on kept paths, all outputs reached.

    Requires a budget of at least ``problem.least``.
    """
    return problem.mask(problem.filled(problem.largest_core(budget), budget))
