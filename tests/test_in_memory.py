"""A model in memory is checked as its file would be: same refusals, in the same words, by every way in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from untrusted_models import BUILDERS

import onnxprune
from onnxprune.errors import ModelError, OnnxpruneError, UsageError
from onnxprune.model_io import checked, load

Use = Callable[..., object]
_WAYS: dict[str, Use] = {
    "lossless": onnxprune.prune,
    "half": lambda model, **options: onnxprune.prune(model, sparsity=0.5, **options),
    "kernels": lambda model, **options: onnxprune.prune(model, sparsity=0.5, granularity="kernel", **options),
    "inspect": onnxprune.inspect,
}


def two_layers() -> ModelProto:
    """x [1, 8] → MatMul → Relu → MatMul → y, weights inside."""
    numbers = np.random.default_rng(0).standard_normal((2, 8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    stored = [numpy_helper.from_array(each, name) for each, name in zip(numbers, "wv", strict=True)]
    graph = helper.make_graph(nodes, "g", [value("x", 1, [1, 8])], [value("y", 1, [1, 8])], stored)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def _cycle(model: ModelProto) -> None:
    model.graph.node[0].input[0] = "r"


def _made_twice(model: ModelProto) -> None:
    model.graph.node[1].output[0] = "a"


def _stored_twice(model: ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def _made_by_nobody(model: ModelProto) -> None:
    model.graph.node[1].input[0] = "nobody"


def _no_input(model: ModelProto) -> None:
    del model.graph.input[:]


def _output_made_by_nobody(model: ModelProto) -> None:
    model.graph.output[0].name = "z"


def _no_outputs(model: ModelProto) -> None:
    del model.graph.output[:]


def _no_graph(model: ModelProto) -> None:
    model.ClearField("graph")


def _no_operator_set(model: ModelProto) -> None:
    del model.opset_import[:]


def _lying_size(model: ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 9


def _lying_entries(model: ModelProto) -> None:
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].float_data.extend([1.0] * 63)


def _negative_size(model: ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [-8, -8]


def _unknown_type(model: ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


_FAULTS: dict[Callable[[ModelProto], None], str] = {
    _cycle: "cycle",
    _made_twice: "'a' is there twice",
    _stored_twice: "'w' is there twice",
    _made_by_nobody: "reads 'nobody'",
    _no_input: "reads 'x'",
    _output_made_by_nobody: "'z'",
    _no_outputs: "no outputs",
    _no_graph: "no graph",
    _no_operator_set: "opset_import",
    _lying_size: "'w' holds 256 bytes",
    _lying_entries: "'w' holds 63 entries",
    _negative_size: "negative size",
    _unknown_type: "has the type 99",
}


def _refuse(way: str, model: ModelProto, reason: str, **options: object) -> None:
    before = model.SerializeToString(deterministic=True)
    with pytest.raises(ModelError, match=reason) as caught:
        _WAYS[way](model, **options)
    assert "\n" not in str(caught.value)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("fault", _FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_what_contradicts_itself_is_refused(way: str, fault: Callable[[ModelProto], None]) -> None:
    model = two_layers()
    fault(model)
    _refuse(way, model, _FAULTS[fault])


def _outside(model: ModelProto, location: str = "weights.bin", **entries: object) -> dict[str, bytes]:
    """Move the first weight out of the model; returns the files that belong to it."""
    tensor = model.graph.initializer[0]
    content = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return {"weights.bin": content}


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"location": "absent.bin"}, "no such file"),
        ({"location": "../weights.bin"}, "outside the model's folder"),
        ({"location": "/etc/passwd"}, "outside the model's folder"),
        ({"offset": 64}, "needs 256"),
        ({"offset": -1}, "fetch it again"),
        ({"length": 64}, "needs 256"),
        ({"offset": "here"}, "no number"),
    ],
)
def test_bad_references_to_other_files_are_refused(
    way: str, entries: dict[str, object], reason: str, tmp_path: Path
) -> None:
    model = two_layers()
    for name, content in _outside(model, **entries).items():  # type: ignore[arg-type]
        (tmp_path / name).write_bytes(content)
    _refuse(way, model, reason, folder=tmp_path)


@pytest.mark.parametrize("way", _WAYS)
def test_other_files_need_a_folder(way: str) -> None:
    model = two_layers()
    _outside(model)
    _refuse(way, model, r"'w' keeps its data in another file; say in which folder")


@pytest.mark.parametrize("way", ["half", "kernels"])
def test_weights_in_other_files_are_pruned_verified_and_saved(way: str, tmp_path: Path) -> None:
    inside, model = two_layers(), two_layers()
    for name, content in _outside(model).items():
        (tmp_path / name).write_bytes(content)
    result = _WAYS[way](model, folder=tmp_path)
    assert isinstance(result, onnxprune.Result)
    assert result.verification is not None
    assert result.verification.ok
    result.save(tmp_path / "small.onnx")
    expected = _WAYS[way](inside)
    assert isinstance(expected, onnxprune.Result)
    expected.save(tmp_path / "expected.onnx")
    assert onnxprune.verify(tmp_path / "expected.onnx", tmp_path / "small.onnx").error == 0


def test_what_holds_weights_is_not_overwritten(tmp_path: Path) -> None:
    model = two_layers()
    for name, content in _outside(model).items():
        (tmp_path / name).write_bytes(content)
    result = onnxprune.prune(model, folder=tmp_path)
    with pytest.raises(UsageError, match="holds weights of the model"):
        result.save(tmp_path / "weights.bin")


def test_nodes_in_another_order_are_sorted_in_a_copy() -> None:
    model, plain = two_layers(), two_layers()
    nodes = list(plain.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])
    result = onnxprune.prune(model, sparsity=0.5)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Relu", "MatMul"]
    assert [node.output[0] for node in model.graph.node] == ["y", "r", "a"]
    assert result.model == onnxprune.prune(plain, sparsity=0.5).model


def test_a_model_in_order_is_not_copied() -> None:
    model = two_layers()
    assert checked(model).proto is model


@pytest.mark.parametrize("way", _WAYS)
def test_what_is_no_model_is_a_wrong_call(way: str) -> None:
    with pytest.raises(UsageError, match="given as bytes, expected a path"):
        _WAYS[way](two_layers().SerializeToString())


def _said(check: Callable[[], object], path: Path) -> str:
    try:
        check()
    except OnnxpruneError as error:
        return f"{type(error).__name__}: {error}".replace(f"'{path}': ", "")
    return "taken"


def test_models_by_strangers_are_refused_as_their_files_are(tmp_path: Path) -> None:
    refused = 0
    for number, build in enumerate(BUILDERS.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        model, path = build(folder), folder / "model.onnx"
        if not isinstance(model, ModelProto):
            continue
        path.write_bytes(model.SerializeToString())
        expected = _said(lambda path=path: load(path), path)  # type: ignore[misc]
        assert _said(lambda model=model, folder=folder: checked(model, folder), path) == expected  # type: ignore[misc]
        refused += expected != "taken"
    assert 0 < refused < len(BUILDERS)
