"""Quantised and integer arithmetic: zero is the zero point, and scales leave with their channels.

Scales are powers of two, so that the floating-point steps in between are exact and nothing is rounded the other way.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import Case, check, image, tokens, vector
from exactness import Array, model_of

from onnxprune.graph import Graph
from onnxprune.quantised import real_values
from onnxprune.runtime import open_session, run


def number(value: float, kind: Any = np.float32) -> Array:
    return np.array(value, kind)


def int8(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).integers(-90, 90, shape).astype(np.int8)


def uint8(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).integers(60, 200, shape).astype(np.uint8)


EACH = np.array([2.0**-e for e in (5, 6, 7, 8, 7, 6)], np.float32)
POINTS = np.array([0, 3, -5, 7, 1, -2], np.int8)
Q = "q = QuantizeLinear(a, s, o)"
"""From a to its quantised form."""
F = "z = DequantizeLinear(r, t, p)"
"""From a quantised result to z."""
NUMBERS: dict[str, Any] = {
    "s": number(1 / 16), "o": number(100, np.uint8), "t": number(1 / 8), "p": number(128, np.uint8),
}  # fmt: skip
MS = "com.microsoft"

CONTRACTIONS = [
    image("QLinearConv", f"{Q} r = QLinearConv<pads=[1,1,1,1]>(q, s, o, k, e, n, t, p, c) {F}", 14, 6,
          k=int8(6, 8, 3, 3), e=EACH, n=POINTS, c=np.arange(-300, 300, 100, dtype=np.int32), **NUMBERS),
    image("QLinearConv depthwise", f"{Q} r = QLinearConv<group=8>(q, s, o, k, s, o, t, p) {F}", 8,
          k=uint8(8, 1, 2, 2), **NUMBERS),
    image("QLinearConv channels last", f"{Q} h = Transpose<perm=[0,2,3,1]>(q) r = {MS}.QLinearConv<channels_last=1>"
          "(h, s, o, k, e, n, t, p) g = DequantizeLinear(r, t, p) z = Transpose<perm=[0,3,1,2]>(g)", 14, 6,
          k=int8(6, 8, 2, 2), e=EACH, n=number(0, np.int8), **NUMBERS),
    image("QLinearConv channels last depthwise", f"{Q} h = Transpose<perm=[0,2,3,1]>(q) r = {MS}.QLinearConv<group=8, "
          "channels_last=1>(h, s, o, k, s, o, t, p) g = DequantizeLinear(r, t, p) z = Transpose<perm=[0,3,1,2]>(g)", 8,
          k=uint8(8, 1, 2, 2), **NUMBERS),
    image("ConvInteger", f"{Q} r = ConvInteger<pads=[1,1,1,1]>(q, k, o, n) z = Cast<to=1>(r)", 14, 6,
          k=uint8(6, 8, 3, 3), n=number(101, np.uint8), **NUMBERS),
    image("QLinearConv computed", f"{Q} r = QLinearConv(q, s, o, q, s, o, t, p) {F}", 0, 2, "computed at run time",
          **NUMBERS),
    tokens("QLinearMatMul", f"{Q} r = QLinearMatMul(q, s, o, k, e, n, t, p) {F}", 14, 6,
           k=int8(8, 6), e=EACH, n=POINTS, **NUMBERS),
    tokens("QLinearMatMul of two activations", f"{Q} h = Transpose<perm=[0,2,1]>(q) "
           "g = QLinearMatMul(q, s, o, h, s, o, t, p) i = Cast<to=1>(g) f = ReduceSum(i, d) z = Add(a, f)", 8,
           d=np.array([2]), **NUMBERS),
    tokens("QLinearMatMul of two activations with another zero point", f"{Q} h = Transpose<perm=[0,2,1]>(q) "
           "g = QLinearMatMul(q, s, p, h, s, p, t, p) i = Cast<to=1>(g) f = ReduceSum(i, d) z = Add(a, f)", 0,
           reason="removal does not make it zero", d=np.array([2]), **NUMBERS),
    tokens("MatMulInteger", "q, s, o = DynamicQuantizeLinear(a) r = MatMulInteger(q, k, o, n) i = Cast<to=1>(r) "
           "z = Mul(i, s)", 14, 6, k=int8(8, 6), n=POINTS),
    tokens("DynamicQuantizeLinear after a Sigmoid", "h = Sigmoid(a) q, s, o = DynamicQuantizeLinear(h) "
           "r = MatMulInteger(q, k, o) i = Cast<to=1>(r) z = Mul(i, s)", 6, 6, "quantised by its range", k=int8(8, 6)),
    tokens("MatMulInteger of a computed weight", f"{Q} j = Transpose(g) k = QuantizeLinear(j, s, n) "
           "r = MatMulInteger(q, k, o, n) z = Cast<to=1>(r)", 14, 6,
           g=np.round(np.linspace(-3, 3, 48, dtype=np.float32), 1).reshape(6, 8), n=number(3, np.int8), **NUMBERS),
    vector("QGemm", f"{Q} r = {MS}.QGemm<transB=1>(q, s, o, k, e, n, c, t, p) {F}", 14, 6,
           k=int8(6, 8), e=EACH, n=POINTS, c=np.arange(6, dtype=np.int32), **NUMBERS),
    vector("QGemm to float", f"{Q} z = {MS}.QGemm(q, s, o, k, s, n, c)", 14, 6,
           k=int8(8, 6), n=number(3, np.int8), c=np.arange(6, dtype=np.int32), **NUMBERS),
    tokens("MatMulNBits", f"h = MatMul(a, g) z = {MS}.MatMulNBits<K=32, N=6, bits=4, block_size=16>(h, k, e, n, , c)",
           8 + 6, 6, g=(8, 32), k=uint8(6, 2, 8), e=np.resize(EACH, (6, 2)), n=uint8(6, 1), c=6),
    tokens("MatMulNBits of one row of scales", f"h = MatMul(a, g) "
           f"z = {MS}.MatMulNBits<K=32, N=6, bits=4, block_size=16>(h, k, e, n)",
           8 + 6, 6, g=(8, 32), k=uint8(6, 2, 8), e=np.resize(EACH, 12), n=uint8(6)),
    tokens("DynamicQuantizeMatMul", f"z = {MS}.DynamicQuantizeMatMul(a, k, e, n, c)", 14, 6,
           k=int8(8, 6), e=EACH, n=POINTS, c=6),
    tokens("MatMulIntegerToFloat", "q, s, o = DynamicQuantizeLinear(a) "
           f"z = {MS}.MatMulIntegerToFloat(q, k, s, e, o, n, c)", 14, 6, k=int8(8, 6), e=EACH, n=POINTS, c=6),
]  # fmt: skip

CHANNELWISE = [
    image("QLinearAdd", f"{Q} r = {MS}.QLinearAdd(q, s, o, k, s, o, t, p) {F}", 8, k=uint8(8, 1, 1), **NUMBERS),
    image("QLinearMul", f"{Q} r = {MS}.QLinearMul(q, s, o, q, s, o, t, p) {F}", 8, **NUMBERS),
    image("QLinearLeakyRelu", f"{Q} r = {MS}.QLinearLeakyRelu<alpha=0.5>(q, s, o, t, p) {F}", 8, **NUMBERS),
    image("QLinearSigmoid", f"{Q} r = {MS}.QLinearSigmoid(q, s, o, t, p) {F}", 8, **NUMBERS),
    image("QLinearSoftmax", f"{Q} r = {MS}.QLinearSoftmax<axis=1, opset=13>(q, s, o, t, p) {F}", 0,
          reason="Softmax over the channels", **NUMBERS),
    image("QLinearAveragePool", f"{Q} r = {MS}.QLinearAveragePool<kernel_shape=[2,2], pads=[1,1,1,1], "
          f"count_include_pad=1>(q, s, o, t, p) {F}", 8, **NUMBERS),
    image("QLinearAveragePool channels last", f"{Q} h = Transpose<perm=[0,2,3,1]>(q) r = {MS}.QLinearAveragePool"
          f"<kernel_shape=[2,2], channels_last=1>(h, s, o, t, p) g = DequantizeLinear(r, t, p) "
          "z = Transpose<perm=[0,3,1,2]>(g)", 8, **NUMBERS),
    image("QLinearGlobalAveragePool", f"{Q} r = {MS}.QLinearGlobalAveragePool(q, s, o, t, p) {F}", 8, **NUMBERS),
    image("QLinearConcat", f"{Q} h = Relu(a) g = QuantizeLinear(h, t, p) j = Conv(x, k) i = QuantizeLinear(j, t, p) "
          f"r = {MS}.QLinearConcat<axis=1>(t, p, q, s, o, g, t, p, i, t, p) {F}", 9, 17, k=(1, 3, 1, 1), **NUMBERS),
    image("QLinearWhere", f"{Q} h = Greater(a, m) r = {MS}.QLinearWhere(h, q, s, o, q, s, o, t, p) {F}", 8,
          m=number(0), **NUMBERS),
    image("QuantizeLinear of com.microsoft", f"q = {MS}.QuantizeLinear(a, s, o) z = {MS}.DequantizeLinear(q, s, o)", 8,
          s=number(1 / 16), o=number(100, np.uint16)),
    image("QuantizeLinear per channel", "q = QuantizeLinear<axis=1>(a, s, o) z = DequantizeLinear<axis=1>(q, s, o)", 8,
          s=np.resize(EACH, 8), o=np.resize(POINTS, 8)),
    image("MaxPool of integers", f"{Q} h = MaxPool<kernel_shape=[2,2], pads=[1,1,1,1]>(q) g = Concat<axis=1>(h, h) "
          "z = DequantizeLinear(g, s, o)", 8, 16, **NUMBERS),
]  # fmt: skip

WEIGHTS = [
    image(f"{kind} weight", "k = DequantizeLinear<axis=0>(i, e, n) z = Conv(a, k)", 14, 6, opset=21,
          i=np.resize(np.arange(-8, 8), (6, 8, 1, 1)).astype(kind), e=EACH, n=np.arange(6).astype(kind))
    for kind in (ml_dtypes.int4, np.int16)
] + [
    image("uint4 weight in blocks", "k = DequantizeLinear<axis=1, block_size=4>(i, e, n) z = Conv(a, k)", 8, 6,
          opset=21, i=np.resize(np.arange(16), (6, 8, 1, 1)).astype(ml_dtypes.uint4),
          e=np.resize(EACH, (6, 2, 1, 1)), n=np.arange(12).reshape(6, 2, 1, 1).astype(ml_dtypes.uint4)),
    image("float8 weight", "k = DequantizeLinear(i, e) z = Conv(a, k)", 14, 6, opset=21,
          i=np.resize(np.arange(-8, 8), (6, 8, 1, 1)).astype(ml_dtypes.float8_e4m3fn), e=number(0.5)),
    image("bfloat16 weight", "k = Cast<to=1>(i) z = Conv(a, k)", 14, 6,
          i=np.resize(np.linspace(-1, 1, 48), (6, 8, 1, 1)).astype(ml_dtypes.bfloat16)),
    vector("float64", "h = Cast<to=11>(a) g = Gemm(h, k, c) z = Cast<to=1>(g)", 14, 6,
           k=np.linspace(-1, 1, 48).reshape(8, 6), c=np.linspace(-1, 1, 6)),
]  # fmt: skip
CASES = [*WEIGHTS, *CONTRACTIONS, *CHANNELWISE]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_quantised(case: Case) -> None:
    check(case)


FLOATING = np.linspace(5, 9, 12, dtype=np.float32).reshape(6, 2)


@pytest.mark.parametrize(("bits", "points"), [(4, None), (4, uint8(6, 1)), (4, FLOATING), (8, None), (8, uint8(6, 2))])
def test_unpacked_weights_are_what_the_runtime_multiplies_with(bits: int, points: Array | None) -> None:
    given = {} if points is None else {"n": points}
    model = model_of(
        f"(float[32,32] x) => (float[A,B] y) {{ y = {MS}.MatMulNBits<K=32, N=6, bits={bits}, block_size=16>"
        f"(x, k, e{', n' if given else ''}) }}",
        k=uint8(6, 2, 2 * bits), e=np.resize(EACH, (6, 2)), **given,
    )  # fmt: skip
    (found,) = run(open_session(model), {"x": np.eye(32, dtype=np.float32)}).values()
    assert np.allclose(found.T, real_values(Graph(model), 0, 1), atol=1e-5)
