"""What a random model can do next with a tensor: one small function a step, listed by the rank it takes.

A step appends nodes and returns the new tensor, several, or None where it does not apply to these sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd

import numpy as np
from generate import Builder, Choices, Seeded, Step, Value, grow
from onnx import ModelProto

__all__ = ["random_model"]


def random_model(choices: Choices | int) -> ModelProto:
    """A model from a seed, or from the decisions of hypothesis."""
    return grow(Seeded(choices) if isinstance(choices, int) else choices, stem, steps, close)


# ---- any rank -------------------------------------------------------------------------------------------------------


def activation(b: Builder, x: Value) -> Value:
    names = ["Relu", "Sigmoid", "Tanh", "Softplus", "LeakyRelu", "Elu", "HardSigmoid", "Neg", "Abs", "Softsign", "Exp", "Cos"]
    if b.dtype == np.float64:  # what ONNX Runtime has for double
        names = ["Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Exp", "Sigmoid"]
    op = b.pick(names)
    return b.node(op, [b.node("Tanh", [x]) if op == "Exp" else x])


def clip(b: Builder, x: Value) -> Value:
    low = b.pick((-0.5, 0.0, 0.25))
    if b.opset < 11 or b.dtype == np.float64:
        return b.node("Clip", [x], min=low, max=1.5) if b.opset < 11 and b.dtype == np.float32 else activation(b, x)
    return b.node("Clip", [x, b.constant(low), b.constant(1.5)])


def with_constant(b: Builder, x: Value) -> Value:
    """x ∘ constant, the constant broadcast in one of several ways."""
    op = b.pick(("Add", "Sub", "Mul", "Max", "Min", "Div"))
    axis = 1 if x.rank == 4 or b.chance(3) else x.rank - 1
    along = [x.shape[a] if a == axis else 1 for a in range(x.rank)]
    shape = b.pick(([], [1], along[axis:], along, [*along[:-1], x.shape[-1]], [1, *x.shape[1:]]))
    values = b.numbers(shape, 0.5)
    constant = b.constant(np.asarray(np.abs(values) + 0.5, b.dtype) if op == "Div" else values)
    if b.chance(4) and op != "Div":
        return b.node(op, [constant, x], x.shape)
    return b.node(op, [x, constant])


def with_shared_vector(b: Builder, x: Value) -> Value:
    """A per-channel Add or Mul with a vector that other nodes may read too."""
    vector = b.vector(x.shape[1])
    shape = (x.shape[1], *(1,) * (x.rank - 2))
    if x.rank > 2:
        vector = b.node("Reshape", [vector, b.ints(*shape)], shape).name
    return b.node(b.pick(("Add", "Mul")), [x, vector])


def with_other(b: Builder, x: Value) -> Value | None:
    """Two tensors of the same shape."""
    others = b.like(x)
    op = b.pick(("Add", "Add", "Mul", "Sub", "Max", "Sum", "Mean", "Where"))
    y = b.pick(others)
    if op in ("Add", "Mul", "Sub"):
        return b.node(op, [x, y])
    if b.dtype == np.float64 and op in ("Max", "Mean"):
        return b.node("Add", [x, y])
    if op != "Where":
        return b.node(op, [x, y, b.pick(others)] if b.chance(2) else [x, y])
    shape = b.pick(([1, *x.shape[1:]], [1] * (x.rank - 1) + [x.shape[-1]]))
    condition = b.constant(b.rng.random(shape) < 0.5)
    return b.node("Where", [condition, x, y] if b.chance(2) else [condition, x, b.constant(-1.0)], x.shape)


def broadcast_branches(b: Builder, x: Value) -> Value:
    """A tensor times its own mean: over space, or over the channels."""
    axis = b.size(1, x.rank - 1)
    op = b.pick(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2"))
    return b.node(b.pick(("Mul", "Add")), [x, reduced(b, x, op, axis)])


def reduced(b: Builder, x: Value, op: str, *axes: int, keep: int = 1) -> Value:
    """A reduction: its axes are an attribute, or (ReduceSum from opset 13, all from 18) an input."""
    shape = [1 if a in axes else n for a, n in enumerate(x.shape) if keep or a not in axes]
    if b.opset >= 18 or (b.opset >= 13 and op == "ReduceSum"):
        return b.node(op, [x, b.ints(*axes)], shape, keepdims=keep)
    return b.node(op, [x], shape, axes=list(axes), keepdims=keep)


def channel_sum(b: Builder, x: Value) -> Value:
    """A tensor and the sum over its channels, which is exact only where removed channels are zero."""
    y = bent(b, x)
    axis = 1 if x.rank == 4 else b.pick((1, x.rank - 1))
    return b.node(b.pick(("Mul", "Sub")), [x, reduced(b, y, b.pick(("ReduceSum", "ReduceL1")), axis)])


def similarity(b: Builder, x: Value) -> Value:
    """f(x)·g(y)ᵀ over the channels of tokens or vectors, softened by Tanh."""
    others = [v for v in b.like(x) if v.rank in (2, 3)]
    left, right = bent(b, x), bent(b, b.pick(others) if others else x)
    if x.rank == 2:
        turned, shape = b.transpose(right, 1, 0), (x.shape[0], x.shape[0])
        return b.node("MatMul", [b.node("Tanh", [b.node("MatMul", [left, turned], shape)]), x], x.shape)
    shape = (*x.shape[:-2], x.shape[-2], x.shape[-2])
    turned = b.transpose(right, *range(x.rank - 2), x.rank - 1, x.rank - 2)
    return b.node("MatMul", [b.node("Tanh", [b.node("MatMul", [left, turned], shape)]), x], x.shape)


def bent(b: Builder, x: Value) -> Value:
    """x, or up to two element-wise functions of it."""
    for _ in range(b.size(0, 2)):
        x = b.pick((activation, clip, with_constant, with_other, pass_through))(b, x)
    return x


def unit_norm(b: Builder, x: Value) -> Value:
    """x / √(Σ x² + 1) over one axis."""
    total = reduced(b, b.node("Mul", [x, x]), "ReduceSum", b.size(1, x.rank - 1))
    root = b.node("Sqrt", [b.node("Add", [total, b.constant(1.0)])])
    return b.node("Div", [x, root])


def ratio(b: Builder, x: Value) -> Value:
    """A denominator that is positive everywhere."""
    below = b.node("Add", [b.node(b.pick(("Sigmoid", "Exp")), [b.node("Tanh", [x])]), b.constant(0.5)])
    return b.node(b.pick(("Div", "Mul")), [b.pick(b.like(x)), below])


def power(b: Builder, x: Value) -> Value:
    if b.chance(2):
        return b.node("Pow", [b.node("Tanh", [x]), b.constant(2.0)])
    return b.node("Sqrt", [b.node("Abs", [x])])


def softmax(b: Builder, x: Value) -> Value:
    return b.node(b.pick(("Softmax", "LogSoftmax")), [x], axis=b.size(1, x.rank - 1))


def concat(b: Builder, x: Value) -> Value:
    """Along any axis but the batch; an operand may be a constant, or twice the same."""
    axis = 1 if b.chance(2) else b.size(1, x.rank - 1)
    fits = [v for v in (x, *b.values) if v.rank == x.rank and _but(v.shape, axis) == _but(x.shape, axis)]
    parts: list[Value] = [x, *(b.pick(fits) for _ in range(b.size(1, 2)))]
    size = sum(v.shape[axis] for v in parts)
    inputs: list[Value | str] = list(parts)
    if not b.open_batch and b.chance(5):
        inputs.append(b.constant(b.numbers(_with(x.shape, axis, 2))))
        size += 2
    return b.node("Concat", inputs, _with(x.shape, axis, size), axis=axis - x.rank if b.opset >= 11 and b.chance(4) else axis)


def split(b: Builder, x: Value) -> list[Value] | None:
    axis = 1 if b.chance(2) else x.rank - 1
    size = x.shape[axis]
    if size < 2:
        return None
    first = b.size(1, size - 1) if b.chance(2) or size % 2 else size // 2
    sizes = [first, size - first]
    shapes = [_with(x.shape, axis, n) for n in sizes]
    if sizes[0] == sizes[1] and b.chance(2):
        attrs = {"num_outputs": 2} if b.opset >= 18 else {}
        return b.split("Split", [x], shapes, axis=axis, **attrs)
    if b.opset < 13:
        return b.split("Split", [x], shapes, axis=axis, split=sizes)
    return b.split("Split", [x, b.ints(*sizes)], shapes, axis=axis)


def slice_(b: Builder, x: Value) -> Value | None:
    """One or two axes, negative bounds and steps."""
    axes = sorted({b.size(1, x.rank - 1), b.size(1, x.rank - 1)})
    starts, ends, steps, shape = [], [], [], list(x.shape)
    for a in axes:
        step = b.pick((1, 1, 2, -1)) if b.opset >= 10 else 1
        low = b.size(0, x.shape[a] - 1)
        high = b.size(low + 1, x.shape[a])
        count = len(range(low, high, abs(step)))
        start, end = (low, b.pick((high, high - x.shape[a] or 2**31 - 1))) if step > 0 else (
            high - 1, low - 1 - x.shape[a] if low == 0 or b.chance(2) else low - 1)  # fmt: skip
        starts.append(start - x.shape[a] if b.chance(3) else start)
        ends.append(end)
        steps.append(step)
        shape[a] = count
    if b.opset < 10:
        return b.node("Slice", [x], shape, axes=axes, starts=starts, ends=ends)
    inputs = [x, b.ints(*starts), b.ints(*ends), b.ints(*axes), b.ints(*steps)]
    return b.node("Slice", inputs if any(s != 1 for s in steps) else inputs[:4], shape)


def gather(b: Builder, x: Value) -> Value:
    """Indices in another order, some of them twice or not at all."""
    axis = 1 if b.chance(2) else x.rank - 1
    size = x.shape[axis]
    chosen = b.rng.integers(-size, size, b.size(1, size + 2)) if b.chance(2) else b.rng.permutation(size)
    return b.node("Gather", [x, b.ints(*chosen.tolist())], _with(x.shape, axis, len(chosen)), axis=axis)


def pad(b: Builder, x: Value) -> Value:
    mode = b.pick(("constant", "constant", "edge", "reflect"))
    amounts = [0] * (2 * x.rank)
    for a in range(1, x.rank):
        most = 0 if b.dtype == np.float64 and mode != "constant" else min(2, x.shape[a] - 1)
        if b.chance(2):
            amounts[a], amounts[a + x.rank] = b.size(0, most), b.size(0, most)
    shape = [n + amounts[a] + amounts[a + x.rank] for a, n in enumerate(x.shape)]
    value = b.pick((0.0, 0.5))
    if b.opset < 11:
        return b.node("Pad", [x], shape, pads=amounts, mode=mode, value=value)
    inputs: list[Value | str] = [x, b.ints(*amounts)]
    if value:
        inputs.append(b.constant(value))
    return b.node("Pad", inputs, shape, mode=mode)


def tile(b: Builder, x: Value) -> Value:
    axis, times = b.size(1, x.rank - 1), b.size(1, 2)
    if x.shape[axis] > 12:
        times = 1
    repeats = [times if a == axis else 1 for a in range(x.rank)]
    return b.node("Tile", [x, b.ints(*repeats)], _with(x.shape, axis, x.shape[axis] * times))


def pass_through(b: Builder, x: Value) -> Value:
    op = b.pick(("Identity", "Dropout", "Expand", "Squeeze", "Cast"))
    if op == "Expand":
        target = [1 if b.open_batch else x.shape[0], *x.shape[1:]]
        return b.node("Expand", [x, b.ints(*(target[1:] if b.chance(2) else target))])
    if op == "Squeeze":
        wide = (*x.shape[:1], 1, *x.shape[1:])
        if b.opset < 13:
            return b.node("Squeeze", [b.node("Unsqueeze", [x], wide, axes=[1])], x.shape, axes=[1])
        return b.node("Squeeze", [b.node("Unsqueeze", [x, b.ints(1)], wide), b.ints(1)], x.shape)
    if op == "Cast":
        return b.node("Cast", [x], to=11 if b.dtype == np.float64 else 1)
    return b.node(op, [x])


def squeeze_all(b: Builder, x: Value) -> Value | None:
    """A Squeeze that does not name its axes."""
    left = [n for n in x.shape if n != 1]
    if b.open_batch or x.shape[0] == 1 or len(left) not in (2, 3) or len(left) == x.rank:
        return None
    return b.node("Squeeze", [x], left)


def shuffle(b: Builder, x: Value) -> Value | None:
    """Reshape, Transpose, Reshape: the channels of axis 1 in another order."""
    factors = [g for g in range(2, x.shape[1]) if x.shape[1] % g == 0]
    if not factors:
        return None
    g = b.pick(factors)
    parts = b.reshape(x, (x.shape[0], g, x.shape[1] // g, *x.shape[2:]))
    return b.reshape(b.transpose(parts, 0, 2, 1, *range(3, x.rank + 1)), x.shape)


def _but(shape: Sequence[int], axis: int) -> list[int]:
    return [n for a, n in enumerate(shape) if a != axis]


def _with(shape: Sequence[int], axis: int, size: int) -> list[int]:
    return [size if a == axis else n for a, n in enumerate(shape)]


# ---- images [N, C, H, W] and sequences [N, C, L] --------------------------------------------------------------------


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
    inputs = [x, b.weight((out, width, *kernel), fan)]
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
    inputs = [x, b.weight((x.shape[1], out, *kernel), x.shape[1] // groups * int(np.prod(kernel)))]
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
    y = b.node("Conv", [x, b.weight((wide, x.shape[1], *ends), x.shape[1])], _with(x.shape, 1, wide))
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
        x = b.node("Conv", [x, b.weight((wide, x.shape[1], 1, 1), x.shape[1])], _with(x.shape, 1, wide))
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
    low = b.node("Conv", [x, b.weight((1, x.shape[1], *(1,) * (x.rank - 2)), x.shape[1])], _with(x.shape, 1, 1))
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


# ---- tokens [N, L, D] -----------------------------------------------------------------------------------------------


def linear(b: Builder, x: Value) -> Value:
    out = b.size(1, 10)
    y = b.node("MatMul", [x, b.weight((x.shape[-1], out), x.shape[-1])], (*x.shape[:-1], out))
    return b.node("Add", [y, b.vector(out)]) if b.chance(2) else y


def mix_tokens(b: Builder, x: Value) -> Value:
    """A weight from the left: over the tokens."""
    out = b.size(1, 8)
    return b.node("MatMul", [b.weight((out, x.shape[1]), x.shape[1]), x], (x.shape[0], out, x.shape[2]))


def gated(b: Builder, x: Value) -> Value:
    """GLU: one half times the sigmoid of the other."""
    half = b.size(1, 6)
    wide = b.node("MatMul", [x, b.weight((x.shape[-1], 2 * half), x.shape[-1])], (*x.shape[:-1], 2 * half))
    shape = (*x.shape[:-1], half)
    attrs = {"num_outputs": 2} if b.opset >= 18 else {}
    left, right = b.split("Split", [wide], [shape, shape], axis=x.rank - 1, **attrs)
    return b.node("Mul", [left, b.node("Sigmoid", [right])])


def layer_norm(b: Builder, x: Value) -> Value:
    if b.opset < 17:
        return linear(b, x)
    return b.node("LayerNormalization", [x, b.vector(x.shape[-1]), b.vector(x.shape[-1])], axis=-1, epsilon=0.1)


def projection(b: Builder, x: Value, out: int) -> Value:
    y = b.node("MatMul", [x, b.weight((x.shape[-1], out), x.shape[-1])], (*x.shape[:-1], out))
    y = b.node("Add", [y, b.vector(out)]) if b.chance(2) else y
    return activation(b, y) if b.chance(4) else y


def attention(b: Builder, x: Value) -> Value:
    """Heads apart, q·kᵀ, softmax, ·v, heads together, projection."""
    heads, width = b.size(1, 3), b.size(1, 4)
    n, length, size = x.shape
    q, k, v = _fused_qkv(b, x, heads, width) if b.chance(2) else [_one_of_qkv(b, x, heads, width) for _ in range(3)]
    keys = b.transpose(k, 0, 1, 3, 2)
    scores = b.node("MatMul", [q, keys], (n, heads, length, length))
    scaled = b.node("Mul", [scores, b.constant(0.5)])
    if b.chance(3):
        scaled = b.node("Add", [scaled, b.constant(b.numbers((1, heads, length, length)))])
    weights = b.node("Softmax", [scaled], axis=3)
    seen = b.transpose(b.node("MatMul", [weights, v], (n, heads, length, width)), 0, 2, 1, 3)
    out = projection(b, b.reshape(seen, (n, length, heads * width)), size)
    return b.node("Add", [x, out]) if b.chance(2) else out


def _one_of_qkv(b: Builder, x: Value, heads: int, width: int) -> Value:
    n, length, _ = x.shape
    return b.transpose(b.reshape(projection(b, x, heads * width), (n, length, heads, width)), 0, 2, 1, 3)


def _fused_qkv(b: Builder, x: Value, heads: int, width: int) -> list[Value]:
    n, length, _ = x.shape
    wide = projection(b, x, 3 * heads * width)
    parts = b.transpose(b.reshape(wide, (n, length, 3, heads, width)), 2, 0, 3, 1, 4)
    index = [b.constant(np.array(i, np.int64)) for i in range(3)]
    return [b.node("Gather", [parts, i], (n, heads, length, width), axis=0) for i in index]


def merged_heads(b: Builder, x: Value) -> Value:
    """Heads moved into the batch and back."""
    heads, width = b.size(1, 3), b.size(1, 3)
    n, length, _ = x.shape
    apart = _one_of_qkv(b, x, heads, width)
    joint = activation(b, b.reshape(apart, (n * heads, length, width)))
    mixed = b.node("MatMul", [joint, b.transpose(joint, 0, 2, 1)], (n * heads, length, length))
    back = b.node("MatMul", [b.node("Softmax", [mixed], axis=2), joint], (n * heads, length, width))
    return b.reshape(b.transpose(b.reshape(back, (n, heads, length, width)), 0, 2, 1, 3), (n, length, heads * width))


def swap_axes(b: Builder, x: Value) -> Value:
    return b.transpose(x, 0, 2, 1)


def to_image(b: Builder, x: Value) -> Value | None:
    side = int(np.sqrt(x.shape[1]))
    if b.dtype == np.float64 or side * side != x.shape[1] or side < 2:
        return None
    return b.reshape(b.transpose(x, 0, 2, 1), (x.shape[0], x.shape[2], side, side))


# ---- vectors [N, D] -------------------------------------------------------------------------------------------------


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


# ---- which steps fit ------------------------------------------------------------------------------------------------

_ANY: tuple[Step, ...] = (
    activation, activation, clip, with_constant, with_constant, with_other, with_other, broadcast_branches, unit_norm,
    ratio, power, softmax, concat, concat, split, slice_, slice_, gather, pad, tile, pass_through, shuffle,
    with_shared_vector, squeeze_all, channel_sum, channel_sum, similarity,
)  # fmt: skip
_IMAGE: tuple[Step, ...] = (
    conv, conv, conv, conv, conv, conv_transpose, conv_transpose, residual, batch_norm, batch_norm, instance_norm,
    group_norm, local_response, prelu, pool, pool, resize, depth_to_space, depth_to_space, space_to_depth, squeeze_excite, squeeze_excite,
    spatial_gate, channels_last, flatten, pooled_head, to_tokens, to_vector,
)  # fmt: skip
_SEQUENCE: tuple[Step, ...] = (conv, conv_transpose, batch_norm, group_norm, prelu, pool, squeeze_excite, residual, pooled_head)
_TOKENS: tuple[Step, ...] = (
    linear, linear, mix_tokens, gated, layer_norm, attention, attention, merged_heads, swap_axes, to_image, to_vector,
    flatten,
)  # fmt: skip
_VECTOR: tuple[Step, ...] = (gemm, gemm, gemm, linear, gated, unflatten, unflatten, batch_norm)


def steps(b: Builder, x: Value) -> Sequence[Step]:
    """What can be appended to a tensor."""
    if x.rank == 4:
        return (*_ANY, *_IMAGE)
    if x.rank == 3:
        return (*_ANY, *_TOKENS, *(_SEQUENCE if b.dtype == np.float32 else ()))
    return (*_ANY, *_VECTOR) if x.rank == 2 else (pass_through,)


def stem(b: Builder, x: Value) -> Value:
    """What the model input goes through first, so that there are channels that may leave."""
    wide = b.size(4, 10)
    if x.rank == 4:
        y = b.node("Conv", [x, b.weight((wide, x.shape[1], 1, 1), x.shape[1]), b.vector(wide)], _with(x.shape, 1, wide))
    else:
        y = projection(b, x, wide)
    return y if b.chance(2) else activation(b, y)


def close(b: Builder, x: Value) -> Value:
    """An output reads its tensor through a weight, mostly, so that the tensor's channels may leave."""
    if b.chance(5):
        return b.node("Identity", [x])
    if x.rank == 4 and b.chance(2):
        return flatten(b, x)
    ends: dict[int, Callable[[Builder, Value], Value]] = {4: conv, 3: linear, 2: gemm}
    return ends[x.rank](b, x)
