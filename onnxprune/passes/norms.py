"""Norms of kernel slices: one number for each pair of input and output channel of a contraction.

A kernel slice is a convolution from one channel to another, and its operator norm is the largest magnitude of its
Fourier transform, max over ω of |Σₓ w[x]·e^(−iωx)| (Schoonhoven et al. 2020, section 3.1). A stride s keeps every s-th
sample, so the slice splits into its s phases (polyphase components) ŵₚ, and the norm is max √Σₚ|ŵₚ|². Dilation only
rescales the frequencies and leaves the maximum as it is; a 1×1 kernel or a matrix entry has norm |w|.

The maximum is taken on a grid. On n points per axis, a kernel of extent k is underestimated by at most
1 − cos(π(k−1)/(2n)) per axis, so n = 16·(k−1) keeps the error below 0.5 % per axis. All slices of a layer are
transformed at once as a product with the (small) Fourier matrix of the grid.
"""

from __future__ import annotations

from itertools import product
from math import ceil

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import ChannelMap, Contraction
from onnxprune.graph import attribute
from onnxprune.weights import weight_values

__all__ = ["FloatArray", "frobenius_block", "operator_block", "operator_norms", "slices"]

FloatArray = NDArray[np.floating]

_CHUNK = 1 << 24  # numbers in a block of transformed slices: bounds the memory


def slices(channel_map: ChannelMap, c: Contraction) -> FloatArray:
    """The weight as [out, in per group, kernel elements…], whatever the operator's layout."""
    values = weight_values(channel_map.graph, channel_map.graph.nodes[c.node].input[c.weight])
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32)
    if values.ndim > 2 and channel_map.graph.nodes[c.node].op_type == "MatMul":
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
    return np.sqrt(np.einsum("oik,oik->oi", flat, flat))


def operator_block(channel_map: ChannelMap, c: Contraction) -> FloatArray:
    """Operator norm of every kernel slice, [out, in per group]."""
    node = channel_map.graph.nodes[c.node]
    w = slices(channel_map, c)
    if w.ndim == 2:
        return np.abs(w)
    if node.op_type == "MatMul":
        return np.abs(w).max(axis=tuple(range(2, w.ndim)))
    strides = attribute(node, "strides")
    return operator_norms(w, strides if isinstance(strides, list) else None)


def operator_norms(w: FloatArray, strides: list[int] | None = None, grid: int | None = None) -> FloatArray:
    """Operator norms of kernel slices w [out, in, k…]; ``grid`` points per axis (default: error below 1 %)."""
    kernel = w.shape[2:]
    if all(k == 1 for k in kernel):
        return np.abs(w.reshape(w.shape[:2]))
    steps = strides or [1] * len(kernel)
    squares: FloatArray | None = None
    points = _points(kernel, steps, grid)
    for phase in product(*(range(min(s, k)) for s, k in zip(steps, kernel, strict=True))):
        part = w[(slice(None), slice(None), *(slice(p, None, s) for p, s in zip(phase, steps, strict=True)))]
        energy = _energies(np.ascontiguousarray(part).reshape(-1, int(np.prod(part.shape[2:]))), part.shape[2:], points)
        squares = energy if squares is None else squares + energy
    assert squares is not None
    return np.sqrt(squares.max(axis=1)).reshape(w.shape[:2])


def _points(kernel: tuple[int, ...], steps: list[int], grid: int | None) -> list[int]:
    """Frequencies per axis; the first axis needs only half of them (the kernel is real)."""
    extents = [ceil(k / s) for k, s in zip(kernel, steps, strict=True)]
    return [grid or max(1, 16 * (extent - 1)) for extent in extents]


def _energies(flat: FloatArray, kernel: tuple[int, ...], points: list[int]) -> FloatArray:
    """|Fourier transform|² of each row of ``flat`` [slices, elements] at every grid point."""
    phases = [
        np.outer(np.arange(k), 2 * np.pi * np.arange(n // 2 + 1 if axis == 0 else n) / n)
        for axis, (k, n) in enumerate(zip(kernel, points, strict=True))
    ]
    angle = np.zeros((1, 1))
    for phase in phases:
        angle = (angle[:, None, :, None] + phase[None, :, None, :]).reshape(
            angle.shape[0] * phase.shape[0], angle.shape[1] * phase.shape[1]
        )
    cosine, sine = np.cos(angle).astype(flat.dtype), np.sin(angle).astype(flat.dtype)
    result = np.empty((len(flat), angle.shape[1]), flat.dtype)
    step = max(1, _CHUNK // angle.shape[1])
    for start in range(0, len(flat), step):
        rows = flat[start : start + step]
        result[start : start + step] = (rows @ cosine) ** 2 + (rows @ sine) ** 2
    return result


def error_bound(kernel: tuple[int, ...], points: list[int]) -> float:
    """Largest relative underestimate of ``operator_norms`` on a grid of ``points`` per axis."""
    return 1 - float(np.prod([np.cos(np.pi * (k - 1) / (2 * n)) for k, n in zip(kernel, points, strict=True)]))
