"""What ONNX Runtime's own quantisation makes of the project's models is as prunable as the models are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import prune

quantization = pytest.importorskip("onnxruntime.quantization", reason="needs what onnxruntime.quantization imports")
FORMATS = ("dynamic", "per tensor", "per channel", "operators")


class _Calibration:
    """Random inputs, for the ranges of what is computed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        (value,) = model.graph.input
        shape = [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
        self.feeds = iter([{value.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def _without_declared_shapes(source: Path, target: Path) -> Path:
    """Dynamic quantisation gives transposed weights the names of others, whose declared shapes then do not fit."""
    model = onnx.load(source)
    del model.graph.value_info[:]
    onnx.save(model, target)
    return target


def quantised(source: Path, target: Path, way: str) -> Path:
    if way == "dynamic":
        quantization.quantize_dynamic(source, target, per_channel=True)
        return target
    kind, form = quantization.QuantType, quantization.QuantFormat
    quantization.quantize_static(
        source, target, _Calibration(onnx.load(source)), per_channel=way != "per tensor",
        quant_format=form.QOperator if way == "operators" else form.QDQ,
        activation_type=kind.QInt8 if way == "per channel" else kind.QUInt8,
        weight_type=kind.QUInt8 if way == "per tensor" else kind.QInt8,
    )  # fmt: skip
    return target


@pytest.mark.parametrize("way", FORMATS)
@pytest.mark.parametrize("name", ["resnet_digits", "vit_digits", "gcn_skeleton"])
def test_as_prunable_as_the_float_model(name: str, way: str, models: Path, tmp_path: Path) -> None:
    source = _without_declared_shapes(models / f"{name}.onnx", tmp_path / "source.onnx")
    made = quantised(source, tmp_path / "quantised.onnx", way)
    half = prune(made, sparsity=0.5)
    assert half.verification is not None
    assert half.verification.ok
    assert half.after.weights <= 0.5 * half.before.weights
    free = half.census.free / half.census.total
    original = prune(source, check=False).census
    assert free >= original.free / original.total - 0.02
