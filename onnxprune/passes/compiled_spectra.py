"""The search of ``onnxprune.passes.spectra`` on a whole grid for millions of kernels, compiled by numba.

The energies are the same sums. For a few kernels at once, whose numbers stay in the cache, the series is summed up axis
by axis: for every frequency β of the axes beside the first, E and O are series in α alone,

    E(α, β) = Σₐ cos(αa)·E[a](β)     E[a](β) = Σₑ ε[a, e]·cos(β·e)
    O(α, β) = Σₐ sin(αa)·O[a](β)     O[a](β) = Σₑ ω[a, e]·sin(β·e)

so that a point of the grid costs as many operations as the kernel is long, not as it has elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.passes.compiled import compiled
from onnxprune.passes.in_parts import in_parts
from onnxprune.passes.spectra import Lag, Lags

__all__ = ["largest_energy"]

Floats = NDArray[np.floating]
Places = NDArray[np.int64]

_TOGETHER = 128  # kernels that are searched at once: a few of the processor's vectors


class _Tables(NamedTuple):
    """What does not depend on the kernels.

    ``pairs`` [products, 2]: elements of a kernel that are multiplied. ``stop`` [1 + lags, 2]: where those of them end
    that are a lag (a, e) apart, and then those that are (a, −e) apart; for the lags of the even part, behind a row of
    zeros. ``cos_first``, ``sin_first`` [α, a]; ``cos_beside``, ``sin_beside`` [β, e].
    """

    pairs: Places
    stop: Places
    cos_first: Floats
    sin_first: Floats
    cos_beside: Floats
    sin_beside: Floats


def largest_energy(phases: Sequence[Floats], points: Sequence[int]) -> Floats:
    """See ``onnxprune.passes.spectra.largest_energy``; by as many threads as there are processors."""
    best = np.empty(len(phases[0]), phases[0].dtype)
    tables = _tables([part.shape[1:] for part in phases], points, best.dtype)

    def search(own: slice) -> None:
        rows = [part[own].reshape(len(best[own]), -1) for part in phases]
        _search(np.ascontiguousarray(rows[0]) if len(rows) == 1 else np.concatenate(rows, axis=1), tables, best[own])

    in_parts(search, len(best), sum(math.prod(part.shape[1:]) for part in phases))
    return best


def _tables(phases: Sequence[tuple[int, ...]], points: Sequence[int], dtype: np.dtype[np.floating]) -> _Tables:
    """``phases``: their extents; their elements stand side by side."""
    lags = Lags.of(tuple(map(max, zip(*phases, strict=True))))
    pairs, stop = list[tuple[int, int]](), [(0, 0)]
    for lag in lags.even:
        pairs += _pairs(phases, lag)
        half = len(pairs)
        if lag in lags.odd:
            pairs += _pairs(phases, (lag[0], *(-d for d in lag[1:])))
        stop.append((half, len(pairs)))
    first, *beside = (np.arange(n // 2 + 1 if axis < 2 else n) * (2 * math.pi / n) for axis, n in enumerate(points))
    a = np.arange(1 + lags.even[-1][0])
    e = np.array([lag[1:] for lag in lags.even if not lag[0]])
    beta = np.array(list(product(*beside)))
    turns = np.outer(first, a), beta @ e.T
    (cos_first, cos_beside), (sin_first, sin_beside) = ([f(t).astype(dtype) for t in turns] for f in (np.cos, np.sin))
    return _Tables(np.array(pairs), np.array(stop), cos_first, sin_first, cos_beside, sin_beside)


def _pairs(phases: Sequence[tuple[int, ...]], lag: Lag) -> Iterator[tuple[int, int]]:
    """Elements x and x + lag of every phase, by their places in a row."""
    low = 0
    for extents in phases:
        place = {x: low + i for i, x in enumerate(product(*map(range, extents)))}
        low += len(place)
        for x, i in place.items():
            other = place.get(tuple(at + d for at, d in zip(x, lag, strict=True)))
            if other is not None:
                yield i, other


@compiled(nogil=True, fastmath={"contract"}, error_model="numpy")
def _search(kernels: Floats, tables: _Tables, best: Floats) -> None:
    """Write the largest energy on the grid to ``best`` [kernels]; ``kernels``: [kernels, elements]."""
    t = tables
    longest, beside = t.cos_first.shape[1], t.cos_beside.shape[1]
    taps = np.zeros((kernels.shape[1], _TOGETHER), kernels.dtype)
    here, there = np.zeros((2, _TOGETHER), kernels.dtype)
    even, odd = np.zeros((2, longest * beside, _TOGETHER), kernels.dtype)
    even_at, odd_at = np.zeros((2, longest, _TOGETHER), kernels.dtype)
    top = np.zeros(_TOGETHER, kernels.dtype)
    for start in range(0, len(kernels), _TOGETHER):
        count = min(_TOGETHER, len(kernels) - start)
        for k in range(count):
            for i in range(kernels.shape[1]):
                taps[i, k] = kernels[start + k, i]
        _correlate(taps, t, here, there, even, odd)
        top[:] = -np.inf
        for beta in range(len(t.cos_beside)):
            for a in range(longest):
                _sum_up(t.cos_beside[beta], even[a * beside : (a + 1) * beside], even_at[a])
                if a:
                    _sum_up(t.sin_beside[beta], odd[a * beside : (a + 1) * beside], odd_at[a])
            _look(t, even_at, odd_at, here, there, top)
        for k in range(count):
            best[start + k] = top[k] if np.isfinite(even[0, k]) else np.nan


@compiled(inline="always", fastmath={"contract"}, error_model="numpy")
def _correlate(taps: Floats, t: _Tables, here: Floats, there: Floats, even: Floats, odd: Floats) -> None:
    """Coefficients of the even and of the odd part, [lags, kernels]."""
    for lag in range(len(even)):
        here[:] = 0
        there[:] = 0
        for pair in range(t.stop[lag, 1], t.stop[lag + 1, 0]):
            _add_product(taps[t.pairs[pair, 0]], taps[t.pairs[pair, 1]], here)
        for pair in range(t.stop[lag + 1, 0], t.stop[lag + 1, 1]):
            _add_product(taps[t.pairs[pair, 0]], taps[t.pairs[pair, 1]], there)
        both, apart = even[lag], odd[lag]
        for k in range(_TOGETHER):
            both[k] = here[k] + there[k]
            apart[k] = here[k] - there[k]
        if lag:  # −lag gives as much
            for k in range(_TOGETHER):
                both[k] += both[k]
                apart[k] += apart[k]


@compiled(inline="always", fastmath={"contract"}, error_model="numpy")
def _add_product(a: Floats, b: Floats, total: Floats) -> None:
    for k in range(_TOGETHER):
        total[k] += a[k] * b[k]


@compiled(inline="always", fastmath={"contract"}, error_model="numpy")
def _sum_up(factors: Floats, series: Floats, total: Floats) -> None:
    """Σₑ factors[e]·series[e, kernels]"""
    if len(factors) == 3:
        for k in range(_TOGETHER):
            total[k] = factors[0] * series[0, k] + factors[1] * series[1, k] + factors[2] * series[2, k]
        return
    total[:] = 0
    for e in range(len(factors)):
        factor, part = factors[e], series[e]
        for k in range(_TOGETHER):
            total[k] += factor * part[k]


@compiled(inline="always", fastmath={"contract"}, error_model="numpy")
def _look(t: _Tables, even: Floats, odd: Floats, e: Floats, o: Floats, top: Floats) -> None:
    """Raise ``top`` to E + |O| at every α. Of the usual length, the sums stay in registers."""
    for alpha in range(len(t.cos_first)):
        cos, sin = t.cos_first[alpha], t.sin_first[alpha]
        if len(cos) == 3:
            for k in range(_TOGETHER):
                energy = even[0, k] + cos[1] * even[1, k] + cos[2] * even[2, k]
                energy += abs(sin[1] * odd[1, k] + sin[2] * odd[2, k])
                top[k] = energy if energy > top[k] else top[k]
        else:
            _sum_up(cos, even, e)
            _sum_up(sin, odd, o)
            for k in range(_TOGETHER):
                energy = e[k] + abs(o[k])
                top[k] = energy if energy > top[k] else top[k]
