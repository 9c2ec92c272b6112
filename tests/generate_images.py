"""Steps of a random model for images [N, C, H, W] and sequences [N, C, L].

A step appends nodes and returns the new tensor, several, or None where it does not apply to these sizes.
"""

from __future__ import annotations

import numpy as np
from generate import Builder, Value
from generate_any import activation, reduced, resized, squeeze_all
from generate_vectors import gemm_to

__all__ = [
    "batch_norm",
    "channels_last",
    "conv",
    "conv_transpose",
    "depth_to_space",
    "flatten",
    "group_norm",
    "instance_norm",
    "local_response",
    "pool",
    "pooled_head",
    "prelu",
    "residual",
    "resize",
    "space_to_depth",
    "spatial_gate",
    "squeeze_excite",
    "to_tokens",
    "to_vector",
]


def conv(b: Builder, x: Value) -> Value:
    """Plain, grouped, depthwise, with multiplier; strides, dilations and uneven padding."""
    space = x.shape[2:]
    groups = b.pick([g for g in range(1, x.shape[1] + 1) if x.shape[1] % g == 0]) if b.chance(2) else 1
    width, out = x.shape[1] // groups, groups * b.size(1, max(1, 8 // groups))
    kernel = [b.size(1, min(3, n)) for n in space]
    dilation = [b.size(1, 2) if 2 * (k - 1) < n else 1 for k, n in zip(kernel, space, strict=True)]
    stride = [b.size(1, 2) if n > 3 else 1 for n in space]
    pads = [b.size(0, 1) for _ in range(2 * len(space))]
    sizes = [
        (n + pads[i] + pads[i + len(space)] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, n in enumerate(space)
    ]
    fan = width * int(np.prod(kernel))
    inputs: list[Value | str] = [x, b.weight((out, width, *kernel), fan)]
    if b.chance(2):
        inputs.append(b.vector(out))
    return b.node("Conv", inputs, (x.shape[0], out, *sizes), group=groups, kernel_shape=kernel, strides=stride,
                  dilations=dilation, pads=pads)  # fmt: skip


def conv_transpose(b: Builder, x: Value) -> Value | None:
    space = x.shape[2:]
    if max(space) > 10:
        return None
    groups = b.pick([g for g in range(1, x.shape[1] + 1) if x.shape[1] % g == 0]) if b.chance(2) else 1
    out = b.size(1, max(1, 8 // groups))
    kernel, stride = [b.size(1, 3) for _ in space], [b.size(1, 2) for _ in space]
    sizes = [(n - 1) * s + k for n, s, k in zip(space, stride, kernel, strict=True)]
    fan = x.shape[1] // groups * int(np.prod(kernel))
    inputs: list[Value | str] = [x, b.weight((x.shape[1], out, *kernel), fan)]
    if b.chance(2):
        inputs.append(b.vector(out * groups))
    return b.node("ConvTranspose", inputs, (x.shape[0], out * groups, *sizes), group=groups, kernel_shape=kernel,
                  strides=stride)  # fmt: skip


def residual(b: Builder, x: Value) -> Value:
    """x + Conv 1×1 of x, with an activation between."""
    size = x.shape[1]
    inner = b.node("Conv", [x, b.weight((size, size, *(1,) * (x.rank - 2)), size), b.vector(size)])
    return b.node("Add", [activation(b, inner), x])


def batch_norm(b: Builder, x: Value) -> Value:
    size = x.shape[1]
    variance = b.constant(np.asarray(b.rng.random(size) + 0.5, b.dtype))
    vectors = [b.vector(size), b.vector(size), b.vector(size), variance]
    return b.node("BatchNormalization", [x, *vectors], epsilon=1e-3)


def instance_norm(b: Builder, x: Value) -> Value:
    size = x.shape[1]
    return b.node("InstanceNormalization", [x, b.vector(size), b.vector(size)], epsilon=0.1)


def group_norm(b: Builder, x: Value) -> Value:
    """As an operator (its parameters per group in opset 18, per channel in 21), or written out."""
    size = x.shape[1]
    groups = b.pick([g for g in range(1, size + 1) if size % g == 0])
    if b.opset >= 21:
        return b.node("GroupNormalization", [x, b.vector(size), b.vector(size)], num_groups=groups, epsilon=0.1)
    flat = b.reshape(x, (x.shape[0], groups, int(np.prod(x.shape[1:])) // groups))
    ones, zeros = b.constant(np.ones(groups, b.dtype)), b.constant(np.zeros(groups, b.dtype))
    normal = b.reshape(b.node("InstanceNormalization", [flat, ones, zeros], epsilon=0.1), x.shape)
    ends = (1,) * (x.rank - 2)
    scaled = b.node("Mul", [normal, b.constant(b.numbers([size, *ends]))])
    return b.node("Add", [scaled, b.constant(b.numbers([size, *ends]))])


def local_response(b: Builder, x: Value) -> Value:
    return b.node("LRN", [x], size=3, alpha=0.1)


def prelu(b: Builder, x: Value) -> Value:
    shape = b.pick(([1], [x.shape[1], *(1,) * (x.rank - 2)]))
    return b.node("PRelu", [x, b.constant(b.numbers(shape, 0.5))])


def pool(b: Builder, x: Value) -> Value | None:
    op = b.pick(("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"))
    space = x.shape[2:]
    if op.startswith("Global"):
        pooled = b.node(op, [x], (*x.shape[:2], *(1,) * len(space)))
        return squeeze_all(b, pooled) or pooled
    if min(space) < 2:
        return None
    pads = [b.size(0, 1) if op != "LpPool" else 0] * (2 * len(space))
    stride = b.size(1, 2)
    sizes = [(n + 2 * pads[0] - 2) // stride + 1 for n in space]
    attrs = {"count_include_pad": b.size(0, 1)} if op == "AveragePool" else {}
    return b.node(op, [x], (*x.shape[:2], *sizes), kernel_shape=[2] * len(space), strides=[stride] * len(space),
                  pads=pads, **attrs)  # fmt: skip


def pooled_head(b: Builder, x: Value) -> Value:
    """Channels of their own, their means or maxima, and a Gemm on these."""
    wide, ends = b.size(2, 6), (1,) * (x.rank - 2)
    y = b.node("Conv", [x, b.weight((wide, x.shape[1], *ends), x.shape[1])], resized(x.shape, 1, wide))
    pooled = b.node(b.pick(("GlobalAveragePool", "GlobalMaxPool")), [y], (x.shape[0], wide, *ends))
    flat = squeeze_all(b, pooled) or b.node("Flatten", [pooled], (x.shape[0], wide))
    return gemm_to(b, flat, b.size(1, 6))


def resize(b: Builder, x: Value) -> Value | None:
    """By scales or by sizes; an Upsample before opset 10."""
    if x.rank != 4 or max(x.shape[2:]) > 8:
        return None
    shape = (*x.shape[:2], *(2 * n for n in x.shape[2:]))
    scales = b.constant(np.array([1, 1, 2, 2], np.float32))
    mode = b.pick(("nearest", "linear"))
    if b.opset < 9:
        return b.node("Upsample", [x], shape, mode=mode, scales=[1.0, 1.0, 2.0, 2.0])
    if b.opset < 11:
        return b.node("Upsample" if b.opset < 10 else "Resize", [x, scales], shape, mode=mode)
    empty = b.constant(np.zeros(0, np.float32)) if b.opset < 13 else ""
    if b.opset >= 18 and b.chance(2):
        return b.node("Resize", [x, "", "", b.ints(*shape[2:])], shape, mode=mode, axes=[2, 3])
    if b.open_batch or b.chance(2):
        return b.node("Resize", [x, empty, scales], shape, mode=mode)
    return b.node("Resize", [x, empty, empty, b.ints(*shape)], shape, mode=mode)


def depth_to_space(b: Builder, x: Value) -> Value | None:
    if x.rank != 4 or max(x.shape[2:]) > 8:
        return None
    if x.shape[1] % 4:
        wide = 4 * b.size(1, 3)
        x = b.node("Conv", [x, b.weight((wide, x.shape[1], 1, 1), x.shape[1])], resized(x.shape, 1, wide))
    shape = (x.shape[0], x.shape[1] // 4, 2 * x.shape[2], 2 * x.shape[3])
    if b.opset < 11:
        return b.node("DepthToSpace", [x], shape, blocksize=2)
    return b.node("DepthToSpace", [x], shape, blocksize=2, mode=b.pick(("DCR", "CRD")))


def space_to_depth(b: Builder, x: Value) -> Value | None:
    if x.rank != 4 or x.shape[2] % 2 or x.shape[3] % 2 or x.shape[1] > 6:
        return None
    shape = (x.shape[0], x.shape[1] * 4, x.shape[2] // 2, x.shape[3] // 2)
    return b.node("SpaceToDepth", [x], shape, blocksize=2)


def squeeze_excite(b: Builder, x: Value) -> Value:
    """x times a gate per channel, made of its means by two layers."""
    size, inner, ends = x.shape[1], b.size(1, 4), (1,) * (x.rank - 2)
    mean = b.node("GlobalAveragePool", [x], (*x.shape[:2], *ends))
    if b.chance(2):
        flat = b.node("Flatten", [mean], x.shape[:2])
        gate: Value = gemm_to(b, activation(b, gemm_to(b, flat, inner)), size)
        return b.node("Mul", [x, b.reshape(b.node("Sigmoid", [gate]), (x.shape[0], size, *ends))])
    low = b.node("Conv", [mean, b.weight((inner, size, *ends), size), b.vector(inner)], (x.shape[0], inner, *ends))
    high = b.node("Conv", [activation(b, low), b.weight((size, inner, *ends), inner)], (*x.shape[:2], *ends))
    return b.node("Mul", [x, b.node(b.pick(("Sigmoid", "HardSigmoid")), [high])])


def spatial_gate(b: Builder, x: Value) -> Value:
    """x times one map for all channels."""
    low = b.node("Conv", [x, b.weight((1, x.shape[1], *(1,) * (x.rank - 2)), x.shape[1])], resized(x.shape, 1, 1))
    return b.node("Mul", [x, b.node("Sigmoid", [low])])


def channels_last(b: Builder, x: Value) -> Value:
    """A product with a weight on the channels at the end."""
    last = b.transpose(x, 0, *range(2, x.rank), 1)
    out = b.size(1, 8)
    mixed = b.node("MatMul", [last, b.weight((x.shape[1], out), x.shape[1])], (*last.shape[:-1], out))
    return b.transpose(mixed, 0, x.rank - 1, *range(1, x.rank - 1))


def flatten(b: Builder, x: Value) -> Value:
    size = int(np.prod(x.shape[1:]))
    flat = b.node("Flatten", [x], (x.shape[0], size)) if b.chance(2) else b.reshape(x, (x.shape[0], size))
    return gemm_to(b, flat, b.size(2, 10))


def to_tokens(b: Builder, x: Value) -> Value:
    return b.transpose(b.reshape(x, (*x.shape[:2], int(np.prod(x.shape[2:])))), 0, 2, 1)


def to_vector(b: Builder, x: Value) -> Value:
    axes = range(2, x.rank) if x.rank == 4 else [b.size(1, 2)]
    return reduced(b, x, "ReduceMean", *axes, keep=0)
