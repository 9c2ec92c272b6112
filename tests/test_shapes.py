"""Shapes of models whose inputs have open dimensions."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxprune.graph import Graph
from onnxprune.shapes import Shapes, contradictions, infer_shapes


def graph_of(text: str, opset: int = 11, **weights: tuple[int, ...]) -> Graph:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    for name, shape in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    return Graph(model)


def fixed(shapes: Shapes, name: str) -> list[bool]:
    return [shapes.is_fixed(name, axis) for axis in range(len(shapes.of[name]))]


SINGLE_ROW = "g (float[N, 3, H, W] x) => (float[N, 4, A] y) { p = Conv(x, w) y = Squeeze<axes=[2]>(p) }"
SQUARE = """g (float[N, 3, H, W] x) => (float[N, 3, A, B] y)
    { r = Transpose<perm=[0, 1, 3, 2]>(x) a = Concat<axis=1>(x, r) p = Conv(a, w) y = Relu(p) }"""


def test_the_size_that_a_model_asks_for_is_found_and_fixed() -> None:
    shapes = infer_shapes(graph_of(SINGLE_ROW, w=(4, 3, 48, 1)))
    assert shapes.of["x"][2] == 48
    assert shapes.of["y"][1] == 4
    assert fixed(shapes, "x") == [False, True, True, False]
    assert fixed(shapes, "y") == [False, True, False]


def test_sizes_that_have_to_be_equal_are_changed_together() -> None:
    shapes = infer_shapes(graph_of(SQUARE.replace("H, W", "height, W"), w=(3, 6, 250, 250)))
    assert shapes.of["y"][1] == 3
    assert shapes.of["x"][2] == shapes.of["x"][3] >= 250
    assert fixed(shapes, "x") == [False, True, False, False]


def test_without_contradictions_sizes_go_by_place() -> None:
    shapes = infer_shapes(graph_of(SQUARE, w=(3, 6, 3, 3)))
    assert shapes.of["x"] == (2, 3, 224, 224)
    assert shapes.other["x"] == (3, 3, 320, 320)


def test_a_model_that_fits_no_likely_size_keeps_the_sizes_by_place() -> None:
    shapes = infer_shapes(graph_of(SINGLE_ROW, w=(4, 3, 47, 1)))
    assert shapes.of["p"] == (2, 4, 178, 224)
    assert "y" not in shapes.of


@pytest.mark.parametrize(("rows", "doubtful"), [(48, set()), (47, {"p", "y"}), (49, {"y"})])
def test_contradictions(rows: int, doubtful: set[str]) -> None:
    assert contradictions(graph_of(SINGLE_ROW, w=(4, 3, 48, 1)), {"x": (1, 3, rows, 7)}) == doubtful


def test_a_split_of_a_shape_is_followed() -> None:
    graph = graph_of("""g (float[N, 3, H, W] x) => (float[N, A] y)
        { s = Shape(x) n, rest = Split<split=[1, 3]>(s) m = ReduceProd<keepdims=1>(rest) t = Concat<axis=0>(n, m)
          y = Reshape(x, t) }""")
    assert infer_shapes(graph).of["y"] == (2, 3 * 224 * 224)


def test_a_fourier_transform_is_one_sided_by_default() -> None:
    graph = graph_of("""g (float[2, 1600, 1] x) => (float[2, 8, A, 2] y)
        { s = Constant<value = int64 {160}>() l = Constant<value = int64 {400}>() y = STFT(x, s, , l) }""", opset=17)
    assert infer_shapes(graph).of["y"] == (2, 8, 201, 2)  # as ONNX Runtime has it
