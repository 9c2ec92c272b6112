"""The shapes of operators that ONNX has no schema for: those of a standard operator on some of their inputs.

One row an operator of com.microsoft: the standard operator, and the inputs it would read. Element types do not matter
to it, so all count as float. https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import NodeProto, TensorProto

__all__ = ["stand_in_shape", "stand_in_type"]

_OPSET = 17
_LAYOUT = {"channels_last": 0}  # a row holds only while these attributes have these values
_ROWS: dict[str, tuple[str, tuple[int, ...]]] = {
    "DequantizeLinear": ("Identity", (0,)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "FusedConv": ("Conv", (0, 1)),
    "FusedGemm": ("Gemm", (0, 1)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
    "QGemm": ("Gemm", (0, 3)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearLeakyRelu": ("Identity", (0,)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearSigmoid": ("Identity", (0,)),
    "QLinearSoftmax": ("Identity", (0,)),
    "QLinearWhere": ("Where", (0, 1, 4)),
    "QuantizeLinear": ("Identity", (0,)),
}


def stand_in_shape(node: NodeProto, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...] | None:
    """The shape of the first output, from the shapes of the inputs; None where it cannot be told."""
    row = _ROWS.get(node.op_type)
    if node.op_type == "QLinearConcat":
        row = ("Concat", tuple(range(2, len(node.input), 3)))
    given = {held.name: onnx.helper.get_attribute_value(held) for held in node.attribute}
    if row is None or node.domain != "com.microsoft" or any(given.get(n, v) != v for n, v in _LAYOUT.items()):
        return None
    op, places = row
    if max(places, default=0) >= len(node.input):
        return None
    names = [node.input[k] for k in places]
    if any(name not in shapes for name in names):
        return None
    schema = onnx.defs.get_schema(op, _OPSET)
    stand_in = onnx.helper.make_node(op, names, ["y"])
    stand_in.attribute.extend(held for held in node.attribute if held.name in schema.attributes)
    kinds = {name: onnx.helper.make_tensor_type_proto(_type(op, k), shapes[name]) for k, name in enumerate(names)}
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, stand_in, kinds, opset_imports=[onnx.helper.make_opsetid("", _OPSET)]
        )
    except Exception:  # shapes that contradict each other
        return None
    dims = found["y"].tensor_type.shape.dim if "y" in found else []
    return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None


def _type(op: str, k: int) -> int:
    return TensorProto.BOOL if op == "Where" and k == 0 else TensorProto.FLOAT


_FROM = {"QGemm": 8, "QLinearConcat": 1, "QLinearWhere": 1, "QuantizeLinear": 2}
"""The input that has the element type of the result, if it is not the first; without it, the result is float."""
_TO_FLOAT = frozenset(("DequantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"))


def stand_in_type(node: NodeProto, types: Mapping[str, int]) -> int:
    """The element type of the first output."""
    place = _FROM.get(node.op_type, 0)
    if node.op_type in _TO_FLOAT or place >= len(node.input):
        return TensorProto.UINT8 if node.op_type == "QuantizeLinear" else TensorProto.FLOAT
    return types.get(node.input[place], TensorProto.FLOAT)
