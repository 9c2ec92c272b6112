"""One small model an operator: how many channels may leave, why the others may not, and that leaving is exact.

Each model is a *stem* that makes 8 channels, the operator, and an end that reads its result through a weight, so that
the number of free groups tells exactly what the rule of the operator says.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from exactness import Array, Sizes, assert_exact, model_of
from onnx import ModelProto

from onnxprune.graph import Graph
from onnxprune.ops import RULES, build_map


@dataclass(frozen=True)
class Case:
    """``free``: groups that may leave. ``reason``: part of why others may not ('' where all may, but the outputs)."""

    name: str
    model: ModelProto
    free: int
    reason: str = ""
    sizes: Sizes = field(default_factory=dict)


Weights = Array | tuple[int, ...] | int


def image(name: str, body: str, free: int, wide: int = 8, reason: str = "", opset: int = 17, **weights: Weights) -> Case:
    """``body``: from a, an image of 8 channels, 6 × 6, to z, which has ``wide`` channels."""
    text = f"(float[2,3,6,6] x) => (float[A,B,C,D] y) {{ a = Conv(x, w, b) {body} y = Conv(z, v) }}"
    weights = {"w": (8, 3, 1, 1), "b": 8, "v": (4, wide, 1, 1), **weights}
    return Case(name, model_of(text, opset, **weights), free, reason)


def tokens(name: str, body: str, free: int, wide: int = 8, reason: str = "", opset: int = 17, **weights: Weights) -> Case:
    """``body``: from a, 5 tokens of 8 channels, to z, which has ``wide`` at its last axis."""
    text = f"(float[2,5,6] x) => (float[A,B,C] y) {{ p = MatMul(x, w) a = Add(p, b) {body} y = MatMul(z, v) }}"
    weights = {"w": (6, 8), "b": 8, "v": (wide, 4), **weights}
    return Case(name, model_of(text, opset, **weights), free, reason)


def vector(name: str, body: str, free: int, wide: int = 8, reason: str = "", opset: int = 17, **weights: Weights) -> Case:
    """``body``: from a, a vector of 8 channels, to z, a vector of ``wide``."""
    text = f"(float[2,6] x) => (float[A,B] y) {{ a = Gemm(x, w, b) {body} y = Gemm(z, v) }}"
    weights = {"w": (6, 8), "b": 8, "v": (wide, 4), **weights}
    return Case(name, model_of(text, opset, **weights), free, reason)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


CONVOLUTIONS = [
    image("Conv", "z = Conv(a, k, c)", 14, 6, k=(6, 8, 3, 3), c=6),
    image("Conv strided dilated", "z = Conv<strides=[2,1], dilations=[1,2], pads=[1,2,0,1]>(a, k)", 14, 6, k=(6, 8, 3, 2)),
    image("Conv auto_pad", 'z = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(a, k)', 14, 6, k=(6, 8, 3, 3)),
    image("Conv depthwise", "z = Conv<group=8>(a, k, c)", 8, k=(8, 1, 3, 3), c=8),
    image("Conv multiplier", "z = Conv<group=8>(a, k, c)", 8, 16, k=(16, 1, 3, 3), c=16),
    image("Conv whole groups", "z = Conv<group=4>(a, k, c)", 4, k=(8, 2, 3, 3), c=8),
    image("Conv within groups", "z = Conv<group=2>(a, k, c)", 8, k=(8, 4, 3, 3), c=8),
    image("Conv groups to one", "z = Conv<group=4>(a, k)", 4, 4, k=(4, 2, 1, 1)),
    image("Conv computed weight", "k = Relu(x) z = Conv(a, k)", 0, 2, "computed at run time", k=(1,)),
    image("ConvTranspose", "z = ConvTranspose<strides=[2,2], output_padding=[1,1]>(a, k, c)", 13, 5, k=(8, 5, 2, 2), c=5),
    image("ConvTranspose whole groups", "z = ConvTranspose<group=4>(a, k, c)", 4, 12, k=(8, 3, 2, 2), c=12),
    image("ConvTranspose within groups", "z = ConvTranspose<group=2>(a, k, c)", 8, k=(8, 4, 2, 2), c=8),
    image("ConvTranspose depthwise", "z = ConvTranspose<group=8>(a, k)", 8, k=(8, 1, 2, 2)),
    image("FusedConv", 'z = com.microsoft.FusedConv<activation="Relu">(a, k, c, a)', 8, k=(8, 8, 1, 1), c=8),
]

PRODUCTS = [
    vector("Gemm", "z = Gemm(a, k, c)", 14, k=(8, 6), c=6, wide=6),
    vector("Gemm transposed", "t = Transpose(a) z = Gemm<transA=1, transB=1, alpha=0.5, beta=2.0>(t, k, c)", 14, 6,
           k=(6, 8), c=(1, 6)),
    vector("Gemm bias of rows", "z = Gemm(a, k, c)", 14, 6, k=(8, 6), c=(2, 6)),
    vector("Gemm scalar bias", "z = Gemm(a, k, c)", 8, 6, "shares its bias", k=(8, 6), c=floats(0.5)),
    vector("Gemm one bias a row", "z = Gemm(a, k, c)", 8, 6, "shares its bias", k=(8, 6), c=(2, 1)),
    vector("Gemm computed weight", "k = Transpose(a) z = Gemm(a, k)", 0, 2, "computed at run time"),
    vector("FusedGemm", 'z = com.microsoft.FusedGemm<activation="Relu">(a, k, c)', 14, 6, k=(8, 6), c=6),
    tokens("MatMul right", "z = MatMul(a, k)", 14, 6, k=(8, 6)),
    tokens("MatMul left", "t = Transpose<perm=[0,2,1]>(a) m = MatMul(k, t) r = Relu(m) s = MatMul(q, r) "
           "z = Transpose<perm=[0,2,1]>(s)", 8 + 7, 5, reason="a model output", k=(7, 8), q=(5, 7)),
    tokens("MatMul batched", "u = Unsqueeze(a, one) m = MatMul(u, k) r = Relu(m) d = MatMul(r, q) "
           "z = ReduceMean<axes=[1], keepdims=0>(d)", 8 + 4, 4, "ReduceMean over the channels",
           one=ints(1), k=(3, 8, 4), q=(3, 4, 4)),
    tokens("MatMul with a vector", "m = MatMul(a, k) z = Unsqueeze(m, last)", 0, 1, "a product with a vector", k=8, last=ints(2)),
    tokens("FusedMatMul", "z = com.microsoft.FusedMatMul<alpha=0.5>(a, k)", 14, 6, k=(8, 6)),
    tokens("BiasGelu", "z = com.microsoft.BiasGelu(a, c)", 8, c=8),
]


@pytest.mark.parametrize("case", [*CONVOLUTIONS, *PRODUCTS], ids=lambda case: case.name)
def test_contraction(case: Case) -> None:
    check(case)


def check(case: Case) -> None:
    """As many groups are free as the case says; all else has the reason it says; and removal is exact."""
    channel_map = build_map(Graph(case.model))
    reasons = {found.reason for found in channel_map.reasons.values()}
    assert len(channel_map.free) == case.free, reasons
    assert any(case.reason in reason for reason in reasons)
    outcomes = assert_exact(case.model, sizes=case.sizes, channel_map=channel_map)
    assert any(outcome.removed for outcome in outcomes) == bool(case.free)
