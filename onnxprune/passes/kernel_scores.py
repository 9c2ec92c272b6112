"""Methods that rank kernel slices one by one: each gives every slice a score, and the strongest stay.

These are the baselines of both papers. What stays need not be connected: slices that no input reaches any more, or that
reach no output, are then cut too, since they do nothing (see ``on_paths``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from onnxprune.channels import ChannelMap, Contraction
from onnxprune.passes.flow import slices_on_paths
from onnxprune.passes.fold import signal_blocks
from onnxprune.passes.kernel_slices import BoolArray, EdgeMask, Kernels
from onnxprune.passes.norms import FloatArray, frobenius_block, operator_block, slices

__all__ = ["KERNEL_METHODS", "KernelMethod", "Selection", "on_paths", "strongest"]

Selection = Callable[[int], EdgeMask]
"""How many slices may stay at most, those that always stay included → the edge mask; more slices contain fewer."""


class KernelMethod(Protocol):
    """What selection needs of a method at kernel granularity."""

    name: ClassVar[str]

    def selection(self, kernels: Kernels) -> Selection: ...


@dataclass(frozen=True)
class _OneByOne:
    """The strongest slices stay, whatever becomes of the others. ``seed``: of ``random`` alone."""

    seed: int = 0

    def scores(self, channel_map: ChannelMap, c: Contraction) -> FloatArray:
        """Score per kernel slice, [out, in per group]; higher is kept."""
        raise NotImplementedError

    def selection(self, kernels: Kernels) -> Selection:
        return strongest(kernels, {c.node: self.scores(kernels.channel_map, c) for c in kernels.channel_map.contractions})


@dataclass(frozen=True)
class Magnitude(_OneByOne):
    """Frobenius norm as a multiple of the layer's root mean square, so that no layer is emptied for being quiet."""

    name: ClassVar[str] = "magnitude"

    def scores(self, channel_map: ChannelMap, c: Contraction) -> FloatArray:
        return normalised(frobenius_block(channel_map, c))


def normalised(norms: FloatArray) -> FloatArray:
    """Norms as a multiple of the root mean square of those that are not zero."""
    energy = np.square(norms, dtype=np.float64)
    scale = np.sqrt(energy.sum() / max(np.count_nonzero(energy), 1))
    return np.asarray(norms / scale if scale > 0 else norms, np.float64)


@dataclass(frozen=True)
class L1(_OneByOne):
    """Sum of magnitudes, compared across layers as it is: the baseline of the LEAN paper."""

    name: ClassVar[str] = "l1"

    def scores(self, channel_map: ChannelMap, c: Contraction) -> FloatArray:
        w = slices(channel_map, c)
        return np.asarray(np.abs(w).reshape(*w.shape[:2], -1).sum(axis=2, dtype=np.float64))


@dataclass(frozen=True)
class OperatorNorm(_OneByOne):
    """Largest singular value of the slice as a convolution, compared across layers as it is ("SV" in the LEAN paper)."""

    name: ClassVar[str] = "sv"

    def scores(self, channel_map: ChannelMap, c: Contraction) -> FloatArray:
        return operator_block(channel_map, c).astype(np.float64)


@dataclass(frozen=True)
class Random(_OneByOne):
    """The baseline every method must beat."""

    name: ClassVar[str] = "random"

    def scores(self, channel_map: ChannelMap, c: Contraction) -> FloatArray:
        shape = (len(c.outputs), len(c.inputs) // c.groups)
        return np.random.default_rng((self.seed, c.node)).random(shape)


def strongest(kernels: Kernels, scores: Mapping[int, FloatArray]) -> Selection:
    """Best score first; equal ones in the order of the model. A shared slice has the best of its scores."""
    best, where, reads = [np.zeros(0)], [np.zeros((0, 2), np.int64)], [np.zeros(0, np.int64)]
    for i, held in enumerate(kernels.free):
        found = np.maximum.reduce([scores[node] for node in held.nodes]).ravel()
        alive = np.flatnonzero(kernels.nonzero[held.node])
        best.append(found[alive])
        where.append(np.stack((np.full(len(alive), i), alive), axis=1))
        reads.append(np.full(len(alive), len(held.nodes)))
    order = np.argsort(-np.concatenate(best), kind="stable")
    spent = kernels.fixed + np.cumsum(np.concatenate(reads)[order])
    places = np.concatenate(where)[order]

    def select(count: int) -> EdgeMask:
        taken = places[: np.searchsorted(spent, count, side="right")]
        chosen = {}
        for i, held in enumerate(kernels.free):
            flat = np.zeros(kernels.nonzero[held.node].size, np.bool_)
            flat[taken[taken[:, 0] == i, 1]] = True
            chosen[held.node] = flat.reshape(kernels.nonzero[held.node].shape)
        return kernels.mask(chosen)

    return select


def on_paths(kernels: Kernels, mask: EdgeMask) -> EdgeMask:
    """What of a mask lies on a path from an input to an output; slices that may not be chosen stay.

    Cutting the others changes no path, so once is enough.
    """
    joined = slices_on_paths(kernels.channel_map, signal_blocks(mask))
    chosen: dict[int, BoolArray] = {}
    for held in kernels.free:
        chosen[held.node] = np.logical_or.reduce([mask[node] & joined[node] for node in held.nodes])
    return kernels.mask(chosen)


KERNEL_METHODS: dict[str, Callable[[int], KernelMethod]] = {
    "magnitude": Magnitude,
    "l1": L1,
    "sv": OperatorNorm,
    "random": Random,
}
"""Method name → constructor from a seed."""
