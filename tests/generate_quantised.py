"""Random quantised models: a chain of integer operators with branches, images first and perhaps a vector at the end.

Scales are powers of two and sums stay below 2²⁴, so that float32 holds every number exactly: what is rounded to a step
is rounded the same way however a sum is ordered. Zero points are random, per tensor or per channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from generate import Array, Builder, Choices, Seeded, Value
from onnx import ModelProto, TensorProto, helper, numpy_helper

__all__ = ["random_quantised_model"]

_MS = "com.microsoft"
_FEED = Value("x", (2, 3, 6, 6))


@dataclass(frozen=True)
class Quantised:
    """A tensor of uint8 with its scale and zero point."""

    value: Value
    scale: str
    point: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def parts(self) -> tuple[Value | str, ...]:
        return self.value, self.scale, self.point


Step = Callable[[Builder, Quantised, "list[Quantised]"], Quantised | None]


def _result(b: Builder) -> tuple[str, str]:
    """Scale and zero point of a result."""
    scale = b.constant(np.array(2.0 ** -b.size(1, 4), np.float32))
    return scale, b.constant(np.array(b.size(0, 200), np.uint8))


def _integers(b: Builder, shape: tuple[int, ...], low: int, high: int, kind: type[np.generic]) -> Array:
    return b.rng.integers(low, high, shape).astype(kind)


def _weight(b: Builder, shape: tuple[int, ...], outputs: int) -> tuple[str, str, str]:
    """A weight of int8, its scales and zero points: of the whole, or of every output."""
    wide: tuple[int, ...] = (outputs,) if b.chance(2) else ()
    scale = np.asarray(2.0 ** -_integers(b, wide, 6, 10, np.int64).astype(np.float32), np.float32)
    point = _integers(b, wide, -5, 6, np.int8) if b.chance(2) else np.zeros(wide, np.int8)
    return b.constant(_integers(b, shape, -60, 60, np.int8)), b.constant(scale), b.constant(np.asarray(point))


def _bias(b: Builder, outputs: int) -> str:
    return b.constant(_integers(b, (outputs,), -2000, 2000, np.int32))


def _kernel(b: Builder, x: Quantised) -> tuple[tuple[int, ...], int, tuple[int, ...], int]:
    """Shape of a weight, its groups, the shape of the result and the padding."""
    channels = x.shape[1]
    depthwise = b.chance(4)
    outputs = channels if depthwise else b.size(2, 8)
    pad = b.size(0, 1)
    size = 3 if x.shape[2] + 2 * pad >= 3 else 1
    pad = pad if size == 3 else 0
    side = x.shape[2] + 2 * pad - size + 1
    shape = (outputs, 1 if depthwise else channels, size, size)
    return shape, channels if depthwise else 1, (x.shape[0], outputs, side, side), pad


def linear_conv(b: Builder, x: Quantised, _: list[Quantised]) -> Quantised:
    shape, groups, out, pad = _kernel(b, x)
    made = _result(b)
    inputs = [*x.parts, *_weight(b, shape, shape[0]), *made, *([_bias(b, shape[0])] if b.chance(2) else [])]
    return Quantised(b.node("QLinearConv", inputs, out, group=groups, pads=[pad] * 4), *made)


def integer_conv(b: Builder, x: Quantised, _: list[Quantised]) -> Quantised:
    """ConvInteger, Cast, Mul and Add, as dynamic quantisation writes them, then a quantisation."""
    shape, groups, out, pad = _kernel(b, x)
    weight, _scale, _point = _weight(b, shape, shape[0])
    point = b.constant(np.array(b.size(-3, 3), np.int8))
    held = b.node("ConvInteger", [x.value, weight, x.point, point], out, group=groups, pads=[pad] * 4)
    real = b.node("Mul", [b.node("Cast", [held], to=TensorProto.FLOAT), b.constant(np.array(2.0**-9, np.float32))])
    if b.chance(2):
        bias = _integers(b, (shape[0], 1, 1), -9, 9, np.int8).astype(np.float32) / 4
        real = b.node("Add", [real, b.constant(bias)])
    return _quantised(b, b.node("Relu", [real]) if b.chance(2) else real)


def pair_conv(b: Builder, x: Quantised, _: list[Quantised]) -> Quantised:
    """A convolution between dequantised numbers."""
    shape, groups, out, pad = _kernel(b, x)
    weight = b.node("DequantizeLinear", _weight(b, shape, shape[0]), shape, axis=0)
    inputs: list[Value | str] = [_real(b, x), weight]
    if b.chance(2):
        inputs.append(b.constant(_integers(b, shape[:1], -9, 9, np.int8).astype(np.float32) / 4))
    return _quantised(b, b.node("Conv", inputs, out, group=groups, pads=[pad] * 4))


def _real(b: Builder, x: Quantised) -> Value:
    return b.node("DequantizeLinear", x.parts, x.shape)


def _quantised(b: Builder, x: Value) -> Quantised:
    made = _result(b)
    return Quantised(b.node("QuantizeLinear", [x, *made], x.shape), *made)


def combine(b: Builder, x: Quantised, others: list[Quantised]) -> Quantised:
    """A sum or product with another tensor of the same shape, or with a constant for every channel."""
    made, op = _result(b), b.pick(("QLinearAdd", "QLinearMul"))
    like = [other for other in others if other.shape == x.shape]
    if b.chance(3):
        shape = (x.shape[1], *(1,) * (len(x.shape) - 2))
        other = (b.constant(_integers(b, shape, 0, 255, np.uint8)), *_result(b))
        return Quantised(b.node(op, [*x.parts, *other, *made], x.shape, domain=_MS), *made)
    return Quantised(b.node(op, [*x.parts, *b.pick(like).parts, *made], x.shape, domain=_MS), *made)


def activation(b: Builder, x: Quantised, _: list[Quantised]) -> Quantised:
    made, op = _result(b), b.pick(("QLinearSigmoid", "QLinearLeakyRelu"))
    return Quantised(b.node(op, [*x.parts, *made], x.shape, domain=_MS), *made)


def pool(b: Builder, x: Quantised, _: list[Quantised]) -> Quantised | None:
    """A maximum of the integers as they are, or a mean."""
    if len(x.shape) != 4 or x.shape[2] < 2:
        return None
    out = (*x.shape[:2], x.shape[2] - 1, x.shape[3] - 1)
    if b.chance(2):
        return Quantised(b.node("MaxPool", [x.value], out, kernel_shape=[2, 2]), x.scale, x.point)
    made = _result(b)
    pooled = b.node("QLinearAveragePool", [*x.parts, *made], out, domain=_MS, kernel_shape=[2, 2])
    return Quantised(pooled, *made)


def concat(b: Builder, x: Quantised, others: list[Quantised]) -> Quantised:
    fitting = [other for other in others if other.shape[0] == x.shape[0] and other.shape[2:] == x.shape[2:]]
    other, made = b.pick(fitting), _result(b)
    shape = (x.shape[0], x.shape[1] + other.shape[1], *x.shape[2:])
    return Quantised(b.node("QLinearConcat", [*made, *x.parts, *other.parts], shape, domain=_MS, axis=1), *made)


def product(b: Builder, x: Quantised, _: list[Quantised]) -> Quantised:
    """A flat product: QLinearMatMul, QGemm, or one of integers by range."""
    size = int(np.prod(x.shape[1:]))
    flat = Quantised(b.node("Flatten", [x.value], (x.shape[0], size)), x.scale, x.point)
    outputs, made = b.size(2, 8), _result(b)
    weight, out = _weight(b, (size, outputs), outputs), (x.shape[0], outputs)
    way = b.size(0, 2)
    if way == 0:
        return Quantised(b.node("QLinearMatMul", [*flat.parts, *weight, *made], out), *made)
    if way == 1:
        return Quantised(b.node("QGemm", [*flat.parts, *weight, _bias(b, outputs), *made], out, domain=_MS), *made)
    again, scale, point = b.split("DynamicQuantizeLinear", [_real(b, flat)], [flat.shape, (), ()])
    held = b.node("MatMulInteger", [again, weight[0], point, weight[2]], out)
    return _quantised(b, b.node("Mul", [b.node("Cast", [held], to=TensorProto.FLOAT), scale]))


_IMAGE: tuple[Step, ...] = (
    linear_conv, linear_conv, integer_conv, integer_conv, pair_conv, combine, combine, activation, pool, pool, concat,
)  # fmt: skip
_VECTOR: tuple[Step, ...] = (product, product, combine, activation, concat)


def random_quantised_model(choices: Choices | int) -> ModelProto:
    """A model from a seed, or from the decisions of hypothesis."""
    taken = Seeded(choices) if isinstance(choices, int) else choices
    b = Builder(taken, 17, np.float32, 2, False, np.random.default_rng(taken.integer(0, 2**16)))
    held = [linear_conv(b, _quantised(b, _FEED), [])]
    for _ in range(taken.integer(1, 8)):
        x = held[-1] if b.chance(2) else b.pick(held)
        made = b.pick(_IMAGE if len(x.shape) == 4 else _VECTOR)(b, x, held)
        held += [] if made is None else [made]
    ends = [held[-1], b.pick(held)] if b.chance(3) else [held[-1]]
    outputs = [_real(b, product(b, x, held)) for x in ends]
    declared = [helper.make_tensor_value_info(v.name, TensorProto.FLOAT, v.shape) for v in (_FEED, *outputs)]
    stored = [numpy_helper.from_array(np.asarray(values), name) for name, values in b.tensors.items()]
    graph = helper.make_graph(b.nodes, "quantised", declared[:1], declared[1:], stored)
    return helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(_MS, 1)]
    )
