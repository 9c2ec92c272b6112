"""Steps of a random model that are seldom seen: the rest of the table of operators, by what they need.

A step appends nodes and returns the new tensor, or None where it does not apply. Functions that jump read something
that stays away from their jumps: what is compared is rounded differently in the two models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from generate import Builder, Value
from generate_any import resized
from generate_tokens import projection
from onnx import GraphProto, TensorProto, ValueInfoProto, helper, numpy_helper

__all__ = ["RARE_ANY", "RARE_IMAGE", "RARE_TOKENS", "RARE_VECTOR", "quantised_stem", "ramp"]

CONTRIB = "com.microsoft"
Step = Callable[[Builder, Value], Value | None]


# ---- functions of one number ----------------------------------------------------------------------------------------

_SINCE = {
    "Asinh": 9, "Atan": 7, "Celu": 12, "Erf": 9, "Gelu": 20, "HardSwish": 14, "Mish": 18, "Selu": 6, "Shrink": 9,
    "Sin": 7, "ThresholdedRelu": 10,
}  # fmt: skip
_BOUNDED = {"Sinh": 9, "Cosh": 9, "Tan": 7, "Swish": 24}  # of Tanh
_INSIDE = {"Acos": 7, "Asin": 7, "Atanh": 9}  # of Tanh / 2
_POSITIVE = {"Log": 6, "Reciprocal": 6, "Acosh": 9}  # of 1.5 + Sigmoid
_JUMPS = {"Ceil": 6, "Floor": 6, "Round": 11, "Sign": 9}  # of 1.2 + Sigmoid / 2


def rare_function(b: Builder, x: Value) -> Value | None:
    groups = (_SINCE, _BOUNDED, _INSIDE, _POSITIVE, _JUMPS)
    kind = b.size(0, len(groups) - 1)
    names = [op for op, since in groups[kind].items() if since <= b.opset]
    if b.dtype == np.float64 or not names:
        return None
    if kind in (1, 2):
        x = b.node("Tanh", [x])
    if kind == 2:
        x = b.node("Mul", [x, b.constant(0.5)])
    if kind > 2:
        x = b.node("Sigmoid", [x])
        x = b.node("Add", [b.node("Mul", [x, b.constant(0.5)]), b.constant(1.2 if kind == 4 else 1.5)])
    return b.node(b.pick(names), [x])


def contributed_function(b: Builder, x: Value) -> Value | None:
    """Those of com.microsoft; two of them add a vector first."""
    if b.dtype == np.float64:
        return None
    op = b.pick(("Gelu", "QuickGelu", "BiasGelu", "FastGelu"))
    inputs: list[Value | str] = [x]
    if op in ("BiasGelu", "FastGelu"):
        inputs.append(b.vector(x.shape[-1]))
    return b.node(op, inputs, x.shape, domain=CONTRIB)


def like(b: Builder, x: Value) -> Value | None:
    """Types and values taken over from another tensor or a size."""
    if b.opset >= 15 and b.chance(2):
        return b.node("CastLike", [x, b.constant(1.0)])
    if b.opset < 9:
        return None
    size = b.node("Shape", [x], [x.rank])
    value = numpy_helper.from_array(np.array([b.pick((0.0, 1.0, 0.5))], b.dtype))
    return b.node("Add", [x, b.node("ConstantOfShape", [size], x.shape, value=value)])


# ---- truth values ---------------------------------------------------------------------------------------------------


def _compared(b: Builder, x: Value) -> Value:
    """Larger or smaller than a number that hardly any is close to."""
    ops = ["Greater", "Less", "GreaterOrEqual", "LessOrEqual"] if b.opset >= 16 else ["Greater", "Less"]
    return b.node(b.pick(ops), [x, b.constant(b.pick((0.3141, -0.2718, 1e6)))], x.shape)


def _whole(b: Builder, x: Value) -> Value:
    """0 or 1, as integers: the same in both models."""
    return b.node("Cast", [_compared(b, x)], to=TensorProto.INT32)


def logic(b: Builder, x: Value) -> Value | None:
    """A tensor times a truth about it, or about it and another."""
    if b.dtype == np.float64 or b.opset < 11:
        return None
    way = b.size(0, 4)
    if way == 0:
        found = _compared(b, x)
    elif way == 1:
        found = b.node("Not", [_compared(b, x)])
    elif way == 2:
        found = b.node(b.pick(("And", "Or", "Xor")), [_compared(b, x), _compared(b, b.pick(b.like(x)))])
    elif way == 3:
        found = b.node("Equal", [_whole(b, x), _whole(b, b.pick(b.like(x)))])
    else:
        found = b.node(b.pick(("IsNaN", "IsInf")) if b.opset >= 13 else "IsNaN", [x])
    if b.opset >= 18 and b.chance(3):
        whole = b.node("BitwiseNot", [b.node("Cast", [found], to=TensorProto.INT32)])
        return b.node("Mul", [b.node("Cast", [whole], to=TensorProto.FLOAT), x])
    return b.node("Add", [x, b.node("Cast", [found], to=TensorProto.FLOAT)])


# ---- across an axis -------------------------------------------------------------------------------------------------


def rare_reduction(b: Builder, x: Value) -> Value | None:
    op = b.pick(("ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"))
    if b.dtype == np.float64:
        return None
    axis = b.size(1, x.rank - 1)
    y = b.node("Sigmoid" if op == "ReduceLogSum" else "Tanh", [x])
    if op == "ReduceLogSum":
        y = b.node("Add", [y, b.constant(1.0)])
    shape = resized(x.shape, axis, 1)
    if b.opset >= 18:
        return b.node("Add", [x, b.node(op, [y, b.ints(axis)], shape)])
    return b.node("Add", [x, b.node(op, [y], shape, axes=[axis])])


def along(b: Builder, x: Value) -> Value | None:
    """What runs along an axis; the largest is looked for among numbers far apart."""
    axis = b.size(1, x.rank - 1)
    if b.dtype == np.float64 or b.opset < 13:
        return None
    op = b.pick(("CumSum", "LpNormalization", "Hardmax", "ArgMax", "ArgMin", "TopK", "ReverseSequence", "Trilu"))
    if op == "CumSum":
        return b.node("CumSum", [x, b.constant(np.array(axis, np.int64))])
    if op == "LpNormalization":
        return b.node(op, [b.node("Add", [b.node("Sigmoid", [x]), b.constant(0.1)])], axis=axis, p=b.size(1, 2))
    if op == "Trilu":
        return b.node("Trilu", [x], upper=b.size(0, 1)) if b.opset >= 14 else None
    if op == "ReverseSequence":
        if b.open_batch:
            return None
        lengths = [b.size(1, x.shape[axis]) for _ in range(x.shape[0])]
        return b.node(op, [x, b.ints(*lengths)], batch_axis=0, time_axis=axis) if axis == 1 else None
    apart = b.node("Add", [b.node("Mul", [b.node("Tanh", [x]), b.constant(1e-3)]), ramp(b, x, axis)])
    if op == "TopK":
        k = b.size(1, x.shape[axis])
        shapes = [resized(x.shape, axis, k)] * 2
        return b.split("TopK", [apart, b.ints(k)], shapes, axis=axis)[0]
    if op == "Hardmax":
        return b.node("Mul", [b.node("Hardmax", [apart], axis=axis), x])
    found = b.node(op, [apart], resized(x.shape, axis, 1), axis=axis)
    return b.node("Add", [x, b.node("Cast", [found], to=TensorProto.FLOAT)])


def ramp(b: Builder, x: Value, axis: int) -> str:
    steps = b.rng.permutation(x.shape[axis]).astype(b.dtype)
    return b.constant(steps.reshape([-1 if a == axis else 1 for a in range(x.rank)]))


def remainder(b: Builder, x: Value) -> Value | None:
    if b.opset < 10 or b.dtype == np.float64:
        return None
    return b.node("Mod", [b.node("Sigmoid", [x]), b.constant(2.0)], fmod=1)


def centred(b: Builder, x: Value) -> Value | None:
    """MeanVarianceNormalization over some axes, along which there is some variance."""
    if b.opset < 13 or b.dtype == np.float64 or x.shape[-1] < 2:
        return None
    spread = b.node("Add", [x, ramp(b, x, x.rank - 1)])
    return b.node("MeanVarianceNormalization", [spread], axes=[0, *range(2, x.rank)] if x.rank > 2 else [1])


def crop_or_pad(b: Builder, x: Value) -> Value | None:
    if b.opset < 18 or b.dtype == np.float64:
        return None
    axis = b.size(1, x.rank - 1)
    size = b.size(1, x.shape[axis] + 2)
    return b.node("CenterCropPad", [x, b.ints(size)], resized(x.shape, axis, size), axes=[axis])


def by_element(b: Builder, x: Value) -> Value | None:
    """Gather and Scatter by element and by tuple, with stored indices."""
    if b.opset < 16 or b.open_batch:
        return None
    axis = b.size(1, x.rank - 1)
    op = b.pick(("GatherElements", "ScatterElements", "GatherND", "ScatterND"))
    if op == "GatherElements":
        index = b.rng.integers(0, x.shape[axis], x.shape)
        return b.node(op, [x, b.constant(index)], axis=axis)
    if op == "ScatterElements":
        index = np.broadcast_to(b.rng.integers(0, x.shape[axis]), resized(x.shape, axis, 1))
        return b.node(op, [x, b.constant(np.array(index)), b.constant(b.numbers(index.shape))], axis=axis)
    rows = np.stack([np.arange(x.shape[0]), b.rng.integers(0, x.shape[1], x.shape[0])], 1)
    if op == "ScatterND":
        return b.node(op, [x, b.constant(rows), b.constant(b.numbers((x.shape[0], *x.shape[2:])))])
    picked = b.node(op, [x, b.constant(rows[:, None])], (x.shape[0], 1, *x.shape[2:]))
    return b.node("Add", [x, picked])


# ---- images ---------------------------------------------------------------------------------------------------------


def sampled(b: Builder, x: Value) -> Value | None:
    if x.rank != 4 or b.dtype == np.float64 or b.opset < 16 or b.open_batch:
        return None
    way = b.size(0, 2) if b.opset < 22 else 0
    if way == 0:
        grid = b.constant(np.asarray(b.rng.uniform(-0.9, 0.9, (x.shape[0], 3, 4, 2)), b.dtype))
        return b.node("GridSample", [x, grid], (*x.shape[:2], 3, 4))
    rois = np.array([[0, 0, x.shape[3] - 1, x.shape[2] - 1]], b.dtype)
    if way == 1:
        return b.node("RoiAlign", [x, b.constant(rois), b.ints(0)], (1, x.shape[1], 2, 2), output_height=2,
                      output_width=2, sampling_ratio=2)  # fmt: skip
    boxes = b.constant(np.concatenate([np.zeros((1, 1), b.dtype), rois], 1))
    return b.node("MaxRoiPool", [x, boxes], (1, x.shape[1], 2, 2), pooled_shape=[2, 2])


def rare_image(b: Builder, x: Value) -> Value | None:
    """GlobalLpPool; a maximum put back; columns to an image; a convolution with its activation."""
    if x.rank != 4 or b.dtype == np.float64:
        return None
    op = b.pick(("GlobalLpPool", "MaxUnpool", "Col2Im", "FusedConv", "DepthwiseFusedConv"))
    if op == "GlobalLpPool" and b.opset >= 22:
        return None
    if op == "GlobalLpPool":
        return b.node("Mul", [x, b.node(op, [x], (*x.shape[:2], 1, 1), p=2)])
    if op == "MaxUnpool":
        if b.opset < 11 or x.shape[2] % 2 or x.shape[3] % 2 or b.open_batch:
            return None
        half = (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)
        apart = b.node("Add", [b.node("Tanh", [x]), ramp(b, x, 3)])
        found = b.split("MaxPool", [apart], [half, half], kernel_shape=[2, 2], strides=[2, 2])
        return b.node(op, list(found), x.shape, kernel_shape=[2, 2], strides=[2, 2])
    if op == "Col2Im":
        if b.opset < 18 or x.shape[2] * x.shape[3] > 64:
            return None
        flat = b.reshape(x, (*x.shape[:2], x.shape[2] * x.shape[3]))
        return b.node(op, [flat, b.ints(*x.shape[2:]), b.ints(1, 1)], x.shape)
    wide = x.shape[1] if op == "DepthwiseFusedConv" else b.size(1, 8)
    part = 1 if op == "DepthwiseFusedConv" else x.shape[1]
    inputs: list[Value | str] = [x, b.weight((wide, part, 1, 1), part), b.vector(wide)]
    return b.node("FusedConv", inputs, resized(x.shape, 1, wide), domain=CONTRIB, activation="Relu",
                  group=x.shape[1] // part, kernel_shape=[1, 1])  # fmt: skip


# ---- tokens and vectors ---------------------------------------------------------------------------------------------


def rare_norm(b: Builder, x: Value) -> Value | None:
    """Root-mean-square and with a second branch; what is divided by stays away from zero."""
    if b.dtype == np.float64 or x.rank != 3:
        return None
    op = b.pick(("RMSNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"))
    if op == "RMSNormalization" and b.opset < 23:
        return None
    other = [b.pick(b.like(x))] if op.startswith("Skip") else []
    given: list[Value | str] = [x, *other, b.vector(x.shape[-1])]
    domain = {"domain": CONTRIB} if op.startswith("Skip") else {}
    return b.node(op, given, x.shape, epsilon=0.1, **domain)


def fused_attention(b: Builder, x: Value) -> Value | None:
    """Attention in one node, in each of its forms."""
    if b.dtype == np.float64:
        return None
    heads, width = b.size(1, 3), 2 * b.size(1, 3)
    op = b.pick(("Attention", "packed", "MultiHeadAttention", "GroupQueryAttention"))
    n, length, size = x.shape
    whole = heads * width
    if op == "packed":
        inputs: list[Value | str] = [x, b.weight((size, 3 * whole), size), b.vector(3 * whole)]
        return b.node("Attention", inputs, (n, length, whole), domain=CONTRIB, num_heads=heads)
    if op == "GroupQueryAttention":
        if b.open_batch:
            return None
        groups = b.pick([g for g in range(1, heads + 1) if heads % g == 0])
        width = 8 * b.size(1, 2)
        q, k, v = (projection(b, x, m * width) for m in (heads, groups, groups))
        lengths = b.constant(np.full(n, length - 1, np.int32))
        total = b.constant(np.array(length, np.int32))
        return b.node(op, [q, k, v, "", "", lengths, total], (n, length, heads * width), domain=CONTRIB,
                      num_heads=heads, kv_num_heads=groups)  # fmt: skip
    q, k, v = (projection(b, x, whole) for _ in range(3))
    if op == "MultiHeadAttention":
        return b.node(op, [q, k, v], (n, length, whole), domain=CONTRIB, num_heads=heads)
    if b.opset < 23:
        return None
    return b.node(op, [q, k, v], (n, length, whole), q_num_heads=heads, kv_num_heads=heads)


def rotated(b: Builder, x: Value) -> Value | None:
    heads, width = b.size(1, 3), 2 * b.size(1, 3)
    if b.dtype == np.float64 or b.open_batch:
        return None
    n, length, _ = x.shape
    y = projection(b, x, heads * width)
    angle = b.rng.uniform(0, 1, (length, width // 2)).astype(b.dtype)
    if b.opset >= 23 and b.chance(2):
        caches = [b.constant(np.broadcast_to(f(angle), (n, *angle.shape)).copy()) for f in (np.cos, np.sin)]
        return b.node("RotaryEmbedding", [y, *caches], num_heads=heads)
    positions = b.constant(np.broadcast_to(np.arange(length), (n, length)).copy())
    caches = [b.constant(f(angle)) for f in (np.cos, np.sin)]
    return b.node("RotaryEmbedding", [y, positions, *caches], domain=CONTRIB, num_heads=heads)


def fused_product(b: Builder, x: Value) -> Value | None:
    if b.dtype == np.float64:
        return None
    out = b.size(1, 8)
    if x.rank == 2 and b.chance(2):
        inputs: list[Value | str] = [x, b.weight((x.shape[1], out), x.shape[1]), b.vector(out)]
        return b.node("FusedGemm", inputs, (x.shape[0], out), domain=CONTRIB, activation="Relu")
    flip = b.size(0, 1)
    weight = b.weight((out, x.shape[-1]) if flip else (x.shape[-1], out), x.shape[-1])
    return b.node("FusedMatMul", [x, weight], (*x.shape[:-1], out), domain=CONTRIB, transB=flip, alpha=0.5)


# ---- bodies ---------------------------------------------------------------------------------------------------------


def branches(b: Builder, x: Value) -> Value | None:
    """One of two layers, by a condition on the input."""
    if b.opset < 13 or b.dtype == np.float64 or x.rank == 4:
        return None
    out = b.size(1, 8)
    condition = b.node("Cast", [b.constant(np.array(b.size(0, 1), np.int64))], (), to=TensorProto.BOOL)
    shape = (*x.shape[:-1], out)
    bodies = [_layer(b, x.name, [b.weight((x.shape[-1], out), x.shape[-1])], op, shape) for op in ("Relu", "Tanh")]
    return b.node("If", [condition], shape, then_branch=bodies[0], else_branch=bodies[1])


def _layer(b: Builder, name: str, weights: Sequence[str], op: str, shape: Sequence[int],
           before: Sequence[ValueInfoProto] = ()) -> GraphProto:  # fmt: skip
    mixed, made = b.name("inner"), b.name("made")
    nodes = [helper.make_node("MatMul", [name, *weights], [mixed]), helper.make_node(op, [mixed], [made])]
    dims: list[int | str | None] = [None if b.open_batch and a == 0 else n for a, n in enumerate(shape)]
    return helper.make_graph(nodes, b.name("body"), before, [helper.make_tensor_value_info(made, 1, dims)])


def looped(b: Builder, x: Value) -> Value | None:
    """A state that goes through the same layer a few times, or along the tokens."""
    if b.opset < 13 or b.dtype == np.float64 or x.rank == 4:
        return None
    size = x.shape[-1]
    weight = b.weight((size, size), size)
    state = b.name("state")
    if x.rank == 3 and b.chance(2):
        turned = b.transpose(x, 1, 0, 2)
        part = helper.make_tensor_value_info(state, 1, [None if b.open_batch else x.shape[0], size])
        body = _layer(b, state, [weight], "Tanh", (x.shape[0], size), [part])
        return b.transpose(b.node("Scan", [turned], turned.shape, num_scan_inputs=1, body=body), 1, 0, 2)
    dims = [None if b.open_batch and a == 0 else n for a, n in enumerate(x.shape)]
    step, keep = b.name("step"), b.name("keep")
    before = [helper.make_tensor_value_info(step, TensorProto.INT64, []),
              helper.make_tensor_value_info(keep, TensorProto.BOOL, []),
              helper.make_tensor_value_info(state, 1, dims)]  # fmt: skip
    body = _layer(b, state, [weight], "Tanh", x.shape, before)
    body.node.append(helper.make_node("Identity", [keep], [f"{keep}_out"]))
    body.output.insert(0, helper.make_tensor_value_info(f"{keep}_out", TensorProto.BOOL, []))
    return b.node("Loop", [b.constant(np.array(2, np.int64)), "", x], x.shape, body=body)


# ---- quantised, right behind the input ------------------------------------------------------------------------------


def quantised_stem(b: Builder, x: Value) -> Value | None:
    """Quantised layers behind the model's input, where both models compute the same integers."""
    if b.opset < 13 or b.dtype == np.float64:
        return None
    if b.chance(2 if x.rank == 3 else 3):
        return _integer_product(b, x)
    scale, point = b.constant(np.array(0.03, np.float32)), b.constant(np.array(128, np.uint8))
    domains: tuple[dict[str, Any], ...] = ({}, {}, {"domain": CONTRIB})
    q = b.node("QuantizeLinear", [x, scale, point], **b.pick(domains))
    for _ in range(b.size(1, 3)):
        q = _quantised_step(b, q, scale, point)
    return b.node("DequantizeLinear", [q, scale, point], **b.pick(domains))


