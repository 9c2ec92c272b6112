"""Logarithms of the norms of a layer's kernel slices, for longest paths, without all of them at once.

Longest paths ask for the largest of a row or of a column only, which few slices can be. So all norms of a layer are
found on a coarse grid of frequencies first, at most a known share below what they are on the whole one, and exactly
where that is not enough to tell which one is the largest. The answers are those that the exact norms give. Those of a
matrix are its entries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxprune.passes.in_parts import in_parts, narrow_blocks

__all__ = ["Bounds", "Logs", "Magnitudes"]

Floats = NDArray[np.floating]
Places = NDArray[np.int64]

_SURE = 1e-25  # of products of float32, of which what is below 1e-38 is lost; there are no weights of 1e13


class Logs(ABC):
    """Logarithms of norms, [out, in]."""

    @abstractmethod
    def best_of_rows(self, values: Floats) -> Floats:
        """max over columns of values[column] + log norm[row, column]."""

    @abstractmethod
    def best_of_columns(self, values: Floats) -> Floats:
        """max over rows of values[row] + log norm[row, column]."""


@dataclass(frozen=True)
class Magnitudes(Logs):
    """Those of a ``matrix``, which may be a view of a file.

    Products are faster than logarithms: the largest log |w| + v is where |w|·e^(v − v₀) is largest, with v₀ the largest
    of the values. Where that is so small that others may have been rounded to nothing, logarithms tell.
    """

    matrix: Floats

    def best_of_rows(self, values: Floats) -> Floats:
        """See ``Logs``."""
        return self._by_columns(self.matrix.T, values) if self._is_turned else self._by_rows(self.matrix, values)

    def best_of_columns(self, values: Floats) -> Floats:
        """See ``Logs``."""
        return self._by_rows(self.matrix.T, values) if self._is_turned else self._by_columns(self.matrix, values)

    @property
    def _is_turned(self) -> bool:
        """Whether columns lie one after another in memory."""
        return self.matrix.strides[0] < self.matrix.strides[1]

    def _by_rows(self, matrix: Floats, values: Floats) -> Floats:
        factors, top = _factors(values, matrix.dtype)
        parts = in_parts(lambda rows: _scaled(matrix[rows], factors).max(axis=1, initial=0), *matrix.shape)
        best = np.concatenate([np.zeros(0), *parts])
        return _checked(best, top, lambda some: (_log(matrix[some]) + values).max(axis=1, initial=-np.inf),
                        matrix.shape[1])  # fmt: skip

    def _by_columns(self, matrix: Floats, values: Floats) -> Floats:
        factors, top = _factors(values[:, None], matrix.dtype)
        best = np.zeros(matrix.shape[1])
        for block in narrow_blocks(matrix.shape[1]):
            tops = in_parts(partial(_tops, matrix[:, block], factors), *matrix[:, block].shape)
            best[block] = np.max([best[block], *tops], axis=0)
        return _checked(best, top, lambda some: (_log(matrix[:, some]) + values[:, None]).max(axis=0, initial=-np.inf),
                        len(matrix))  # fmt: skip


def _factors(values: Floats, dtype: np.dtype[np.floating]) -> tuple[Floats, float]:
    """e^(values − the largest), and the largest; nothing but zeros where that is no number."""
    top = float(values.max(initial=-np.inf))
    return (np.exp(values - top) if np.isfinite(top) else np.zeros(values.shape)).astype(dtype), top


def _tops(matrix: Floats, factors: Floats, rows: slice) -> Floats:
    """The best product of some rows, for each column."""
    return np.asarray(_scaled(matrix[rows], factors[rows]).max(axis=0, initial=0))


def _scaled(part: Floats, factors: Floats) -> Floats:
    result = np.abs(part)
    with np.errstate(invalid="ignore"):  # infinity times 0
        result *= factors
    return result


def _checked(best: Floats, top: float, exact: Callable[[Places], Floats], length: int) -> Floats:
    """Logarithms of the best products; by sums of logarithms where the products are too small. ``length``: of a row."""
    with np.errstate(divide="ignore", invalid="ignore"):
        result = np.log(best) + top
    unsure = np.flatnonzero(~(best > _SURE))
    result[unsure] = np.concatenate([np.zeros(0), *in_parts(lambda some: exact(unsure[some]), len(unsure), length)])
    return np.asarray(result)


@dataclass
class Bounds(Logs):
    """Logarithms of norms: ``low`` ≤ log norm ≤ ``low`` + ``slack``, [out, in].

    ``exact``: the logarithms themselves of slices at (out, in), each [slices]. ``known``: where ``low`` is exact.
    ``size``: the largest magnitude in ``low``.
    """

    low: Floats
    slack: float
    exact: Callable[[Places, Places], Floats]
    known: NDArray[np.bool_] = field(init=False)
    size: float = field(init=False)

    def __post_init__(self) -> None:
        self.known = self.low == -np.inf
        top, bottom = self.low.max(initial=0), self.low.min(initial=0, where=~self.known)
        self.size = float(max(top, -bottom)) if np.isfinite(top - bottom) else 0.0

    def best_of_rows(self, values: Floats) -> Floats:
        """See ``Logs``."""
        short, slack = self._short(values)

        def look(rows: slice) -> tuple[Floats, Places]:
            sums = self.low[rows] + short
            best = sums.max(axis=1, initial=-np.inf)
            return best, self._near(sums, best[:, None] - slack, rows)

        found = in_parts(look, *self.low.shape)
        out, into = self._places([near for _, near in found])
        best = np.concatenate([np.zeros(0), *(best for best, _ in found)])
        return _largest(best, out, self._logs(out, into) + values[into])

    def best_of_columns(self, values: Floats) -> Floats:
        """See ``Logs``."""
        short, slack = self._short(values[:, None])

        def top(rows: slice) -> Floats:
            return np.asarray((self.low[rows] + short[rows]).max(axis=0, initial=-np.inf))

        nothing = np.full((1, self.low.shape[1]), -np.inf, self.low.dtype)
        best = np.max([*nothing, *in_parts(top, *self.low.shape)], axis=0)
        near = in_parts(lambda rows: self._near(self.low[rows] + short[rows], best - slack, rows), *self.low.shape)
        out, into = self._places(near)
        return _largest(best, into, self._logs(out, into) + values[out])

    def _short(self, values: Floats) -> tuple[Floats, Floats]:
        """Values in the precision of the bounds, and how far below the best of such sums the best one can be."""
        size = self.size + np.abs(values[np.isfinite(values)]).max(initial=0)
        slack = self.slack + 8 * np.finfo(self.low.dtype).eps * size
        return values.astype(self.low.dtype), np.asarray(slack, self.low.dtype)

    def _near(self, sums: Floats, least: Floats, rows: slice) -> Places:
        """Slices of these rows, by their places in the flat layer, of which the sums are at least so large."""
        found = sums >= least
        found &= sums > -np.inf
        return np.asarray(np.flatnonzero(found) + rows.start * self.low.shape[1])

    def _places(self, flat: list[Places]) -> tuple[Places, Places]:
        """(out, in) of slices."""
        every = np.concatenate([np.zeros(0, np.int64), *flat])
        return every // max(1, self.low.shape[1]), every % max(1, self.low.shape[1])

    def _logs(self, out: Places, into: Places) -> Floats:
        """The logarithms of these slices, from now on known."""
        new = ~self.known[out, into]
        rows, columns = out[new], into[new]
        self.low[rows, columns] = self.exact(rows, columns)
        self.known[rows, columns] = True
        return np.asarray(self.low[out, into])


def _log(part: Floats) -> Floats:
    result = np.abs(part)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(result, out=result))


def _largest(best: Floats, places: Places, sums: Floats) -> Floats:
    """The largest of the sums at each place; where there are none, what was best (−∞, or no number)."""
    result = np.where(np.isnan(best), best, -np.inf).astype(np.float64)
    np.maximum.at(result, places, sums)
    return result
