from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune import bench
from onnxprune.bench import benchmark, peak_memory
from onnxprune.errors import ModelError, UsageError


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')


RELU = model("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")


def chain(width: int, length: int) -> onnx.ModelProto:
    """x @ w @ w ... with ``length`` products of a [width, width] matrix."""
    steps = " ".join(f"t{i + 1} = MatMul(t{i}, w)" for i in range(length))
    each = model(f"g (float[N, {width}] t0) => (float[N, {width}] t{length}) {{ {steps} }}")
    each.graph.initializer.append(numpy_helper.from_array(np.eye(width, dtype=np.float32), "w"))
    return each


def test_more_work_takes_longer_and_is_slower_by_that() -> None:
    one, many = benchmark([chain(128, 1), chain(128, 40)], batch=32, repeats=15, provider="cpu", memory=False)
    assert many.p50_ms > 3 * one.p50_ms
    assert one.speedup == 1.0
    assert many.speedup == pytest.approx(one.p50_ms / many.p50_ms)


def test_percentiles_are_in_order_and_rounds_are_counted() -> None:
    (found,) = benchmark([RELU], repeats=20, provider="cpu", memory=False)
    assert 0 < found.p50_ms <= found.p90_ms <= found.p99_ms
    assert found.rounds == 20


def test_throughput_counts_items() -> None:
    (found,) = benchmark([RELU], batch=8, repeats=5, provider="cpu", memory=False)
    assert found.shapes == {"x": (8, 4)}
    assert found.throughput == pytest.approx(8 * 1000 / found.p50_ms)


def test_models_take_turns() -> None:
    calls: list[str] = []
    times = bench._take_turns([lambda: calls.append("a"), lambda: calls.append("b")], 1, 2, 1.0, None)
    assert calls == ["a", "b"] * 3
    assert times.shape == (2, 2)


def test_without_repeats_it_goes_on_for_the_time_given() -> None:
    done: list[float] = []
    (found,) = benchmark([RELU], seconds=0.05, provider="cpu", memory=False, progress=done.append)
    assert found.rounds > 5
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_models_with_other_inputs_are_refused() -> None:
    other = model("g (float[N, 4] z) => (float[N, 4] y) { y = Relu(z) }")
    with pytest.raises(UsageError, match="model 2 takes z: float32, but model 1 takes x: float32"):
        benchmark([RELU, other], provider="cpu")


def test_a_model_that_refuses_the_inputs_of_the_first_is_named() -> None:
    other = model("g (float[N, 5] x) => (float[N, 5] y) { y = Relu(x) }")
    with pytest.raises(ModelError, match=r"model 2 does not run on the inputs of model 1 \(x=1,4\): "):
        benchmark([RELU, other], provider="cpu")


@pytest.mark.parametrize(
    "wrong", [{"repeats": 0}, {"threads": 0}, {"batch": 0}, {"seconds": 0.0}, {"warmup": -1}]
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="a benchmark takes"):
        benchmark([RELU], provider="cpu", **wrong)  # type: ignore[arg-type]


def test_outputs_of_another_shape_than_declared_are_timed() -> None:
    """ONNX Runtime warns of them, but does not run into memory that the shape does not fit."""
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2,3] x) => (float[1,1,7] y) { z = Relu(x) y = Identity(z) }'
    )
    assert benchmark([model, model], repeats=2)[1].rounds == 2


def test_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="a benchmark takes"):
        benchmark([])


def test_what_is_stored_includes_external_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(chain(64, 1), path, save_as_external_data=True, location="w.data", size_threshold=0)
    (found,) = benchmark([path], repeats=1, provider="cpu", memory=False)
    assert found.stored_bytes == path.stat().st_size + 64 * 64 * 4


def test_the_result_is_json() -> None:
    (found,) = benchmark([RELU], repeats=1, provider="cpu", memory=False)
    read = json.loads(json.dumps(found.to_json()))
    assert read["model"] == "model 1"
    assert read["provider"] == "cpu"
    assert read["shapes"] == {"x": [1, 4]}
    assert read["peak_bytes"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process took")
def test_memory_is_that_of_weights_and_activations() -> None:
    megabytes = 16
    width = int((megabytes * 1e6 / 4) ** 0.5)
    found = peak_memory(chain(width, 1), {"t0": np.ones((1, width), np.float32)})
    assert found is not None
    assert megabytes * 1e6 < found < 6 * megabytes * 1e6
