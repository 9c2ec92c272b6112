"""Which inputs of an operator hold quantised numbers, real = (q − zero point)·scale, and where their parameters are.

One row an operator: the index of a quantised input → the indices of its scale and of its zero point. Both are scalars,
vectors along one axis of the input, or blocked (a number for every ``block_size`` indices of an axis). Operators are
described at https://onnx.ai/onnx/operators/; those of com.microsoft in ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.graph import Graph, attribute
from onnxprune.weights import weight_values

__all__ = ["Quantised", "axis_of", "point_name", "quantised", "real_values", "spread"]


@dataclass(frozen=True)
class Quantised:
    """Input indices of ``scale`` and ``point`` (None: there is none), and the ``axis`` that vectors of them run along
    (None: the node's attribute)."""

    scale: int | None
    point: int | None
    axis: int | None = -1


_ANY = {
    "DequantizeLinear": {0: Quantised(1, 2, None)},
    "QLinearConv": {0: Quantised(1, 2, 1), 3: Quantised(4, 5, 0)},
    "ConvInteger": {0: Quantised(None, 2, 1), 1: Quantised(None, 3, 0)},
    "QLinearMatMul": {0: Quantised(1, 2, -2), 3: Quantised(4, 5)},
    "MatMulInteger": {0: Quantised(None, 2, -2), 1: Quantised(None, 3)},
    "DynamicQuantizeMatMul": {1: Quantised(2, 3)},
    "DynamicQuantizeLSTM": {1: Quantised(8, 9), 2: Quantised(10, 11)},
    "MatMulIntegerToFloat": {0: Quantised(2, 4, -2), 1: Quantised(3, 5)},
    "QAttention": {0: Quantised(3, 6), 1: Quantised(4, 7)},
    "QGemm": {0: Quantised(1, 2), 3: Quantised(4, 5)},
    "QLinearAdd": {0: Quantised(1, 2), 3: Quantised(4, 5)},
    "QLinearMul": {0: Quantised(1, 2), 3: Quantised(4, 5)},
    "QLinearWhere": {1: Quantised(2, 3), 4: Quantised(5, 6)},
    "QLinearAveragePool": {0: Quantised(1, 2)},
    "QLinearGlobalAveragePool": {0: Quantised(1, 2)},
    "QLinearLeakyRelu": {0: Quantised(1, 2)},
    "QLinearSigmoid": {0: Quantised(1, 2)},
    "QLinearSoftmax": {0: Quantised(1, 2)},
}
"""Operator → quantised input → its parameters. Names are the same in all domains that have such an operator."""


def quantised(node: NodeProto, k: int) -> Quantised | None:
    """The parameters of input k of a node, or None where it does not hold quantised numbers."""
    if node.op_type == "QLinearConcat" and k >= 2 and k % 3 == 2:
        return Quantised(k + 1, k + 2)
    return _ANY.get(node.op_type, {}).get(k)


def point_name(node: NodeProto, k: int) -> str:
    """The zero point of input k: the name of a tensor, '' where it is 0."""
    held = quantised(node, k)
    if held is None or held.point is None or held.point >= len(node.input):
        return ""
    name: str = node.input[held.point]
    return name


def spread(node: NodeProto, k: int, parameter: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    """A scale or zero point of input k, which has this shape, as an array that broadcasts to it."""
    if parameter.size == 1:
        return parameter.reshape(())
    if node.op_type == "DynamicQuantizeLSTM":  # a number for every direction, or for every gate of every unit
        return parameter.reshape(shape[0], 1, -1)
    axis = axis_of(node, k) % len(shape)
    block = attribute(node, "block_size")
    if isinstance(block, int) and block > 0:
        repeated = np.repeat(parameter, block, axis=axis)
        return repeated[(slice(None),) * axis + (slice(shape[axis]),)]
    if parameter.ndim > 1:
        return parameter
    return parameter.reshape([-1 if a == axis else 1 for a in range(len(shape))])


def axis_of(node: NodeProto, k: int) -> int:
    """The axis that vectors of scales and zero points of input k run along, perhaps counted from the end."""
    held = quantised(node, k)
    if node.op_type == "QGemm" and k == 3 and attribute(node, "transB"):
        return 0
    if held is not None and held.axis is not None:
        return held.axis
    named = attribute(node, "axis")
    return named if isinstance(named, int) else 1


def real_values(graph: Graph, index: int, k: int) -> NDArray[np.generic]:
    """The numbers that input k of a node stands for, if they do not depend on the model's inputs.

    A quantised input is (q − zero point)·scale, float32, without the scale where that is computed at run time.
    Raises: see ``weight_values``.
    """
    node = graph.nodes[index]
    if node.op_type == "MatMulNBits":
        return _unpacked(graph, node)
    values, held = weight_values(graph, node.input[k]), quantised(node, k)
    if held is None:
        return values
    real = values.astype(np.float32)
    for place, combine in ((held.point, np.subtract), (held.scale, np.multiply)):
        name = node.input[place] if place is not None and place < len(node.input) else ""
        if name and (place == held.point or name in graph.constants):
            parameter = weight_values(graph, name).astype(np.float32)
            real = combine(real, spread(node, k, parameter, values.shape))
    return real


def _unpacked(graph: Graph, node: NodeProto) -> NDArray[np.generic]:
    """The weight [N, K] of a MatMulNBits, float32: (q − zero point)·scale, block by block; without zero points, the
    middle is zero."""
    bits, width = attribute(node, "bits"), attribute(node, "K")
    packed, scales, *rest = (weight_values(graph, name) for name in node.input[1:4] if name)
    points = rest[0] if rest else None
    assert isinstance(width, int)
    bits, (rows, blocks, _) = bits if isinstance(bits, int) else 4, packed.shape
    if points is None:
        zero = np.full((rows, blocks), float(1 << (bits - 1)))
    elif points.dtype == np.uint8:
        zero = _small_integers(points.reshape(rows, -1), bits)[:, :blocks]
    else:
        zero = points.astype(np.float64).reshape(rows, blocks)
    real = (_small_integers(packed, bits) - zero[..., None]) * scales.astype(np.float64).reshape(rows, blocks, 1)
    return np.asarray(real.reshape(rows, -1)[:, :width], np.float32)


def _small_integers(packed: NDArray[np.generic], bits: int) -> NDArray[np.float64]:
    """Numbers of some bits each that lie one after another in bytes, the low bits first."""
    split = np.unpackbits(packed.astype(np.uint8)[..., None], axis=-1, bitorder="little")
    return np.asarray(split.reshape(*packed.shape[:-1], -1, bits) @ (1 << np.arange(bits)), np.float64)
