"""Standard architectures as torch exports them: half of the weights leave, and the result equals its reference."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from witness import assert_zeroed_copy, feeds, largest_error, outputs, stored_weights

import onnxprune

_LEGACY = ("resnet50", "mobilenet_v2", "densenet121", "shufflenet_v2", "unet", "vit", "resnext50", "efficientnet_like")
_DYNAMO = ("resnet50", "mobilenet_v2", "shufflenet_v2", "vit")
_IMAGE = 64


def _exported(networks: ModuleType, folder: Path, name: str, exporter: str, batch: int | None) -> ModelProto:
    path = folder / f"{name}.onnx"
    networks.export(name, path, exporter=exporter, width=0.25, depth=0.34, image=_IMAGE, classes=10, batch=batch)
    return onnx.load(path)


def _check_half(model: ModelProto) -> None:
    """S = 0.5: the budget met, the reference a zeroed copy, pruned equal to it on inputs of our own."""
    result = onnxprune.prune(model, sparsity=0.5)
    assert stored_weights(result.model) <= 0.5 * stored_weights(model)
    assert_zeroed_copy(model, result.masked)
    given = feeds(model)
    expected = outputs(result.masked, given)
    assert all(np.std(value.astype(np.float64)) > 0 for value in expected.values()), "the reference says nothing"
    assert largest_error(expected, outputs(result.model, given)) < 1e-4


@pytest.mark.parametrize("name", _LEGACY)
def test_half_of_a_legacy_export(networks: ModuleType, tmp_path: Path, name: str) -> None:
    _check_half(_exported(networks, tmp_path, name, "legacy", 1))


@pytest.mark.parametrize("name", _LEGACY)
def test_half_of_a_legacy_export_with_an_open_batch(networks: ModuleType, tmp_path: Path, name: str) -> None:
    _check_half(_exported(networks, tmp_path, name, "legacy", None))


@pytest.mark.parametrize("name", _DYNAMO)
def test_half_of_a_dynamo_export_with_an_open_batch(networks: ModuleType, tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxscript", reason="torch's new exporter needs it")
    _check_half(_exported(networks, tmp_path, name, "dynamo", None))


def test_every_layer_of_a_legacy_mobilenet_can_be_pruned(networks: ModuleType, tmp_path: Path) -> None:
    found = onnxprune.inspect(_exported(networks, tmp_path, "mobilenet_v2", "legacy", 1))
    assert all(layer.groups_free for layer in found.layers[:-1])


def test_a_shuffle_net_loses_single_channels(networks: ModuleType, tmp_path: Path) -> None:
    model = _exported(networks, tmp_path, "shufflenet_v2", "legacy", 1)
    reached = onnxprune.inspect(model).reach["weights"]
    assert reached > 0.95
    assert any(node.op_type == "Gather" for node in onnxprune.prune(model, sparsity=0.5).model.graph.node)
