"""Small models of single operators: how many channels may leave, and why the others may not.

Each model is a *stem* that makes 8 channels, the operator, and an end that reads its result through a weight, so that
the number of free groups tells exactly what the rule of the operator says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from exactness import Array, Sizes, assert_exact, model_of
from onnx import ModelProto

from onnxprune.bodies import flatten
from onnxprune.graph import Graph
from onnxprune.ops import build_map

__all__ = ["Case", "check", "floats", "image", "ints", "tokens", "vector"]


@dataclass(frozen=True)
class Case:
    """``free``: groups that may leave. ``reason``: part of why others may not ('' where all may, but the outputs)."""

    name: str
    model: ModelProto
    free: int
    reason: str = ""
    sizes: Sizes = field(default_factory=dict)


def image(name: str, body: str, free: int, wide: int = 8, reason: str = "", opset: int = 17, **weights: Any) -> Case:
    """``body``: from a, an image of 8 channels, 6 × 6, to z, which has ``wide`` channels."""
    text = f"(float[2,3,6,6] x) => (float[A,B,C,D] y) {{ a = Conv(x, w, b) {body} y = Conv(z, v) }}"
    weights = {"w": (8, 3, 1, 1), "b": 8, "v": (4, wide, 1, 1), **weights}
    return Case(name, model_of(text, opset, **weights), free, reason)


def tokens(name: str, body: str, free: int, wide: int = 8, reason: str = "", opset: int = 17, **weights: Any) -> Case:
    """``body``: from a, 5 tokens of 8 channels, to z, which has ``wide`` at its last axis."""
    text = f"(float[2,5,6] x) => (float[A,B,C] y) {{ x0 = MatMul(x, w) a = Add(x0, b) {body} y = MatMul(z, v) }}"
    weights = {"w": (6, 8), "b": 8, "v": (wide, 4), **weights}
    return Case(name, model_of(text, opset, **weights), free, reason)


def vector(name: str, body: str, free: int, wide: int = 8, reason: str = "", opset: int = 17, **weights: Any) -> Case:
    """``body``: from a, a vector of 8 channels, to z, a vector of ``wide``."""
    text = f"(float[2,6] x) => (float[A,B] y) {{ a = Gemm(x, w, b) {body} y = Gemm(z, v) }}"
    weights = {"w": (6, 8), "b": 8, "v": (wide, 4), **weights}
    return Case(name, model_of(text, opset, **weights), free, reason)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def check(case: Case) -> None:
    """As many groups are free as the case says; all else has the reason it says; and removal is exact."""
    onnx.checker.check_model(case.model, full_check=True)
    channel_map = build_map(Graph(flatten(case.model)))
    reasons = {found.reason for found in channel_map.reasons.values()}
    assert len(channel_map.free) == case.free, reasons
    assert any(case.reason in reason for reason in reasons), reasons
    outcomes = assert_exact(case.model, sizes=case.sizes, channel_map=channel_map)
    assert any(outcome.removed for outcome in outcomes) == bool(case.free)
