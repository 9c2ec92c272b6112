"""Steps of a random model for tensors of any rank.

A step appends nodes and returns the new tensor, several, or None where it does not apply to these sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from generate import Builder, Value

__all__ = [
    "activation",
    "bent",
    "broadcast_branches",
    "channel_sum",
    "clip",
    "concat",
    "gather",
    "pad",
    "pass_through",
    "power",
    "ratio",
    "reduced",
    "resized",
    "shuffle",
    "similarity",
    "slice_",
    "softmax",
    "split",
    "squeeze_all",
    "tile",
    "unit_norm",
    "with_constant",
    "with_other",
    "with_shared_vector",
]


def activation(b: Builder, x: Value) -> Value:
    names = [
        "Relu",
        "Sigmoid",
        "Tanh",
        "Softplus",
        "LeakyRelu",
        "Elu",
        "HardSigmoid",
        "Neg",
        "Abs",
        "Softsign",
        "Exp",
        "Cos",
    ]
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
    op = b.pick(("Add", "Sub", "Mul", "Max", "Min", "Div") if b.opset >= 8 else ("Add", "Sub", "Mul", "Div"))
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


def with_other(b: Builder, x: Value) -> Value:
    """Two tensors of the same shape."""
    others = b.like(x)
    op = b.pick(("Add", "Add", "Mul", "Sub", "Max", "Sum", "Mean", "Where"))
    y = b.pick(others)
    if op in ("Add", "Mul", "Sub"):
        return b.node(op, [x, y])
    if (b.dtype == np.float64 and op in ("Max", "Mean")) or (op == "Where" and b.opset < 9):
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
    turned = b.transpose(right, *range(x.rank - 2), x.rank - 1, x.rank - 2)
    alike = b.node("MatMul", [left, turned], (*x.shape[:-2], x.shape[-2], x.shape[-2]))
    return b.node("MatMul", [b.node("Tanh", [alike]), x], x.shape)


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
        inputs.append(b.constant(b.numbers(resized(x.shape, axis, 2))))
        size += 2
    return b.node(
        "Concat", inputs, resized(x.shape, axis, size), axis=axis - x.rank if b.opset >= 11 and b.chance(4) else axis
    )


def split(b: Builder, x: Value) -> list[Value] | None:
    axis = 1 if b.chance(2) else x.rank - 1
    size = x.shape[axis]
    if size < 2:
        return None
    first = b.size(1, size - 1) if b.chance(2) or size % 2 else size // 2
    sizes = [first, size - first]
    shapes = [resized(x.shape, axis, n) for n in sizes]
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
    inputs: list[Value | str] = [x, b.ints(*starts), b.ints(*ends), b.ints(*axes), b.ints(*steps)]
    return b.node("Slice", inputs if any(s != 1 for s in steps) else inputs[:4], shape)


def gather(b: Builder, x: Value) -> Value:
    """Indices in another order, some of them twice or not at all; now and then in rows."""
    axis = 1 if b.chance(2) else x.rank - 1
    size = x.shape[axis]
    if x.rank < (4 if b.dtype == np.float32 else 3) and b.chance(4):
        grid = b.rng.integers(-size, size, (b.size(1, 2), b.size(1, 3)))
        wide = (*x.shape[:axis], *grid.shape, *x.shape[axis + 1 :])
        return b.node("Gather", [x, b.constant(grid)], wide, axis=axis)
    chosen = b.rng.integers(-size, size, b.size(1, size + 2)) if b.chance(2) else b.rng.permutation(size)
    return b.node("Gather", [x, b.ints(*chosen.tolist())], resized(x.shape, axis, len(chosen)), axis=axis)


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
    return b.node("Tile", [x, b.ints(*repeats)], resized(x.shape, axis, x.shape[axis] * times))


def pass_through(b: Builder, x: Value) -> Value:
    op = b.pick(("Identity", "Dropout", "Expand", "Squeeze", "Cast") if b.opset >= 8 else ("Identity", "Dropout"))
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


def resized(shape: Sequence[int], axis: int, size: int) -> list[int]:
    """A shape with another size along one axis."""
    return [size if a == axis else n for a, n in enumerate(shape)]