def _bytes(b: Builder, *shape: int) -> str:
    return b.constant(b.rng.integers(100, 156, shape).astype(np.uint8))


def _quantised_step(b: Builder, q: Value, scale: str, point: str) -> Value:
    rest = [scale, point]
    if q.rank == 4 and b.chance(2):
        out = b.size(2, 6)
        weight = [_bytes(b, out, q.shape[1], 1, 1), scale, point]
        domain = {"domain": CONTRIB, "channels_last": 0} if b.chance(4) else {}
        return b.node("QLinearConv", [q, *rest, *weight, *rest], resized(q.shape, 1, out), **domain)
    if q.rank < 4 and b.chance(2):
        out = b.size(2, 6)
        weight = [_bytes(b, q.shape[-1], out), scale, point]
        if q.rank == 2 and b.chance(2):
            return b.node("QGemm", [q, *rest, *weight, "", *rest], (q.shape[0], out), domain=CONTRIB)
        return b.node("QLinearMatMul", [q, *rest, *weight, *rest], (*q.shape[:-1], out))
    op = b.pick(("QLinearAdd", "QLinearMul", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QLinearConcat",
                 "QLinearWhere", "QLinearGlobalAveragePool", "QLinearAveragePool"))  # fmt: skip
    if op in ("QLinearAdd", "QLinearMul"):
        return b.node(op, [q, *rest, q, *rest, *rest], domain=CONTRIB)
    if op == "QLinearWhere":
        condition = b.constant(b.rng.random((1, *q.shape[1:])) < 0.5)
        return b.node(op, [condition, q, *rest, q, *rest, *rest], q.shape, domain=CONTRIB)
    if op == "QLinearConcat":
        axis = 1 if q.rank == 4 else q.rank - 1
        wide = resized(q.shape, axis, 2 * q.shape[axis])
        return b.node(op, [*rest, q, *rest, q, *rest], wide, domain=CONTRIB, axis=axis)
    if op == "QLinearSoftmax":
        return b.node(op, [q, *rest, *rest], domain=CONTRIB, axis=q.rank - 1, opset=13)
    if op == "QLinearGlobalAveragePool" and q.rank == 4:
        return b.node(op, [q, *rest, *rest], (*q.shape[:2], 1, 1), domain=CONTRIB)
    if op == "QLinearAveragePool" and q.rank == 4 and min(q.shape[2:]) > 1:
        shape = (*q.shape[:2], q.shape[2] - 1, q.shape[3] - 1)
        return b.node(op, [q, *rest, *rest], shape, domain=CONTRIB, kernel_shape=[2, 2])
    return b.node("QLinearLeakyRelu" if b.chance(2) else "QLinearSigmoid", [q, *rest, *rest], domain=CONTRIB)


