"""Steps of a random model for vectors [N, D].

A step appends nodes and returns the new tensor, several, or None where it does not apply to these sizes.
"""

from __future__ import annotations

from math import gcd

import numpy as np
from generate import Builder, Value

__all__ = [
    "gemm",
    "gemm_to",
    "unflatten",
]


def gemm_to(b: Builder, x: Value, out: int) -> Value:
    """With and without transposition, bias of several shapes."""
    size = x.shape[1]
    flip = b.size(0, 1)
    inputs: list[Value | str] = [x, b.weight((out, size) if flip else (size, out), size)]
    bias = b.pick(("none", "vector", "row", "scalar")) if b.opset >= 11 else "vector"
    if bias == "vector":
        inputs.append(b.vector(out))
    elif bias != "none":
        inputs.append(b.constant(b.numbers([1, out] if bias == "row" else [1], 0.5)))
    if b.chance(4):
        return b.node("Gemm", [b.transpose(x, 1, 0), *inputs[1:]], (x.shape[0], out), transA=1, transB=flip)
    return b.node("Gemm", inputs, (x.shape[0], out), transB=flip, alpha=b.pick((1.0, 0.5)))


def gemm(b: Builder, x: Value) -> Value:
    return gemm_to(b, x, b.size(1, 12))


def unflatten(b: Builder, x: Value) -> Value | None:
    """[N, D] → [N, C, h, w] or [N, C, L]."""
    size = x.shape[1]
    if b.dtype == np.float32 and size % 4 == 0 and b.chance(2):
        return b.reshape(x, (x.shape[0], size // 4, 2, 2))
    part = gcd(size, b.pick((2, 3)))
    return b.reshape(x, (x.shape[0], size // part, part)) if part > 1 else None
