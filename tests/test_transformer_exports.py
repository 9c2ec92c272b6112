"""Transformers as torch exports them: attention made of products, rotary positions, gates, windows, caches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from conftest import benchmark_module
from onnx import ModelProto
from witness import assert_zeroed_copy, feeds, largest_error, outputs, stored_weights

import onnxprune

NAMES = ("llama", "cached_llama", "gpt2", "t5", "swin")


@pytest.fixture(scope="module")
def networks() -> Iterator[ModuleType]:
    """``benchmarks/token_networks.py``."""
    yield from benchmark_module("token_networks")


def _check(model: ModelProto, sparsity: float, tolerance: float = 1e-4, method: str = "lean") -> None:
    """Nothing changes without a sparsity; with one, the budget is met and the result equals a zeroed copy."""
    given = feeds(model, sizes={value.name: (2, 7) for value in model.graph.input if _is_open(value)})
    lossless = onnxprune.prune(model)
    assert largest_error(outputs(model, given), outputs(lossless.model, given)) < tolerance
    result = onnxprune.prune(model, sparsity=sparsity, method=method)
    assert stored_weights(result.model) <= (1 - sparsity) * stored_weights(model)
    assert not result.renormalised
    assert_zeroed_copy(model, result.masked)
    expected = outputs(result.masked, given)
    assert all(np.std(value.astype(np.float64)) > 0 for value in expected.values()), "the reference says nothing"
    assert largest_error(expected, outputs(result.model, given)) < tolerance


def _is_open(value: onnx.ValueInfoProto) -> bool:
    return any(not dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _exported(networks: ModuleType, folder: Path, name: str, exporter: str = "legacy", *, open_sizes: bool = False,
              half: bool = False) -> ModelProto:  # fmt: skip
    path = folder / f"{name}.onnx"
    networks.export(name, path, exporter, open_sizes=open_sizes, half=half)
    return onnx.load(path)


@pytest.mark.parametrize("name", NAMES)
def test_half_of_a_legacy_export(networks: ModuleType, tmp_path: Path, name: str) -> None:
    _check(_exported(networks, tmp_path, name), 0.5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_half_of_a_legacy_export_of_any_length(networks: ModuleType, tmp_path: Path, name: str) -> None:
    _check(_exported(networks, tmp_path, name, open_sizes=True), 0.5, method="random")


@pytest.mark.parametrize("name", ["llama", "swin"])
def test_half_of_an_export_in_16_bits(networks: ModuleType, tmp_path: Path, name: str) -> None:
    _check(_exported(networks, tmp_path, name, half=True), 0.5, tolerance=2e-2)


@pytest.mark.parametrize("name", ["llama"])
def test_half_of_a_dynamo_export_of_any_length(networks: ModuleType, tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxscript", reason="torch's new exporter needs it")
    _check(_exported(networks, tmp_path, name, "dynamo", open_sizes=True), 0.5)


def test_root_mean_square_norms_let_the_residual_width_leave(networks: ModuleType, tmp_path: Path) -> None:
    assert onnxprune.inspect(_exported(networks, tmp_path, "llama")).reach["weights"] > 0.95


def test_cached_keys_keep_their_heads_and_width(networks: ModuleType, tmp_path: Path) -> None:
    model = _exported(networks, tmp_path, "cached_llama")
    result = onnxprune.prune(model, sparsity=0.8)
    keys = next(layer for layer in result.layers if layer.outputs == 16)
    assert keys.outputs_kept == 16
    queries = next(layer for layer in result.layers if layer.outputs == 32)
    assert queries.groups_free == 2  # of the two heads that read each key, the first or the second
    assert [list(v.type.tensor_type.shape.dim) for v in result.model.graph.output] == [
        list(v.type.tensor_type.shape.dim) for v in model.graph.output
    ]
