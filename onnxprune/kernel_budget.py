"""How many kernel slices may stay: as many as the budget allows.

Counted in kernel slices, that is a number. Stored weights and multiply-accumulates are physical: a slice only saves
them together with all others of its channel. So the written model is measured for one number of slices after another
until it just fits the budget. Fewer slices never make it larger by much, so a bracket around the budget closes on it:
by interpolation (the Illinois method), as sizes grow roughly by a power of the number of slices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxprune.errors import UnreachableError
from onnxprune.passes.channel_graph import EdgeMask
from onnxprune.passes.cost import Measure
from onnxprune.passes.kernel_scores import Magnitude, Selection
from onnxprune.passes.kernel_slices import Kernels, on_paths

__all__ = ["Budget", "Connectivity", "Fitted", "connectivity", "fitted", "plain_connectivity", "within_budget"]

_FULL = 0.98  # share of the budget from which on it counts as filled
_AIM = 0.99  # share of the budget that interpolation aims at
_LEAST_GAP = 1e-3  # what interpolation takes a size to be off at least
_FINEST = 100  # counts that differ by less than this part are not told apart
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


@dataclass(frozen=True)
class Fitted:
    """``mask``: what stays. ``count``: how many slices might. ``connected``: the share of the slices chosen that were
    on a path from an input to an output, and so stay."""

    mask: EdgeMask
    count: int
    connected: float


def within_budget(kernels: Kernels, selection: Selection, budget: Budget) -> Fitted:
    """The largest selection that fits; what is on no path from an input to an output is cut.

    Raises: UnreachableError where even the smallest selection does not fit.
    """
    if budget.measure == "kernels":
        count = math.floor(budget.most)
        if count < selection.least:
            raise _unreachable(budget, selection.least)
        return fitted(kernels, selection, count)
    low, high = 0, kernels.total - selection.least  # slices beyond those that have to stay
    best = fitted(kernels, selection, selection.least)
    found = budget.size(best.mask)
    if found > budget.most:
        raise _unreachable(budget, found)
    short, over = _gap(budget, found), _gap(budget, budget.whole)
    fits: bool | None = None
    for _ in range(_PROBES):
        if found >= _FULL * budget.most or high - low <= max(1, low // _FINEST):
            break
        middle = _between(low, high, short / (short - over))
        tried = fitted(kernels, selection, selection.least + middle)
        size, before = budget.size(tried.mask), fits
        fits = size <= budget.most
        if fits:
            low, short = middle, _gap(budget, size)
            best, found = (tried, size) if size >= found else (best, found)
        else:
            high, over = middle, _gap(budget, size)
        if fits == before:  # what stays where it is counts half, or it stays for long
            short, over = (short, over / 2) if fits else (short / 2, over)
    return best


def _gap(budget: Budget, size: float) -> float:
    """How far a size is from what is aimed at, in logarithms; never 0: below it where the size fits, else above."""
    gap = math.log(max(size, 1.0) / max(_AIM * budget.most, 1.0))
    return min(gap, -_LEAST_GAP) if size <= budget.most else max(gap, _LEAST_GAP)


def fitted(kernels: Kernels, selection: Selection, count: int) -> Fitted:
    """At most so many slices, those that always stay included."""
    chosen = selection.choose(count)
    mask = on_paths(kernels, chosen)
    free = kernels.count(chosen) - kernels.fixed
    return Fitted(mask, count, (kernels.count(mask) - kernels.fixed) / free if free else 1.0)


@dataclass(frozen=True)
class Connectivity:
    """Shares of accessible and co-accessible slices among those that were chosen: by the ``method`` that ran, and by
    plain magnitude (Frobenius norms compared across layers as they are) at the same rate."""

    method: float
    plain_magnitude: float


def connectivity(kernels: Kernels, found: Fitted) -> Connectivity:
    """What is left connected by a choice, against plain magnitude."""
    return Connectivity(found.connected, fitted(kernels, Magnitude().selection(kernels), found.count).connected)


def plain_connectivity(kernels: Kernels, sparsities: Sequence[float]) -> dict[float, float]:
    """Sparsity of kernel slices → the share that plain magnitude would leave connected."""
    plain = Magnitude().selection(kernels)
    return {s: fitted(kernels, plain, int((1 - s) * kernels.total)).connected for s in sparsities}


def _between(low: int, high: int, share: float) -> int:
    """So far from the lower to the higher count, in logarithms: budgets are shares, small ones matter as large ones."""
    start = math.log(max(low, 1))
    middle = round(math.exp(start + share * (math.log(high) - start)))
    return min(max(middle, low + 1), high - 1)


def _unreachable(budget: Budget, found: float) -> UnreachableError:
    most = max(1 - found / budget.whole, 0.0) if budget.whole else 0.0
    wanted, reached = f"sparsity {budget.sparsity:g} of {budget.measure}", math.floor(most * 1e4) / 1e4
    return UnreachableError(
        f"{wanted} cannot be reached at kernel granularity, at most {reached:g} can: the rest is in layers that keep "
        "all their kernel slices, or is needed to reach every output; 'onnxprune inspect' lists the layers",
        most,
    )
