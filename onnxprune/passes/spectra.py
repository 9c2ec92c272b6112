"""The largest value of the energy spectrum |ŵ(ω)|² of very many small kernels, on a grid of frequencies.

The energy is a cosine series in the kernel's autocorrelation r[d] = Σₓ w[x]·w[x + d], so no complex numbers are needed.
With the first axis (frequency α, lag a) apart from the others (β, e),

    |ŵ(α, β)|² = E(α, β) − O(α, β)     E = Σ ε[a, e]·cos(αa)·cos(β·e),   ε = sums of r[a, e] and r[a, −e]
                                       O = Σ ω[a, e]·sin(αa)·sin(β·e),   ω = their differences

and as α changes its sign, only O does: E + |O| is the larger of two values, and a quarter of the grid is enough. Both
sums are products with small matrices, for all kernels at once.

A fine grid is looked at only where its largest value can be. The energy is a trigonometric polynomial of degree
m = k − 1 along an axis, nowhere below 0 nor above its maximum M, so that its second derivative is at most m²M/2
(Bernstein). Linear interpolation in a cell of extents H thus misses at most ε·M with ε = Σ(H·m)²/16, summed over the
axes: no point of a cell is above its largest corner by more than that, and the largest corner of all is at least
M·(1 − ε). Cells whose corners are all further below what is known already are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, pi, prod, sqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Lags", "default_points", "interpolation_loss", "largest_energy"]

FloatArray = NDArray[np.floating]
Lag: TypeAlias = tuple[int, ...]

PRECISION = 0.01
"""Largest relative error of a norm (the root of an energy) on a default grid."""

_CORRELATED = 8192  # kernels whose autocorrelations are found at once, in the cache
_CELLS = 1 << 17  # energies computed at once, in the cache
_TOGETHER = 1 << 16  # kernels that are refined together
_CANDIDATES = 1 << 25  # entries of a table of candidates: bounds the memory
_COARSE = 16  # points per degree and axis of the grid that is refined, at least
_COMPILED_FROM = 1 << 26  # energies; numba takes seconds to compile once, and part of one to load
_ROUNDING = 1e-5  # relative; more than float32 makes of an energy


def default_points(extents: Sequence[int]) -> list[int]:
    """Points per axis of a grid on which norms are underestimated by less than ``PRECISION``."""
    degrees = [k - 1 for k in extents]
    allowed = 1 - (1 - PRECISION) ** 2
    per_degree = ceil(pi / 2 * sqrt(max(1, sum(m > 0 for m in degrees)) / allowed))
    return [max(1, per_degree * m) for m in degrees]


def interpolation_loss(extents: Sequence[int], points: Iterable[float]) -> float:
    """ε: by which share of the maximal energy the largest one on a grid is below it, at most."""
    return float(sum((pi * (k - 1) / (2 * n)) ** 2 for k, n in zip(extents, points, strict=True)))


def largest_energy(phases: Sequence[FloatArray], points: Sequence[int], like: int = 0) -> FloatArray:
    """max over the grid of Σ over phases p of |ŵₚ(ω)|², for every kernel [kernels].

    Args:
        phases: the parts of a kernel of which the energies add up, each [kernels, k…].
        points: per axis, how many frequencies 0, 2π/n, 4π/n, … to look at.
        like: compute them as those of so many kernels are computed, which may make a difference in rounding.
    """
    extents = tuple(max(part.shape[1 + axis] for part in phases) for axis in range(len(points)))
    search = _Search.of(extents, points, phases[0].dtype)
    if max(len(phases[0]), like) * len(search.coarse) >= _COMPILED_FROM and not len(search.around):
        compiled = _compiled()
        if compiled is not None:
            return compiled(phases, points)
    result = np.empty(len(phases[0]), phases[0].dtype)
    for start in range(0, len(result), search.together):
        own = slice(start, start + search.together)
        search.run([part[own] for part in phases], result[own])
    return result


def _compiled() -> Callable[[Sequence[FloatArray], Sequence[int]], FloatArray] | None:
    """The same for millions of kernels, if numba works here; the energies differ by rounding."""
    try:
        from onnxprune.passes.compiled_spectra import largest_energy
    except (ImportError, OSError):  # not installed, not for this numpy; its library cannot be loaded
        return None
    return largest_energy


# ---- the series ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lags:
    """Lags of the even and of the odd part of the series: a ≥ 0 along the first axis, one of each pair ±e of the rest."""

    even: tuple[Lag, ...]
    odd: tuple[Lag, ...]

    @classmethod
    def of(cls, extents: Sequence[int]) -> Lags:
        first, *rest = extents
        beside = [e for e in product(*(range(1 - k, k) for k in rest)) if e >= (0,) * len(rest)]
        even = tuple((a, *e) for a in range(first) for e in beside)
        return cls(even, tuple(lag for lag in even if lag[0] and any(lag[1:])))


@dataclass(frozen=True)
class _Series:
    """What coefficients are multiplied by: ``even``, ``odd`` [frequencies, lags]."""

    even: FloatArray
    odd: FloatArray

    @classmethod
    def at(cls, places: NDArray[np.int64], points: Sequence[int], lags: Lags, dtype: np.dtype[np.floating]) -> _Series:
        """``places``: of the frequencies on a grid of ``points`` per axis, [frequencies, axes]."""
        roots = [np.exp(2j * pi * np.arange(n) / n) for n in points]

        def turned(which: Sequence[Lag]) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
            """e^(iαa) and e^(iβ·e), [frequencies, lags]."""
            lag = np.array(which, np.int64).reshape(len(which), len(points))
            first, *rest = (r[np.outer(places[:, k], lag[:, k]) % len(r)] for k, r in enumerate(roots))
            return first, np.asarray(prod(rest, start=np.ones_like(first)))

        (ahead, beside), (ahead_odd, beside_odd) = turned(lags.even), turned(lags.odd)
        even, odd = ahead.real * beside.real, ahead_odd.imag * beside_odd.imag
        return cls(even.astype(dtype), odd.astype(dtype))

    def energies(self, coefficients: FloatArray, room: FloatArray) -> FloatArray:
        """E + |O| for coefficients [lags, kernels]: [frequencies, kernels], in ``room`` [2, frequencies, kernels]."""
        even, odd = np.split(coefficients, [self.even.shape[1]])
        result, beside = room[0, :, : even.shape[1]], room[1, :, : even.shape[1]]
        np.matmul(self.even, even, out=result)
        if len(odd):
            np.matmul(self.odd, odd, out=beside)
            np.add(result, np.abs(beside, out=beside), out=result)
        return result


def _coefficients(phases: Sequence[FloatArray], lags: Lags) -> FloatArray:
    """Even and then odd coefficients of the sum of the phases' energies, [lags, kernels]."""
    count, dtype = len(phases[0]), phases[0].dtype
    result = np.zeros((len(lags.even) + len(lags.odd), count), dtype)
    place = {lag: len(lags.even) + i for i, lag in enumerate(lags.odd)}
    for start in range(0, count, _CORRELATED):
        own = slice(start, start + _CORRELATED)
        sums = result[:, own]
        for part in phases:
            taps = np.ascontiguousarray(np.moveaxis(part[own], 0, -1))
            for i, lag in enumerate(lags.even):
                if any(d >= k for d, k in zip(map(abs, lag), taps.shape, strict=False)):
                    continue
                here = _correlation(taps, lag)
                sums[i] += here if not any(lag) else 2 * here
                if lag in place:
                    there = _correlation(taps, (lag[0], *(-d for d in lag[1:])))
                    sums[i] += 2 * there
                    sums[place[lag]] += 2 * (here - there)
    return result


