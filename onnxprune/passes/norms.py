"""Norms of kernel slices: one number for each pair of input and output channel of a contraction.

A kernel slice is a convolution from one channel to another, and its operator norm is the largest magnitude of its
Fourier transform, max over ω of |Σₓ w[x]·e^(−iωx)| (Schoonhoven et al. 2020, section 3.1). A stride s keeps every s-th
sample, so the slice splits into its s phases (polyphase components) ŵₚ, and the norm is max √Σₚ|ŵₚ|². Taps that are d
apart (dilation) fall into s/gcd(s, d) phases only; otherwise dilation rescales the frequencies and leaves the maximum
over all of them as it is. A transposed convolution is the adjoint of one with the same kernel and stride, and has the
same norm. A 1×1 kernel or a matrix entry has norm |w|.

The maximum is taken on a grid of frequencies; by default, one on which it is underestimated by less than 1 % (see
``onnxprune.passes.spectra``, which evaluates all slices of a layer at once).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, gcd, log
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import ChannelMap, Contraction
from onnxprune.graph import attribute
from onnxprune.ops.recurrent import GATES
from onnxprune.passes.bounds import Bounds, Logs, Magnitudes
from onnxprune.passes.spectra import default_points, interpolation_loss, largest_energy
from onnxprune.quantised import real_values

__all__ = ["NORMS", "FloatArray", "frobenius_block", "l1_block", "laid_out", "nuclear_block", "operator_block",
           "operator_logs", "operator_norms", "slices"]  # fmt: skip

FloatArray = NDArray[np.floating]
Places = NDArray[np.int64]
Number = TypeVar("Number", bound=np.generic)

_ROUNDING = 1e-5  # relative; more than float32 makes of a norm


def slices(channel_map: ChannelMap, c: Contraction) -> FloatArray:
    """The weight as [out, in per group, kernel elements…], whatever the operator's layout."""
    stored = real_values(channel_map.graph, c.node, c.weight)
    exact = stored.dtype in (np.float32, np.float64)
    return laid_out(np.asarray(stored if exact else stored.astype(np.float32)), channel_map.graph.nodes[c.node].op_type, c)


def laid_out(values: NDArray[Number], operator: str, c: Contraction) -> NDArray[Number]:
    """An array of the weight's shape as [out, in per group, kernel elements…]."""
    if operator in GATES:  # [directions, gates·hidden, in] → [hidden, in, gates, directions]
        values = values.swapaxes(1, 2) if c.out_axis == 2 else values
        gates = values.reshape(len(values), GATES[operator], -1, values.shape[2])
        return gates.transpose(2, 3, 1, 0)
    if "Conv" not in operator:
        return np.moveaxis(values, (c.out_axis, c.in_axis), (0, 1))
    if (c.out_axis, c.in_axis) == (0, 1):
        return values
    if c.groups == 1:
        return values.swapaxes(0, 1)
    # ConvTranspose: [in, out per group, …] → [out, in per group, …]
    per_group = values.reshape(c.groups, -1, *values.shape[1:])
    return per_group.swapaxes(1, 2).reshape(-1, per_group.shape[1], *values.shape[2:])


def frobenius_block(channel_map: ChannelMap, c: Contraction) -> FloatArray:
    """Frobenius norm of every kernel slice, [out, in per group]."""
    w = slices(channel_map, c)
    if w.ndim == 2:
        return np.abs(w)
    flat = w.reshape(*w.shape[:2], -1)
    return np.asarray(np.sqrt(np.einsum("oik,oik->oi", flat, flat)))


def l1_block(channel_map: ChannelMap, c: Contraction) -> FloatArray:
    """Sum of the magnitudes of every kernel slice, [out, in per group]."""
    w = slices(channel_map, c)
    return np.asarray(np.abs(w).reshape(*w.shape[:2], -1).sum(axis=2))


def nuclear_block(channel_map: ChannelMap, c: Contraction) -> FloatArray:
    """Sum of the singular values of every kernel slice, seen as a matrix of its first spatial axis by all others.

    A slice of one axis is a vector, whose nuclear norm is its L2 norm.
    """
    w = slices(channel_map, c)
    if w.ndim < 4:
        return frobenius_block(channel_map, c)
    return np.asarray(np.linalg.svd(w.reshape(*w.shape[:3], -1), compute_uv=False).sum(axis=-1))


def operator_block(channel_map: ChannelMap, c: Contraction, grid: int | None = None) -> FloatArray:
    """Operator norm of every kernel slice, [out, in per group]; ``grid``: see ``operator_norms``."""
    w, strides, dilations = _convolution(channel_map, c)
    if w.ndim == 2:
        return np.abs(w)
    if "Conv" not in channel_map.graph.nodes[c.node].op_type:  # a matrix for each gate or each index of a further axis
        return np.asarray(np.abs(w).max(axis=tuple(range(2, w.ndim))))
    return operator_norms(w, strides, grid, dilations)


