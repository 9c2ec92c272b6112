"""Convolutions and products: operators that consume channels and make new ones."""

from __future__ import annotations

from typing import Any

import pytest
from cases import Case, check, floats, image, ints, tokens, vector
from exactness import model_of


def convolved(name: str, feed: str, body: str, free: int, **weights: Any) -> Case:
    """``body``: from x to y, over another number of spatial axes than two."""
    return Case(
        name,
        model_of(
            f"(float[{feed}] x) => (float[{', '.join('ABCDE'[: feed.count(',') + 1])}] y) {{ {body} }}", **weights
        ),
        free,
    )


CONVOLUTIONS = [
    convolved(
        "Conv 1-D", "2,3,9", "a = Conv<strides=[2]>(x, w, b) y = Conv<group=1>(a, v)", 8, w=(8, 3, 3), b=8, v=(4, 8, 2)
    ),
    convolved(
        "Conv 3-D",
        "1,2,3,4,4",
        "a = Conv(x, w) r = Relu(a) y = Conv(r, v, c)",
        8,
        w=(8, 2, 2, 2, 2),
        v=(4, 8, 1, 2, 2),
        c=4,
    ),
    convolved(
        "ConvTranspose 1-D",
        "2,3,9",
        "a = ConvTranspose<strides=[2]>(x, w, b) y = ConvTranspose(a, v)",
        8,
        w=(3, 8, 3),
        b=8,
        v=(8, 4, 2),
    ),
    convolved(
        "depthwise of the model input",
        "2,3,9",
        "a = Conv<group=3>(x, w, b) y = Conv(a, v)",
        2,
        w=(6, 1, 3),
        b=6,
        v=(4, 6, 2),
    ),
    image("Conv", "z = Conv(a, k, c)", 14, 6, k=(6, 8, 3, 3), c=6),
    image(
        "Conv strided dilated", "z = Conv<strides=[2,1], dilations=[1,2], pads=[1,2,0,1]>(a, k)", 14, 6, k=(6, 8, 3, 2)
    ),
    image("Conv auto_pad", 'z = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(a, k)', 14, 6, k=(6, 8, 3, 3)),
    image("Conv depthwise", "z = Conv<group=8>(a, k, c)", 8, k=(8, 1, 3, 3), c=8),
    image("Conv multiplier", "z = Conv<group=8>(a, k, c)", 8, 16, k=(16, 1, 3, 3), c=16),
    image("Conv whole groups", "z = Conv<group=4>(a, k, c)", 4, k=(8, 2, 3, 3), c=8),
    image("Conv within groups", "z = Conv<group=2>(a, k, c)", 8, k=(8, 4, 3, 3), c=8),
    image("Conv groups to one", "z = Conv<group=4>(a, k)", 4, 4, k=(4, 2, 1, 1)),
    image("Conv computed weight", "k = Relu(a) z = Conv(a, k)", 0, 2, "computed at run time"),
    image(
        "ConvTranspose", "z = ConvTranspose<strides=[2,2], output_padding=[1,1]>(a, k, c)", 13, 5, k=(8, 5, 2, 2), c=5
    ),
    image("ConvTranspose whole groups", "z = ConvTranspose<group=4>(a, k, c)", 4, 12, k=(8, 3, 2, 2), c=12),
    image("ConvTranspose within groups", "z = ConvTranspose<group=2>(a, k, c)", 8, k=(8, 4, 2, 2), c=8),
    image("ConvTranspose depthwise", "z = ConvTranspose<group=8>(a, k)", 8, k=(8, 1, 2, 2)),
    image("FusedConv", 'z = com.microsoft.FusedConv<activation="Relu">(a, k, c, a)', 8, k=(8, 8, 1, 1), c=8),
]