def _correlation(taps: FloatArray, lag: Lag) -> FloatArray:
    """r[lag] of kernels [k…, kernels]."""
    extents = taps.shape[:-1]
    here = tuple(slice(max(0, -d), k - max(0, d)) for d, k in zip(lag, extents, strict=True))
    there = tuple(slice(max(0, d), k - max(0, -d)) for d, k in zip(lag, extents, strict=True))
    return np.asarray((taps[here] * taps[there]).reshape(-1, taps.shape[-1]).sum(axis=0))


# ---- the search ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Search:
    """A grid of ``points`` per axis, of which every ``step``-th is looked at first: ``coarse``, [places, axes].

    ``loss``: ε of that coarse grid. ``around``: the grid points inside the cells around one, relative to it.
    """

    lags: Lags
    points: tuple[int, ...]
    coarse: NDArray[np.int64]
    around: NDArray[np.int64]
    loss: float
    series: _Series

    @classmethod
    def of(cls, extents: tuple[int, ...], points: Sequence[int], dtype: np.dtype[np.floating]) -> _Search:
        steps = [max(1, n // (_COARSE * max(1, k - 1))) for n, k in zip(points, extents, strict=True)]
        ends = [n // 2 + step if axis < 2 else n for axis, (n, step) in enumerate(zip(points, steps, strict=True))]
        coarse = _mesh([range(0, end, step) for end, step in zip(ends, steps, strict=True)])
        around = _mesh([range(1 - step, step) for step in steps])
        lags = Lags.of(extents)
        apart = [n / step for n, step in zip(points, steps, strict=True)]
        return cls(lags, tuple(points), coarse, around[np.any(around, axis=1)], interpolation_loss(extents, apart),
                   _Series.at(coarse, points, lags, dtype))  # fmt: skip

    @property
    def together(self) -> int:
        """How many kernels are searched at once."""
        return max(1, min(_TOGETHER, _CANDIDATES // len(self.coarse)))

    def run(self, phases: Sequence[FloatArray], best: FloatArray) -> None:
        """Write the largest energy of every kernel to ``best``."""
        coefficients = _coefficients(phases, self.lags)
        near = np.empty((len(self.coarse), len(best)), np.bool_) if len(self.around) else None
        # What is below this share of what is known is no corner of a cell with a larger value.
        share = best.dtype.type((1 - 2 * self.loss) / (1 - self.loss) - _ROUNDING)
        room = _room(len(self.coarse), best.dtype)
        for own in _blocks(len(best), room):
            energies = self.series.energies(coefficients[:, own], room)
            energies.max(axis=0, out=best[own])
            if near is not None:
                np.greater_equal(energies, share * best[own], out=near[:, own])
        if near is not None:
            self._refine(near, coefficients, best)

    def _refine(self, near: NDArray[np.bool_], coefficients: FloatArray, best: FloatArray) -> None:
        """Look at all grid points around the candidates, [places, kernels]."""
        rows, room = np.ascontiguousarray(coefficients.T), _room(len(self.around), best.dtype)
        for candidates, series in zip(near, self._fine(best.dtype), strict=True):
            kernels = candidates.nonzero()[0]
            for own in _blocks(len(kernels), room):
                some = kernels[own]
                energies = series.energies(rows.take(some, axis=0).T, room)
                best[some] = np.maximum(best.take(some), energies.max(axis=0))

    def _fine(self, dtype: np.dtype[np.floating]) -> Iterator[_Series]:
        """The series at the points around each coarse place."""
        size, step = len(self.around), max(1, _CELLS // len(self.around))
        for start in range(0, len(self.coarse), step):
            places = self.coarse[start : start + step, None] + self.around
            every = _Series.at(places.reshape(-1, len(self.points)), self.points, self.lags, dtype)
            for first in range(0, len(every.even), size):
                yield _Series(every.even[first : first + size], every.odd[first : first + size])


def _mesh(axes: Sequence[range]) -> NDArray[np.int64]:
    """All tuples of these, [tuples, axes]."""
    return np.stack(np.meshgrid(*map(np.asarray, axes), indexing="ij"), axis=-1).reshape(-1, len(axes))


def _room(frequencies: int, dtype: np.dtype[np.floating]) -> FloatArray:
    """[2, frequencies, kernels], for as many kernels as fit the cache."""
    return np.empty((2, frequencies, max(64, _CELLS // frequencies)), dtype)


def _blocks(count: int, room: FloatArray) -> Iterator[slice]:
    """Runs of kernels that fit the room."""
    width = room.shape[2]
    return (slice(start, min(start + width, count)) for start in range(0, count, width))