def operator_logs(channel_map: ChannelMap, c: Contraction) -> Logs | FloatArray:
    """Logarithms of ``operator_block``, without all of them at once where that spares most of the work."""
    w, strides, dilations = _convolution(channel_map, c)
    if c.groups == 1 and all(k == 1 for k in w.shape[2:]):
        return Magnitudes(w.reshape(w.shape[:2]))
    grid = _Grid.of(w.shape[2:], strides, None, dilations)
    coarse = [n // 2 if n > 1 and n % 2 == 0 else n for n in grid.points]
    if c.groups > 1 or "Conv" not in channel_map.graph.nodes[c.node].op_type or coarse == grid.points:
        with np.errstate(divide="ignore"):
            return np.log(operator_block(channel_map, c))
    low = _norms(w, replace(grid, points=coarse))
    with np.errstate(divide="ignore"):
        np.log(low, out=low)
    slack = -log(1 - interpolation_loss(grid.extents, coarse)) / 2 + _ROUNDING

    def exact(out: Places, into: Places) -> FloatArray:
        found = _norms(slices(channel_map, c)[out, into][None], grid, low.size)[0]
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(found, out=found))

    return Bounds(low, slack, exact)


def _convolution(channel_map: ChannelMap, c: Contraction) -> tuple[FloatArray, list[int] | None, list[int] | None]:
    """``slices``, and the strides and dilations of the node."""
    strides, dilations = (attribute(channel_map.graph.nodes[c.node], name) for name in ("strides", "dilations"))
    return (slices(channel_map, c), strides if isinstance(strides, list) else None,
            dilations if isinstance(dilations, list) else None)  # fmt: skip


@dataclass(frozen=True)
class _Grid:
    """``steps`` [axes]: elements of a phase are so many elements of the kernel apart. ``extents``: of the largest phase.
    ``points``: how many frequencies are looked at."""

    steps: list[int]
    extents: list[int]
    points: list[int]

    @classmethod
    def of(cls, kernel: Sequence[int], strides: list[int] | None, grid: int | None,
           dilations: list[int] | None) -> _Grid:  # fmt: skip
        apart = [gcd(s, d) for s, d in zip(strides or [1] * len(kernel), dilations or [1] * len(kernel), strict=True)]
        steps = [s // a for s, a in zip(strides or [1] * len(kernel), apart, strict=True)]
        extents = [ceil(k / s) for k, s in zip(kernel, steps, strict=True)]
        # How many samples of the output apart the elements of a phase are: on a grid that is asked for, they see every
        # so many-th frequency only.
        spread = [d // a for d, a in zip(dilations or [1] * len(kernel), apart, strict=True)]
        return cls(steps, extents, [grid // gcd(grid, s) for s in spread] if grid else default_points(extents))


def operator_norms(w: FloatArray, strides: list[int] | None = None, grid: int | None = None,
                   dilations: list[int] | None = None) -> FloatArray:  # fmt: skip
    """Operator norms of kernel slices w [out, in, k…], without the zeros that a dilation puts between its elements.

    ``grid``: the maximum is that over the points of a discrete Fourier transform of so many points per axis, as if
    the (dilated) slice were padded with zeros; by default as many as keep the error below 1 %.
    """
    return _norms(w, _Grid.of(w.shape[2:], strides, grid, dilations))


def _norms(w: FloatArray, grid: _Grid, like: int = 0) -> FloatArray:
    """[out, in]; computed as those of so many kernels are (``like``), if that are more."""
    kernel = w.shape[2:]
    if all(k == 1 for k in kernel):
        return np.abs(w.reshape(w.shape[:2]))
    rows = w.reshape(-1, *kernel)
    phases = [
        rows[(slice(None), *(slice(p, None, s) for p, s in zip(phase, grid.steps, strict=True)))]
        for phase in product(*(range(min(s, k)) for s, k in zip(grid.steps, kernel, strict=True)))
    ]
    found = largest_energy(phases, grid.points, like)
    return np.sqrt(np.maximum(found, 0, out=found), out=found).reshape(w.shape[:2])


NORMS: dict[str, Callable[[ChannelMap, Contraction], FloatArray]] = {
    "operator": operator_block,
    "l1": l1_block,
    "l2": frobenius_block,
    "frobenius": frobenius_block,
    "nuclear": nuclear_block,
}
"""Name → norms of all kernel slices of a contraction, [out, in per group]. L2 and Frobenius are the same number."""