PRODUCTS = [
    vector("Gemm", "z = Gemm(a, k, c)", 14, k=(8, 6), c=6, wide=6),
    vector(
        "Gemm transposed",
        "t = Transpose(a) z = Gemm<transA=1, transB=1, alpha=0.5, beta=2.0>(t, k, c)",
        14,
        6,
        k=(6, 8),
        c=(1, 6),
    ),
    vector("Gemm bias of rows", "z = Gemm(a, k, c)", 14, 6, k=(8, 6), c=(2, 6)),
    vector("Gemm scalar bias", "z = Gemm(a, k, c)", 14, 6, "one channel broadcast over many", k=(8, 6), c=floats(0.5)),
    vector("Gemm one bias a row", "z = Gemm(a, k, c)", 14, 6, "one channel broadcast over many", k=(8, 6), c=(2, 1)),
    vector("Gemm computed weight", "k = Transpose(a) z = Gemm(a, k)", 0, 2, "computed at run time"),
    vector("FusedGemm", 'z = com.microsoft.FusedGemm<activation="Relu">(a, k, c)', 14, 6, k=(8, 6), c=6),
    vector(
        "Gemm scalar bias before a sum",
        "z = Gemm(a, k, c) s = ReduceSum(z, d) m = Mul(z, s)",
        8,
        6,
        "ReduceSum over the channels",
        k=(8, 6),
        c=floats(0.5),
        d=ints(1),
    ),
    tokens(
        "Gemm of channels as rows",
        "r = Reshape(a, h) g = Gemm<transA=1>(r, k, c) t = Transpose(g) p = MatMul(t, q) z = Unsqueeze(p, d)",
        8 + 5,
        5,
        "one channel broadcast over many",
        h=ints(10, 8),
        k=(10, 6),
        c=(8, 1),
        q=(8, 5),
        d=ints(0),
    ),
    tokens("MatMul right", "z = MatMul(a, k)", 14, 6, k=(8, 6)),
    tokens(
        "MatMul left",
        "t = Transpose<perm=[0,2,1]>(a) m = MatMul(k, t) r = Relu(m) s = MatMul(q, r) z = Transpose<perm=[0,2,1]>(s)",
        8 + 7 + 5,
        5,
        k=(7, 8),
        q=(5, 7),
    ),
    tokens(
        "MatMul batched",
        "u = Unsqueeze(a, one) m = MatMul(u, k) r = Relu(m) d = MatMul(r, q) z = ReduceMean<axes=[1], keepdims=0>(d)",
        8 + 4 + 4 + 3,
        4,
        one=ints(1),
        k=(3, 8, 4),
        q=(3, 4, 4),
    ),
    tokens(
        "MatMul with a vector",
        "m = MatMul(a, k) z = Unsqueeze(m, last)",
        0,
        1,
        "a product with a vector",
        k=8,
        last=ints(2),
    ),
    tokens("FusedMatMul", "z = com.microsoft.FusedMatMul<alpha=0.5>(a, k)", 14, 6, k=(8, 6)),
    tokens("FastGelu", "z = com.microsoft.FastGelu(a, c)", 8, c=8),
    tokens(
        "RNN of sigmoids before a sum",
        't = Transpose<perm=[1,0,2]>(a) h = RNN<hidden_size=7, activations=["Sigmoid"]>(t, k, r) '
        "f = Squeeze(h, d) s = ReduceSum(f, e) u = Transpose<perm=[1,0,2]>(s) z = Mul(a, u)",
        8,
        reason="ReduceSum over the channels",
        k=(1, 7, 8),
        r=(1, 7, 7),
        d=ints(1),
        e=ints(2),
    ),
    tokens(
        "LSTM before a sum",
        't = Transpose<perm=[1,0,2]>(a) h = LSTM<hidden_size=7, activations=["HardSigmoid", "Tanh", "Relu"]>(t, k, r) '
        "f = Squeeze(h, d) s = ReduceSum(f, e) u = Transpose<perm=[1,0,2]>(s) z = Mul(a, u)",
        8 + 7,
        k=(1, 28, 8),
        r=(1, 28, 7),
        d=ints(1),
        e=ints(2),
    ),
    tokens("BiasGelu", "z = com.microsoft.BiasGelu(a, c)", 8, c=8),
]

CASES = [*CONVOLUTIONS, *PRODUCTS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_contraction(case: Case) -> None:
    check(case)
