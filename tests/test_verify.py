from __future__ import annotations

import importlib
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune.errors import ModelError, UsageError
from onnxprune.runtime import Array, open_session
from onnxprune.verify import (
    OutputComparison,
    compare_outputs,
    default_tolerance,
    interface_differences,
    squashed_tensors,
    verify,
)


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')


def compared(a: Array, b: Array, rtol: float = 1e-4) -> OutputComparison:
    return compare_outputs({"y": a}, {"y": b}, rtol=rtol).outputs[0]


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


LINEAR = "g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }"
TWO = "g (float[N, 2] x) => (float[N, 2] y, float[N, 2] z) { y = Relu(x) z = Neg(x) }"


# Outputs


def test_equal_outputs_have_no_error() -> None:
    found = compared(floats(1, 2), floats(1, 2))
    assert (found.ok, found.error, found.where) == (True, 0.0, None)


def test_an_error_is_relative_to_the_scale_and_has_a_place() -> None:
    found = compared(np.array([[0.0, 1.0], [-4.0, 2.0]]), np.array([[0.0, 1.0], [-4.0, 2.1]]))
    assert found.max_abs == pytest.approx(0.1)
    assert found.scale == 4.0
    assert found.error == pytest.approx(0.025)
    assert found.where == (1, 1)
    assert found.differing == 0.25
    assert not found.ok


def test_an_error_within_the_tolerance_is_rounding() -> None:
    assert compared(floats(10), floats(10.0005)).ok
    assert not compared(floats(10), floats(10.005)).ok


def test_outputs_that_are_all_tiny_are_not_compared_to_themselves() -> None:
    assert compared(floats(9e-8, 1e-12), floats(0, 0)).ok
    assert not compared(floats(9e-8, 1e-12), floats(2e-6, 0)).ok


def test_nans_and_infinities_in_the_same_places_are_equal() -> None:
    a = floats(np.nan, np.inf, -np.inf, 2)
    found = compared(a, a.copy())
    assert found.ok
    assert found.finite == 0.25


@pytest.mark.parametrize("b", [(1, np.nan), (np.nan, 2), (np.inf, 1), (1, -np.inf), (np.nan, np.nan)])
def test_a_nan_or_infinity_elsewhere_is_an_infinite_error(b: tuple[float, float]) -> None:
    found = compared(floats(np.nan, 1) if b[0] == 1 else floats(1, np.inf), floats(*b))
    assert found.error == np.inf
    assert not found.ok


def test_whole_numbers_have_to_be_equal() -> None:
    found = compared(np.array([2**60, 4, 5, 6]), np.array([2**60 + 1, 4, 5, 6]), rtol=1.0)
    assert not found.ok
    assert found.differing == 0.25
    assert found.where == (0,)


@pytest.mark.parametrize("values", [[True, False], ["a", "b"]])
def test_booleans_and_strings_have_to_be_equal(values: list[object]) -> None:
    a = np.array(values, object if isinstance(values[0], str) else bool)
    assert compared(a, a.copy()).ok
    assert not compared(a, a[::-1]).ok


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
def test_a_scalar_is_compared_like_any_other_output(dtype: type) -> None:
    assert compared(np.array(1, dtype), np.array(1, dtype)).ok
    assert not compared(np.array(1, dtype), np.array(0, dtype)).ok


def test_another_shape_is_a_difference() -> None:
    found = compared(np.ones((2, 3), np.float32), np.ones((3, 2), np.float32))
    assert not found.ok
    assert "'y' is float32[3, 2] instead of float32[2, 3]" in str(found)


def test_another_type_is_a_difference() -> None:
    assert (
        compared(np.ones(2, np.float32), np.ones(2, np.float16)).problem
        == "is float16[2] instead of float32[2]"
    )


def test_empty_outputs_are_equal() -> None:
    assert compared(np.ones((0, 3)), np.ones((0, 3))).ok


def test_the_worst_output_is_named() -> None:
    found = compare_outputs({"a": floats(1), "b": floats(1)}, {"a": floats(1.1), "b": floats(1.2)})
    assert not found.ok
    assert found.worst is not None
    assert found.worst.name == "b"
    assert str(found).startswith("2 of 2 outputs differ: 'b' is off by 0.2")


# Interfaces


@pytest.mark.parametrize(
    ("text", "difference"),
    [
        (TWO.replace("z", "q"), "output 'z' is missing"),
        (TWO.replace("float[N, 2] x", "float[M, 2] x"), "input 'x' is float[M,2] instead of float[N,2]"),
        (TWO.replace("float[N, 2] x", "float[4, 2] x"), "input 'x' is float[4,2] instead of float[N,2]"),
        (TWO.replace("float[N, 2] z", "double[N, 2] z"), "output 'z' is double[N,2] instead of float[N,2]"),
        (
            TWO.replace("(float[N, 2] y, float[N, 2] z)", "(float[N, 2] z, float[N, 2] y)"),
            "the outputs come in the order z, y instead of y, z",
        ),
        (TWO.replace("x) =>", "x, float k) =>"), "input 'k' is new"),
    ],
)
def test_a_difference_of_the_interface_is_found(text: str, difference: str) -> None:
    assert difference in interface_differences(model(TWO), model(text))


def test_weights_among_the_inputs_are_no_interface() -> None:
    old, new = model(LINEAR), model(LINEAR)
    old.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [2, 2]))
    assert interface_differences(old, new) == ()


# Models


def test_a_model_is_the_same_as_itself() -> None:
    found = verify(model(LINEAR), model(LINEAR))
    assert found.ok
    assert str(found) == (
        "same: 1 output within 0.0e+00 of scale, 1e-04 allowed (2 inputs on cpu: x=1,2; x=2,2)"
    )


