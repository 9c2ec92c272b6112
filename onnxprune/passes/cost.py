"""What a selection costs: stored weights, multiply-accumulates or kernel slices, as a function of the groups kept.

Every cost is Σ coefficient · Π (kept channels along an axis), because constants are sliced axis by axis. One
``reduceat`` counts the kept channels of all axes at once, so that a search may evaluate it often.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import ChannelMap, Term
from onnxprune.measure import count_weights, is_weight

__all__ = ["MEASURES", "Cost", "Measure", "Tally", "cost_of"]

Measure = Literal["weights", "macs", "kernels"]
FloatArray = NDArray[np.float64]
MEASURES: tuple[Measure, ...] = ("weights", "macs", "kernels")


class Cost:
    """Σ of terms plus a constant part."""

    def __init__(self, terms: Sequence[Term], fixed: float) -> None:
        self.fixed = fixed + sum(t.coefficient for t in terms if not t.axes)
        labelled = [t for t in terms if t.axes]
        self.coefficients = np.array([t.coefficient for t in labelled])
        vectors = [ids for t in labelled for ids in t.axes]
        self.ids = np.concatenate([np.zeros(0, np.int32), *vectors])
        self.starts = np.cumsum([0, *(len(ids) for ids in vectors)])[:-1]
        self.terms = np.cumsum([0, *(len(t.axes) for t in labelled)])[:-1]

    def __call__(self, keep: NDArray[np.bool_]) -> float:
        """The cost of keeping these groups (bool [groups])."""
        if not len(self.coefficients):
            return self.fixed
        counts = np.add.reduceat(keep[self.ids].astype(np.float64), self.starts)
        return self.fixed + float(np.dot(self.coefficients, np.multiply.reduceat(counts, self.terms)))


class Tally:
    """The cost of a selection that changes by a few groups at a time, looked at only where these are."""

    def __init__(self, cost: Cost, keep: NDArray[np.bool_]) -> None:
        self.cost, self.total = cost, cost(keep)
        axes = np.repeat(np.arange(len(cost.starts)), np.diff([*cost.starts, len(cost.ids)]))
        order = np.argsort(cost.ids, kind="stable")
        self._axes = axes[order]
        self._bounds = np.searchsorted(cost.ids[order], np.arange(len(keep) + 1))
        kept = np.bincount(axes, keep[cost.ids], len(cost.starts))
        self._kept: FloatArray = np.append(kept, 1.0)  # stands for the axes that a term has less than others
        lengths = np.diff([*cost.terms, len(cost.starts)])
        self._term = np.repeat(np.arange(len(lengths)), lengths)
        self._factors = np.full((len(lengths), lengths.max(initial=0)), len(cost.starts))
        self._factors[self._term, np.arange(len(self._term)) - np.repeat(cost.terms, lengths)] = np.arange(len(self._term))

    def without(self, groups: NDArray[np.integer]) -> float:
        """The cost without these groups, which are in the selection; it stays as it is."""
        return self.total + self._change(groups, -1.0)[0]

    def add(self, groups: NDArray[np.integer], budget: float) -> bool:
        """Add groups that are not in the selection, if its cost stays within a budget. Returns whether it does."""
        change, axes, counts = self._change(groups, 1.0)
        if self.total + change > budget:
            return False
        self.total += change
        self._kept[axes] += counts
        return True

    def _change(self, groups: NDArray[np.integer], sign: float) -> tuple[float, NDArray[np.int64], NDArray[np.int64]]:
        """What the cost changes by; the axes that the groups are on, and how often."""
        held = [self._axes[self._bounds[group] : self._bounds[group + 1]] for group in groups.tolist()]
        axes, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *held]), return_counts=True)
        terms = np.unique(self._term[axes])
        before = self._kept[self._factors[terms]].prod(axis=1)
        self._kept[axes] += sign * counts
        after = self._kept[self._factors[terms]].prod(axis=1)
        self._kept[axes] -= sign * counts
        return float(np.dot(self.cost.coefficients[terms], after - before)), axes, counts


def cost_of(channel_map: ChannelMap, measure: Measure) -> Cost:
    """The cost function of a measure."""
    if measure == "macs":
        return Cost(channel_map.macs, 0.0)
    if measure == "kernels":
        return Cost(channel_map.slices, 0.0)
    return _weights(channel_map)


def _weights(channel_map: ChannelMap) -> Cost:
    """Elements of stored constants of rank ≥ 2. Constants that no rule labelled stay whole."""
    terms, labelled = [], 0
    for name, edges in channel_map.constant_uses().items():
        tensor = channel_map.graph.constants[name]
        if not is_weight(tensor):
            continue
        axes = channel_map.uses[edges[0]]
        plain = prod(size for size, ids in zip(tensor.dims, axes, strict=True) if ids is None)
        terms.append(Term(edges[0][0], float(plain), tuple(ids for ids in axes if ids is not None and len(ids))))
        labelled += prod(tensor.dims)
    return Cost(terms, float(count_weights(channel_map.graph.model) - labelled))
