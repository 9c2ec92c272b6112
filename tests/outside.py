"""A model whose weights lie in a file beside it is pruned as the same model in memory is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx
from onnx import ModelProto, TensorProto, numpy_helper

import onnxprune
from onnxprune import deferred
from onnxprune.files.tensor_walk import tensors

__all__ = ["assert_same_outside", "saved_outside"]


def saved_outside(model: ModelProto, path: Path) -> Path:
    """Write a model, all its weights in a file beside it."""
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, path, save_as_external_data=True, location=f"{path.name}.weights", size_threshold=0)
    return path


def assert_same_outside(model: ModelProto, **options: Any) -> int:
    """Prune a model in memory, and its files to files and to memory; how many weights are cut as they are written."""
    expected = onnxprune.prune(model, check=False, **options)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(deferred, "_LARGE", 1),
        patch.object(deferred, "_BLOCK", 64),
    ):
        path = saved_outside(model, Path(folder) / "model.onnx")
        result = onnxprune.prune(path, check=False, **options)
        result.save(Path(folder) / "out.onnx")
        result.save_masked(Path(folder) / "masked.onnx")
        _assert_same(onnx.load(Path(folder) / "out.onnx"), expected.model)
        _assert_same(_with_data(result.model, Path(folder)), expected.model)
        _assert_same(onnx.load(Path(folder) / "masked.onnx"), expected.masked)
        return len(result.made.pending)


def _with_data(model: ModelProto, folder: Path) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.load_external_data_for_model(copy, str(folder))
    return copy


def _assert_same(model: ModelProto, expected: ModelProto) -> None:
    assert _in_raw_data(model) == _in_raw_data(expected)


def _in_raw_data(model: ModelProto) -> ModelProto:
    """A copy in which all numbers are said in the same way."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in tensors(copy):
        if tensor.data_type != TensorProto.STRING:
            dims, raw = list(tensor.dims), numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
            named = TensorProto(name=tensor.name, doc_string=tensor.doc_string, data_type=tensor.data_type)
            named.metadata_props.extend(tensor.metadata_props)
            tensor.CopyFrom(named)
            tensor.dims.extend(dims)
            tensor.raw_data = raw
    return copy