def test_a_weight_that_is_off_by_a_thousandth_is_found() -> None:
    found = verify(model(LINEAR), model(LINEAR.replace("3, 4", "3.003, 4")))
    assert not found.ok
    assert 1e-4 < found.error < 1e-2
    assert str(found).startswith("different: 'y' is off by ")


def test_a_renamed_output_is_not_the_same() -> None:
    found = verify(model(LINEAR), model(LINEAR.replace("y", "out")))
    assert not found.ok
    assert str(found).startswith("different: output 'y' is missing; output 'out' is new")


def test_swapped_outputs_are_not_the_same() -> None:
    swapped = model(TWO.replace("(float[N, 2] y, float[N, 2] z)", "(float[N, 2] z, float[N, 2] y)"))
    found = verify(model(TWO), swapped)
    assert found.error == 0
    assert not found.ok


def test_an_output_of_another_type_is_not_the_same() -> None:
    double = (
        LINEAR.replace("float[N, 2] y", "double[N, 2] y")
        .replace("y = MatMul", "f = MatMul")
        .replace("(x, w) }", "(x, w) y = Cast <to = 11> (f) }")
    )
    found = verify(model(LINEAR), model(double))
    assert "output 'y' is double[N,2] instead of float[N,2]" in found.interface
    assert not found.ok


def test_an_output_of_another_size_is_not_the_same() -> None:
    text = "g (float[N, 2] x) => (float[A, B] y) {{ y = {} }}"
    found = verify(model(text.format("Identity(x)")), model(text.format("Transpose(x)")))
    assert not found.interface
    assert "'y' is float32[2, 1] instead of float32[1, 2]" in str(found)


def test_other_inputs_are_reported_and_not_run() -> None:
    found = verify(model(LINEAR), model(LINEAR.replace("x", "q")))
    assert not found.ok
    assert found.samples == ()
    assert "input 'x' is missing" in str(found)


def test_a_size_fixed_by_mistake_is_found_by_the_second_sample() -> None:
    text = "g (float[N, 2] x) => (float[A, 2] y) <int64[2] s = {%s, 2}> { y = Reshape(x, s) }"
    free, fixed = model(text % "-1"), model(text % "1")
    assert verify(free, fixed, samples=1).ok
    with pytest.raises(ModelError, match="the second model fails on inputs that the first one runs on"):
        verify(free, fixed, samples=2)


def test_inputs_can_be_given() -> None:
    found = verify(model(LINEAR), model(LINEAR), inputs={"x": np.ones((5, 2), np.float32)})
    assert found.shapes == ({"x": (5, 2)},)
    assert found.ok


def test_given_inputs_have_to_fit() -> None:
    with pytest.raises(UsageError, match="takes float32"):
        verify(model(LINEAR), model(LINEAR), inputs={"x": np.ones((5, 2))})


def test_only_one_session_is_open_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[weakref.ref[object]] = []

    def spy(source: onnx.ModelProto, **options: Any) -> object:
        assert all(session() is None for session in opened)
        session = open_session(source, **options)
        opened.append(weakref.ref(session))
        return session

    # Not by attribute: the package may export the function of the same name.
    monkeypatch.setattr(importlib.import_module("onnxprune.verify"), "open_session", spy)
    assert verify(model(LINEAR), model(LINEAR)).ok
    assert len(opened) == 2


def test_files_with_external_data_can_be_compared_inside(tmp_path: Path) -> None:
    text = "g (float[N, 300] x) => (float[N, 4] y) { z = MatMul(x, w) y = Sigmoid(z) }"
    for name, value in (("a", 1.0), ("b", 1.01)):
        each = model(text)
        each.graph.initializer.append(numpy_helper.from_array(np.full((300, 4), value, np.float32), "w"))
        onnx.save(
            each, tmp_path / f"{name}.onnx", save_as_external_data=True, location=name, size_threshold=0
        )
    found = verify(tmp_path / "a.onnx", tmp_path / "b.onnx", inside=["z"])
    assert [output.name for output in found.samples[0].outputs] == ["y", "z"]
    assert found.samples[0].outputs[1].error == pytest.approx(0.01, rel=1e-3)


def test_what_saturates_is_compared_before_it_does() -> None:
    text = "g (float[N, 2] x) => (float[N, 2] y) <float[2] c = {%s}> { z = Add(x, c) y = Sigmoid(z) }"
    a, b = model(text % "-99, -99"), model(text % "-98, -98")
    assert verify(a, b).ok
    assert not verify(a, b, inside=squashed_tensors(a)).ok


def test_squashed_tensors_are_found_behind_moving_ops() -> None:
    found = model(
        "g (float[N, 2] x) => (float[M, 2] y, float[N, 2] r) "
        "{ a = Neg(x) b = Abs(x) s = Sigmoid(a) t = Softmax(b) u = Transpose(t) c = Concat <axis = 0> (s, u)"
        " y = Identity(c) r = Relu(x) }"
    )
    assert squashed_tensors(found) == ("a", "b")


@pytest.mark.parametrize(("dtype", "tolerance"), [("float", 1e-4), ("float16", 2e-2), ("bfloat16", 1e-1)])
def test_the_tolerance_follows_the_coarsest_type(dtype: str, tolerance: float) -> None:
    text = f"g ({dtype}[N, 2] x) => (float[N, 2] y) {{ y = Cast <to = 1> (x) }}"
    assert default_tolerance(model(text)) == tolerance


def test_the_result_is_json() -> None:
    found = verify(model(LINEAR), model(LINEAR.replace("3, 4", "3, nan")))
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert read["ok"] is False
    assert read["error"] is None
    assert read["samples"][1]["shapes"] == {"x": [2, 2]}