def _integer_product(b: Builder, x: Value) -> Value:
    """Quantised as it comes, multiplied, and scaled back."""
    one = (1,)
    q, scale, point = b.split("DynamicQuantizeLinear", [x], [x.shape, (), ()])
    out = b.size(2, 6)
    if x.rank == 4:
        weight = _bytes(b, out, x.shape[1], 1, 1)
        zero = b.constant(np.array(120, np.uint8))
        whole = b.node("ConvInteger", [q, weight, point, zero], resized(x.shape, 1, out))
        return _scaled_back(b, whole, scale)
    weight, zero = _bytes(b, x.shape[-1], out), b.constant(np.full(one, 120, np.uint8))
    shape = (*x.shape[:-1], out)
    way = b.size(0, 2 if x.rank < 3 else 4)
    if way > 2:
        return _integer_attention(b, x, [q, scale, point]) if way == 3 else _integer_lstm(b, x)
    if way == 0:
        zero = b.constant(np.array(120, np.uint8))
        return _scaled_back(b, b.node("MatMulInteger", [q, weight, point, zero], shape), scale)
    step = b.constant(np.full(one, 0.01, np.float32))
    if way == 1:
        return b.node("DynamicQuantizeMatMul", [x, weight, step, zero, b.vector(out)], shape, domain=CONTRIB)
    inputs: list[Value | str] = [q, weight, scale, step, point, zero, b.vector(out)]
    return b.node("MatMulIntegerToFloat", inputs, shape, domain=CONTRIB)


