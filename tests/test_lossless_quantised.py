"""Lossless mode on quantised models: what holds the zero point is zero, what a range is taken of counts.

``a`` is an image (or a vector) of 8 channels. Channels 0 and 1 come from filters that are zero: a zero and a constant.
``k`` has no weights for channel 7. ``left`` says how many of the 8 channels remain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exactness import Array, assert_same_outputs, model_of

from onnxprune import prune

BIAS = np.array([0, 2, 0.5, -0.25, 0.125, 0, 1, 0.75], np.float32)
S, THREE, FIVE = np.array(1 / 16, np.float32), np.array(3, np.uint8), np.array(5, np.uint8)


def filters(*shape: int, kind: type[np.generic] = np.float32) -> Array:
    values = np.random.default_rng(0).integers(-9, 9, shape) + 0.5
    values[:2] = 0
    return values.astype(kind)


def reading(*shape: int, zero: int = 0) -> Array:
    """Weights [out, in, …] or [in, out] without any for the last of 8 input channels."""
    values = np.random.default_rng(1).integers(20, 90, shape).astype(np.int8)
    values[(slice(None), -1) if shape[1] == 8 else (-1,)] = zero
    return values


def left(text: str, **weights: Any) -> int:
    """Prune without loss; how many of the channels of w remain."""
    model = model_of(text, **weights)
    result = prune(model, check=False)
    rng = np.random.default_rng(0)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    for scale in (0.1, 1, 10):
        feeds = {"x": (rng.standard_normal(shape) * scale).astype(np.float32)}
        assert_same_outputs(model, result.model, feeds)
    held = next(t for t in result.model.graph.initializer if t.name == "w")
    return int(held.dims[0] if len(held.dims) == 4 else held.dims[1])


def image(body: str) -> str:
    return f"(float[1,3,5,5] x) => (float[A,B,C,D] y) {{ a = Conv(x, w, b) {body} }}"


def vector(body: str) -> str:
    return f"(float[2,6] x) => (float[A,B] y) {{ a = Gemm(x, w, b) {body} }}"


IMAGE: dict[str, Any] = {"w": filters(8, 3, 1, 1), "b": BIAS, "s": S, "o": THREE}
VECTOR: dict[str, Any] = {"w": filters(8, 6).T.copy(), "b": BIAS}


def test_integers_at_their_zero_point_leave() -> None:
    body = "q = QuantizeLinear(a, s, o) r = ConvInteger<pads=[1,1,1,1]>(q, k, o) y = Cast<to=1>(r)"
    assert left(image(body), k=reading(4, 8, 3, 3), **IMAGE) == 6  # the zero, and the one nobody reads


def test_integers_off_the_zero_point_of_their_reader_stay() -> None:
    body = "q = QuantizeLinear(a, s, o) r = ConvInteger(q, k, p) y = Cast<to=1>(r)"
    assert left(image(body), k=reading(4, 8, 3, 3), p=FIVE, **IMAGE) == 7


def test_a_plain_zero_is_not_the_zero_point() -> None:
    body = "u = Cast<to=2>(a) r = ConvInteger(u, k, o) y = Cast<to=1>(r)"
    assert left(image(body), k=reading(4, 8, 3, 3), **IMAGE) == 7


def test_a_chain_of_integers() -> None:
    body = """q = QuantizeLinear(a, s, o) r = QLinearConv(q, s, o, k, s, n, t, p) h = MaxPool<kernel_shape=[2,2]>(r)
              d = DequantizeLinear(h, t, p) y = Conv(d, v)"""
    weights = {"k": reading(4, 8, 3, 3), "n": np.array(0, np.int8), "t": np.array(8, np.float32), "p": FIVE}
    weights["k"][1] = 0
    model = model_of(image(body), v=(2, 4, 1, 1), **weights, **IMAGE)
    result = prune(model)
    sizes = {t.name: list(t.dims) for t in result.model.graph.initializer}
    assert sizes["k"] == [3, 6, 3, 3]
    assert sizes["v"] == [2, 3, 1, 1]


@pytest.mark.parametrize(
    ("body", "stay"),
    [
        ("q, s, o = DynamicQuantizeLinear(a) r = MatMulInteger(q, k, o) f = Cast<to=1>(r) y = Mul(f, s)", 8),
        ("y = com.microsoft.DynamicQuantizeMatMul(a, k, e)", 7),  # only the zero leaves
    ],
    ids=["DynamicQuantizeLinear", "DynamicQuantizeMatMul"],
)
def test_a_range_is_taken_of_all_channels(body: str, stay: int) -> None:
    weights = {"k": reading(8, 4)}
    weights["k"][1] = 0  # reads neither the constant nor the last channel, but both count
    if "(a, k, e)" in body:
        weights["e"] = np.full(4, 0.5, np.float32)
    assert left(vector(body), **weights, **VECTOR) == stay


def test_a_norm_is_taken_of_all_channels() -> None:
    weights = np.ones((8, 4), np.float32)
    weights[[1, 7]] = 0
    assert left(vector("n = LpNormalization(a) y = MatMul(n, k)"), k=weights, **VECTOR) == 8
