"""Methods: each gives every group of coupled channels a score; selection keeps the highest.

A method is a frozen dataclass with a ``name``; ``METHODS`` maps names to methods. Scores are comparable across layers.
Groups that no contraction makes or reads score +∞: there is nothing to rank them by.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import ChannelMap
from onnxprune.passes.families import families
from onnxprune.passes.flow import channel_blocks, flow
from onnxprune.passes.in_parts import in_parts, narrow_blocks
from onnxprune.passes.norms import FloatArray, operator_block, slices

__all__ = ["METHODS", "Lean", "Magnitude", "Method", "Random"]


class Method(Protocol):
    """What selection needs of a method."""

    name: ClassVar[str]

    def scores(self, channel_map: ChannelMap) -> FloatArray:
        """Score per group, float64 [groups]; higher is kept."""
        ...


@dataclass(frozen=True)
class Lean:
    """The value of the strongest chain through a group.

    LEAN (Schoonhoven et al. 2020) repeatedly keeps the path of largest product of operator norms. With channels as the
    unit, the order in which such paths first touch channels is the order of the best path *through* each channel, which
    one forward and one backward longest-path pass give for all channels. Keeping the best is topologically consistent
    by itself: every channel on a channel's best path scores at least as high, up to rounding.

    ``norm_grid``: see ``operator_norms``.
    """

    norm_grid: int | None = None
    name: ClassVar[str] = "lean"

    def scores(self, channel_map: ChannelMap) -> FloatArray:
        norm = partial(operator_block, grid=self.norm_grid) if self.norm_grid else None
        found = flow(channel_map, channel_blocks(channel_map, norm))
        ranked = np.where(_ranked(channel_map), found.through, np.inf)
        return np.asarray(ranked, np.float64)


@dataclass(frozen=True)
class Magnitude:
    """L2 norm of a group's weights, compared within its layer.

    Per weight, a channel's energy is divided by the mean over the weight's channels; a group's magnitude is the root of
    the mean over all weights that make or read it. Groups are then ranked among those of the same family, and the score
    is the share of the family that is weaker, so that scaling a layer (and undoing it in the next) changes nothing and
    no layer is emptied for being quiet. Equal shares are told apart by the magnitude itself.
    """

    name: ClassVar[str] = "magnitude"

    def scores(self, channel_map: ChannelMap) -> FloatArray:
        total, count = np.zeros(channel_map.groups), np.zeros(channel_map.groups)
        for c in channel_map.contractions:
            w = slices(channel_map, c)
            for ids, energy in zip((c.outputs, c.inputs), _energies(w, c.groups), strict=True):
                mean = float(energy.mean())
                if mean > 0 and len(ids) == len(energy):
                    np.add.at(total, ids, energy / mean)
                    np.add.at(count, ids, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            magnitude = np.where(count > 0, np.sqrt(total / count), np.inf)
        return np.where(count > 0, _within_family(channel_map, magnitude), np.inf)


def _within_family(channel_map: ChannelMap, magnitude: FloatArray) -> FloatArray:
    """Share (0..1] of the free groups of the same family that are at most as strong; ties told apart below 1e-6."""
    family = families(channel_map)
    order = np.lexsort((magnitude, channel_map.frozen, family))
    _, starts, sizes = np.unique(family[order], return_index=True, return_counts=True)
    share = np.empty(len(order))
    share[order] = (np.arange(len(order)) - np.repeat(starts, sizes) + 1) / np.repeat(sizes, sizes)
    finite = np.where(np.isfinite(magnitude), magnitude, 0.0)
    return np.asarray(share + 1e-6 * finite / (1 + finite))


@dataclass(frozen=True)
class Random:
    """The baseline every method must beat."""

    seed: int = 0
    name: ClassVar[str] = "random"

    def scores(self, channel_map: ChannelMap) -> FloatArray:
        drawn = np.random.default_rng(self.seed).random(channel_map.groups)
        return np.where(_ranked(channel_map), drawn, np.inf)


def _ranked(channel_map: ChannelMap) -> NDArray[np.bool_]:
    """Groups that some contraction makes or reads."""
    found = np.zeros(channel_map.groups, np.bool_)
    for c in channel_map.contractions:
        found[c.outputs] = True
        found[c.inputs] = True
    return found


def _energies(w: FloatArray, groups: int) -> tuple[FloatArray, FloatArray]:
    """Squared L2 norm of each output channel's and each input channel's kernel slices."""
    flat = w.reshape(w.shape[0], w.shape[1], -1)
    if groups > 1:
        block = _squared(flat)
        by_input = block.reshape(groups, -1, block.shape[1]).sum(axis=1).ravel()
        return block.sum(axis=1, dtype=np.float64), by_input.astype(np.float64)
    if flat.strides[0] < flat.strides[1]:  # input channels lie one after another in memory
        ahead, behind = _sums(flat.swapaxes(0, 1))
        return behind, ahead
    return _sums(flat)


def _sums(flat: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Squared L2 norms of what lies at each index of the first axis, and of the second."""

    first, second = np.zeros(flat.shape[0]), np.zeros(flat.shape[1])
    for block in narrow_blocks(flat.shape[1]):
        found = in_parts(partial(_sums_of_rows, flat[:, block]), len(flat), math.prod(flat[:, block].shape[1:]))
        first += np.concatenate([np.zeros(0), *(one for one, _ in found)])
        second[block] = np.sum([second[block], *(other for _, other in found)], axis=0)
    return first, second


def _sums_of_rows(flat: FloatArray, rows: slice) -> tuple[FloatArray, FloatArray]:
    squared = _squared(flat[rows])
    return squared.sum(axis=1, dtype=np.float64), squared.sum(axis=0).astype(np.float64)


def _squared(flat: FloatArray) -> FloatArray:
    """Squared L2 norm of every kernel slice."""
    return np.square(flat[..., 0]) if flat.shape[2] == 1 else np.einsum("oik,oik->oi", flat, flat)


METHODS: dict[str, Callable[..., Method]] = {
    "lean": lambda _seed, norm_grid=None: Lean(norm_grid),
    "magnitude": lambda _seed, _norm_grid=None: Magnitude(),
    "random": lambda seed, _norm_grid=None: Random(seed),
}
"""Method name → constructor from a seed and, if one is asked for, the grid of operator norms."""