def _integer_attention(b: Builder, x: Value, quantised: Sequence[Value]) -> Value:
    heads = b.size(1, 3)
    whole = 2 * heads * b.size(1, 2)
    q, scale, point = quantised
    weight, step = _bytes(b, x.shape[-1], 3 * whole), b.constant(np.array(0.01, np.float32))
    inputs: list[Value | str] = [q, weight, b.vector(3 * whole), scale, step, "", point,
                                 b.constant(np.array(128, np.uint8))]  # fmt: skip
    return b.node("QAttention", inputs, (*x.shape[:2], whole), domain=CONTRIB, num_heads=heads)


def _integer_lstm(b: Builder, x: Value) -> Value:
    """Both directions, or one of them; the batch comes first before and after it."""
    turned, units, ways = b.transpose(x, 1, 0, 2), b.size(1, 4), b.size(1, 2)
    weights = [_bytes(b, ways, size, 4 * units) for size in (x.shape[-1], units)]
    step, zero = b.constant(np.full(ways, 0.01, np.float32)), b.constant(np.full(ways, 128, np.uint8))
    inputs: list[Value | str] = [turned, *weights, b.constant(b.numbers((ways, 8 * units), 0.5)), "", "", "", "",
                                 step, zero, step, zero]  # fmt: skip
    shape = (turned.shape[0], ways, turned.shape[1], units)
    y = b.node("DynamicQuantizeLSTM", inputs, shape, domain=CONTRIB, hidden_size=units,
               direction="bidirectional" if ways == 2 else "forward")  # fmt: skip
    return b.reshape(b.transpose(y, 2, 0, 1, 3), (*x.shape[:2], ways * units))


def _scaled_back(b: Builder, whole: Value, scale: Value) -> Value:
    real = b.node("Cast", [whole], to=TensorProto.FLOAT)
    return b.node("Mul", [b.node("Mul", [real, scale]), b.constant(0.01)])


RARE_ANY: tuple[Step, ...] = (
    rare_function, rare_function, contributed_function, like, logic, rare_reduction, along, along, remainder, centred,
    crop_or_pad, by_element,
)  # fmt: skip
RARE_IMAGE: tuple[Step, ...] = (sampled, rare_image, rare_image)
RARE_TOKENS: tuple[Step, ...] = (rare_norm, fused_attention, fused_attention, rotated, fused_product, branches, looped)
RARE_VECTOR: tuple[Step, ...] = (fused_product, branches, looped)
