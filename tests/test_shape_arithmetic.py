"""Shape arithmetic against ONNX's reference implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnxprune.shapes.arithmetic import TRACKED, evaluate

LIST = np.array([3, 5, 7, 11, 13], np.int64)
TABLE = np.arange(12, dtype=np.int64).reshape(3, 4)
CASES: list[tuple[str, int, list[Any], dict[str, Any]]] = [
    ("Split", 2, [LIST[:4]], {}),
    ("Split", 3, [LIST], {"num_outputs": 3}),
    ("Split", 2, [LIST, [1, 4]], {}),
    ("Split", 2, [TABLE, [1, 3]], {"axis": 1}),
    ("Split", 2, [TABLE, [1, 3]], {"axis": -1}),
    ("ReduceProd", 1, [TABLE[:, 1:]], {}),
    ("ReduceSum", 1, [TABLE, [0]], {"keepdims": 0}),
    ("ReduceSum", 1, [TABLE, [-1]], {}),
    ("ReduceSum", 1, [TABLE], {"noop_with_empty_axes": 1}),
    ("ReduceMax", 1, [TABLE, [1]], {"keepdims": 0}),
    ("ReduceMin", 1, [TABLE], {"keepdims": 0}),
    ("Tile", 1, [TABLE, [2, 1]], {}),
    ("Clip", 1, [LIST, np.array(4)], {}),
    ("Clip", 1, [LIST, np.array(4), np.array(9)], {}),
    ("Flatten", 1, [TABLE], {}),
    ("Flatten", 1, [TABLE], {"axis": 0}),
    ("Flatten", 1, [TABLE], {"axis": -1}),
    ("Sign", 1, [LIST - 7], {}),
    ("Slice", 1, [TABLE, [2], [-9], [1], [-1]], {}),
    ("Slice", 1, [LIST, [1], [100]], {}),
    ("Gather", 1, [TABLE, [[0, -1]]], {"axis": 1}),
    ("Concat", 1, [TABLE, TABLE], {"axis": 1}),
    ("Squeeze", 1, [TABLE[None], [0]], {}),
    ("Unsqueeze", 1, [LIST, [0, 2]], {}),
    ("Shape", 1, [TABLE], {"start": -1}),
    ("Size", 1, [TABLE], {}),
    ("Range", 1, [np.array(1), np.array(9), np.array(3)], {}),
    ("Div", 1, [LIST - 7, np.array([2, 2, 2, 2, -2])], {}),
    ("Mod", 1, [LIST - 7, np.array([4])], {}),
    ("Transpose", 1, [TABLE], {}),
    ("Reshape", 1, [TABLE, [0, -1, 2]], {}),
    ("Expand", 1, [LIST, [2, 5]], {}),
    ("Where", 1, [TABLE > 4, TABLE, -TABLE], {}),
]


@pytest.mark.parametrize(("operator", "count", "arguments", "attributes"), CASES)
def test_values_are_those_of_the_reference(
    operator: str, count: int, arguments: list[Any], attributes: dict[str, Any]
) -> None:
    arrays = [np.asarray(each) for each in arguments]
    inputs, outputs = [f"i{k}" for k in range(len(arrays))], [f"o{k}" for k in range(count)]
    node = onnx.helper.make_node(operator, inputs, outputs, **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.INT64, None) for n in inputs],
        [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.INT64, None) for n in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    expected = ReferenceEvaluator(model).run(None, dict(zip(inputs, arrays, strict=True)))
    found = evaluate(node, arrays, arrays[0].shape)
    assert len(found) == count
    for ours, reference in zip(found, expected, strict=True):
        assert ours.dtype == reference.dtype
        np.testing.assert_array_equal(ours, reference, strict=True)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("Tile", [LIST, [TRACKED]]),
        ("Tile", [LIST, [2**62]]),
        ("ConstantOfShape", [[2**40]]),
        ("Range", [np.array(0), np.array(2**62), np.array(1)]),
    ],
)
def test_nothing_large_is_made(operator: str, arguments: list[Any]) -> None:
    arrays = [np.asarray(each) for each in arguments]
    node = onnx.helper.make_node(operator, [f"i{k}" for k in range(len(arrays))], ["o"])
    assert evaluate(node, arrays, None) == []
