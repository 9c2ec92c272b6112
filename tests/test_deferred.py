"""Weights in data files are cut as they are written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import run
from exactness import model_of
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from outside import assert_same_outside, saved_outside
from random_models import random_model, unusual_model

import onnxprune
from onnxprune import deferred, runtime
from onnxprune.errors import ModelError, VerificationError
from onnxprune.files import staging
from onnxprune.graph import Graph
from onnxprune.passes import rewrite

CHAIN = "(float[1,3,8,8] x) => (float[1,4,8,8] y) { a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) y = Conv(b, v) }"


@pytest.fixture
def chain() -> ModelProto:
    return model_of(CHAIN, w=(32, 3, 3, 3), v=(4, 32, 1, 1))


def test_random_models_are_pruned_alike_in_memory_and_from_files() -> None:
    """By sparsity, and what is dead: the same proto, weights included."""
    waited = 0
    for seed in range(60):
        for make in (random_model, unusual_model):
            model = make(seed)
            try:
                waited += assert_same_outside(model, sparsity=0.4, method="magnitude", align="none")
            except onnxprune.UnreachableError as refusal:
                waited += assert_same_outside(model, sparsity=refusal.reachable / 2, method="magnitude", align="none")
    assert waited > 100


def test_small_weights_and_indices_do_not_wait(chain: ModelProto, tmp_path: Path) -> None:
    result = onnxprune.prune(saved_outside(chain, tmp_path / "model.onnx"), sparsity=0.5, check=False)
    assert not result.made.pending
    assert all(tensor.raw_data for tensor in result.model.graph.initializer)


def test_a_weight_that_waits_is_not_in_memory(
    chain: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred, "_LARGE", 1)
    result = onnxprune.prune(saved_outside(chain, tmp_path / "model.onnx"), sparsity=0.5, check=False)
    assert set(result.made.pending) == {"w", "v"}
    assert not any(tensor.raw_data for tensor in result.made.outline.graph.initializer)
    assert result.verified().verification is not None


def _too_few(values: NDArray[Any], axes: object, keep: object) -> Iterator[NDArray[Any]]:
    yield values[:1]


def _too_many(values: NDArray[Any], axes: object, keep: object) -> Iterator[NDArray[Any]]:
    yield values


def _of_another_type(values: NDArray[Any], axes: Any, keep: Any) -> Iterator[NDArray[Any]]:
    yield rewrite.take_kept(values, axes, keep).astype(np.float64)


@pytest.mark.parametrize("wrong", [_too_few, _too_many, _of_another_type])
def test_what_is_written_is_what_was_declared(
    wrong: Any, chain: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred, "_LARGE", 1)
    monkeypatch.setattr(rewrite, "kept_blocks", wrong)
    result = onnxprune.prune(saved_outside(chain, tmp_path / "model.onnx"), sparsity=0.5, check=False)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(VerificationError, match=r"constant '\w' is not what its shape \[.*\] says"):
        result.save(tmp_path / "out.onnx")
    assert sorted(tmp_path.iterdir()) == before


def test_an_error_of_the_disk_while_writing_is_not_lost(
    chain: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(staging, "_PART", 1)
    monkeypatch.setattr(staging, "_SYNC", fails)
    result = onnxprune.prune(saved_outside(chain, tmp_path / "model.onnx"), sparsity=0.5, check=False)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError, match="cannot be written: Input/output error"):
        result.save(tmp_path / "out.onnx")
    assert sorted(tmp_path.iterdir()) == before


def test_a_constant_of_the_same_name_is_not_taken_for_one_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tensor in a Constant node is called says nothing."""
    text = CHAIN.replace("b = Relu(a)", "s = Constant<value = float[1] {1.0}>() r = Relu(a) b = Add(r, s)")
    chain = model_of(text, w=(32, 3, 3, 3), v=(4, 32, 1, 1))
    constant = next(node for node in chain.graph.node if node.op_type == "Constant")
    constant.attribute[0].t.CopyFrom(numpy_helper.from_array(np.full((1, 1, 8, 8), 3, np.float32), "w"))
    path = tmp_path / "model.onnx"
    onnx.save(chain, path, save_as_external_data=True, location="w.bin", size_threshold=0, convert_attribute=True)
    monkeypatch.setattr(deferred, "_LARGE", 1)
    result = onnxprune.prune(path, sparsity=0.5, check=False)
    assert result.made.pending
    result.save(tmp_path / "out.onnx")
    written = next(node for node in onnx.load(tmp_path / "out.onnx").graph.node if node.op_type == "Constant")
    assert np.all(numpy_helper.to_array(written.attribute[0].t) == 3)


