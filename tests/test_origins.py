"""Reasons that name an axis of fixed size also say where it comes from."""

from __future__ import annotations

import pytest
from exactness import model_of

import onnxprune

FIXED = "coupled with an axis of fixed size"
CASES = {
    "a model input": (
        "(float[N,6] x, float[N,8] h) => (float[N,5] y) { a = MatMul(x, k)  b = Add(a, h)  y = MatMul(b, q) }",
        {"Add": f"{FIXED} of model input 'h'", "MatMul": f"{FIXED} of model input 'h'"},
    ),
    "a model input, behind operators": (
        """(float[N,6] x, float[N,8] h) => (float[N,5] y)
           { a = MatMul(x, k)  i = Relu(h)  b = Mul(a, i)  y = MatMul(b, q) }""",
        {"Mul": f"{FIXED} of model input 'h'", "MatMul": f"{FIXED} of model input 'h'"},
    ),
    "an operator": (
        "(float[N,6] x) => (float[N,5] y) { a = MatMul(x, k)  b = Hardmax(a)  y = MatMul(b, q) }",
        {"MatMul": f"{FIXED} made by Hardmax 'Hardmax→b'"},
    ),
    "an operator that freezes": (
        """(float[1,3,6] x, float[1,16] s) => (float[1,3,5] y) <int64 step = {4}>
           { a = MatMul(x, k)  t = STFT<onesided=0>(s, step, window)  r = ReduceSumSquare<axes=[3], keepdims=0>(t)
             b = Add(a, r)  y = MatMul(b, q) }""",
        {"Add": f"{FIXED} made by STFT 'STFT→t'", "MatMul": f"{FIXED} made by STFT 'STFT→t'"},
    ),
    "none": ("(float[N,6] x) => (float[N,8] y) { y = MatMul(x, k) }", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fixed_size_has_an_origin(name: str) -> None:
    body, expected = CASES[name]
    stored = {"k": (6, 8), "q": (8, 5), "window": (8,)}
    model = model_of(body, 17, **{name: shape for name, shape in stored.items() if f" {name})" in body})
    found = {cause.operator: cause.reason for cause in onnxprune.inspect(model).census.frozen}
    assert {op: reason for op, reason in found.items() if FIXED in reason} == expected
