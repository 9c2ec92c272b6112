"""How many kernel slices may stay: as many as the budget allows.

Counted in kernel slices, that is a number. Stored weights and multiply-accumulates are physical: a slice only saves
them together with all others of its channel. So the written model is measured for one number of slices after another
until it just fits the budget; fewer slices never make it larger by much, so a bisection finds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from onnxprune.errors import UnreachableError
from onnxprune.passes.cost import Measure
from onnxprune.passes.kernel_scores import Selection, on_paths
from onnxprune.passes.kernel_slices import EdgeMask, Kernels

__all__ = ["Budget", "within_budget"]

_FULL = 0.98  # share of the budget from which on it counts as filled
_PROBES = 12  # models measured at most


@dataclass(frozen=True)
class Budget:
    """At most (1 − ``sparsity``) of ``measure``. ``size``: edge mask → what the written model holds of it;
    ``whole``: what the original does."""

    measure: Measure
    sparsity: float
    size: Callable[[EdgeMask], float]
    whole: float

    @property
    def most(self) -> float:
        # 0.9 of 1275 slices is not to end at 127 because 0.1 is not a binary number.
        return (1 - self.sparsity) * self.whole * (1 + 1e-12)


def within_budget(kernels: Kernels, selection: Selection, budget: Budget, least: int = 0) -> EdgeMask:
    """The largest selection that fits; what is on no path from an input to an output is cut.

    ``least``: slices without which some output would be lost.
    Raises: UnreachableError where even the smallest selection does not fit.
    """
    if budget.measure == "kernels":
        return _counted(kernels, selection, math.floor(budget.most), budget, max(least, kernels.fixed))
    low, high = max(least, kernels.fixed), kernels.total
    best = on_paths(kernels, selection(low))
    found = budget.size(best)
    if found > budget.most:
        raise _unreachable(budget, found)
    for _ in range(_PROBES):
        if found >= _FULL * budget.most or high - low <= 1:
            break
        middle = _between(low, high)
        mask = on_paths(kernels, selection(middle))
        size = budget.size(mask)
        if size <= budget.most:
            low, best, found = middle, mask, size
        else:
            high = middle
    return best


def _between(low: int, high: int) -> int:
    """The geometric mean: budgets are shares, small ones as important as large ones."""
    return min(max(math.isqrt(max(low, 1) * high), low + 1), high - 1)


def _counted(kernels: Kernels, selection: Selection, count: int, budget: Budget, least: int) -> EdgeMask:
    if count < least:
        raise _unreachable(budget, least)
    return on_paths(kernels, selection(count))


def _unreachable(budget: Budget, found: float) -> UnreachableError:
    most = 1 - found / budget.whole if budget.whole else 0.0
    wanted, reached = f"sparsity {budget.sparsity:g} of {budget.measure}", math.floor(most * 1e4) / 1e4
    return UnreachableError(
        f"{wanted} cannot be reached at kernel granularity, at most {reached:g} can: the rest is in layers that keep "
        "all their kernel slices, or is needed to reach every output; 'onnxprune inspect' lists the layers",
        most,
    )