def test_data_that_was_overwritten_is_not_taken_for_what_was_read(
    chain: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the result itself, for instance."""
    onnx.save(chain, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    monkeypatch.setattr(deferred, "_LARGE", 1)
    result = onnxprune.prune(tmp_path / "model.onnx", sparsity=0.5, check=False)
    result.save(tmp_path / "model.onnx")
    before = sorted(tmp_path.iterdir())
    changed = r"model.onnx.data' was changed after .*; read the model again"
    with pytest.raises(ModelError, match=changed):
        result.save(tmp_path / "out.onnx")
    with pytest.raises(ModelError, match=changed):
        assert result.model
    with pytest.raises(ModelError, match=changed):
        assert result.masked
    assert sorted(tmp_path.iterdir()) == before


def test_a_large_model_is_verified_in_place_and_not_timed(
    chain: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = list[bool]()
    right = runtime.open_session

    def open_session(*models: Any, in_place: bool = False, **options: Any) -> Any:
        asked.append(in_place)
        return right(*models, in_place=in_place, **options)

    monkeypatch.setattr(runtime, "_LARGE", 0)
    monkeypatch.setattr(deferred, "_LARGE", 1)
    monkeypatch.setattr(sys.modules["onnxprune.verify"], "open_session", open_session)
    monkeypatch.setattr("onnxprune.cli.CAN_FORK", False)  # what is asked in a child is not heard here
    monkeypatch.setattr("onnxprune.cli.benchmark", None)
    path = saved_outside(chain, tmp_path / "model.onnx")
    assert run(path, "-s", "0.5", "-o", tmp_path / "out.onnx") == 0
    assert asked == [True, True]
    assert "not timed: a model of over 1 GB is with --bench alone" in capsys.readouterr().out


def test_a_wrong_result_is_also_found_in_place(
    chain: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(values: NDArray[Any], axes: Any, keep: Any) -> Iterator[NDArray[Any]]:
        yield np.multiply(rewrite.take_kept(values, axes, keep), np.float32(1.1))

    monkeypatch.setattr(runtime, "_LARGE", 0)
    monkeypatch.setattr(deferred, "_LARGE", 1)
    monkeypatch.setattr(rewrite, "kept_blocks", wrong)
    with pytest.raises(VerificationError, match="does not agree with its reference"):
        onnxprune.prune(saved_outside(chain, tmp_path / "model.onnx"), sparsity=0.5)


# ---- reading --------------------------------------------------------------------------------------------------------

TYPES = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT64", "INT8", "UINT4", "BOOL", "FLOAT8E4M3FN")
on_linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("offset", [0, 3, 64])
@pytest.mark.parametrize("dims", [(3, 5), (1,), (0, 4), (200, 1000)])
def test_numbers_in_files_are_read_as_onnx_reads_them(
    kind: str, offset: int, dims: tuple[int, ...], tmp_path: Path
) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(kind))
    values = np.random.default_rng(0).integers(0, 2 if kind == "BOOL" else 8, dims).astype(dtype)
    tensor = numpy_helper.from_array(values, "w")
    (tmp_path / "w.bin").write_bytes(bytes(offset) + tensor.raw_data)
    for key, value in (("location", "w.bin"), ("offset", offset), ("length", len(tensor.raw_data))):
        tensor.external_data.add(key=key, value=str(value))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    model = helper.make_model(helper.make_graph([], "stored", [], [], [tensor]))
    found = Graph(model, tmp_path).values("w")
    assert found.dtype == dtype
    assert np.array_equal(found.astype(np.float64), values.astype(np.float64))
    is_mapped = kind != "UINT4" and values.nbytes >= 2**16 and offset % values.itemsize == 0
    assert found.shape == dims
    assert is_mapped <= (not found.flags.writeable)


@on_linux
def test_small_constants_keep_no_file_open(chain: ModelProto, tmp_path: Path) -> None:
    graph = Graph(onnx.load(saved_outside(chain, tmp_path / "model.onnx"), load_external_data=False), tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    held = [graph.values("w") for _ in range(50)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 5 < before + len(held)


def test_a_data_file_that_was_cut_short_is_one_line(chain: ModelProto, tmp_path: Path) -> None:
    path = saved_outside(chain, tmp_path / "model.onnx")
    model = onnx.load(path, load_external_data=False)
    data = tmp_path / "model.onnx.weights"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"constant 'w' cannot be read: .* has 100 bytes"):
        Graph(model, tmp_path).values("w")
