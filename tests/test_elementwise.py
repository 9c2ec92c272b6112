"""Element-wise operators: broadcasting, and what stays zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import Case, check, floats, image, ints, tokens, vector

from onnxprune.graph import Graph
from onnxprune.ops import build_map

ZERO = (
    "Abs", "Asinh", "Atan", "Ceil", "Celu", "Dropout", "Elu", "Erf", "Floor", "Gelu", "HardSwish", "Identity",
    "LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Shrink", "Sign", "Sin", "Sinh", "Softsign", "Swish", "Tan",
    "Tanh", "ThresholdedRelu", "com.microsoft.Gelu", "com.microsoft.QuickGelu",
)  # fmt: skip
NOT_ZERO = ("Cos", "Cosh", "Exp", "HardSigmoid", "Sigmoid", "Softplus")
DOMAIN = ("Acos", "Acosh", "Asin", "Atanh", "Log", "Reciprocal", "Sqrt")
NEWEST = {"Gelu": 20, "Mish": 18, "Swish": 24}
NO_KERNEL = {"Swish"}

PER_CHANNEL: dict[str, Any] = {"c": (8, 1, 1)}
CASES = [
    image("Add constant", "z = Add(a, c)", 8, **PER_CHANNEL),
    image("Add scalar", "z = Add(a, c)", 8, c=floats(0.7)),
    image("Add constant of rank 0", "z = Sub(c, a)", 8, c=np.array(0.7, np.float32)),
    image("Add over space", "z = Add(a, c)", 8, c=(1, 1, 6, 6)),
    image("Add two branches", "p = Conv(x, q, b) z = Add(a, p)", 8, q=(8, 3, 1, 1)),
    image(
        "Add a model input",
        "p = Conv(a, k) s = Add(p, x) z = Relu(s)",
        8,
        3,
        "coupled with an axis of fixed size",
        k=(3, 8, 1, 1),
    ),
    image("Mul constant", "z = Mul(a, c)", 8, **PER_CHANNEL),
    image(
        "Mul one channel", "g = Conv(a, k) z = Mul(a, g)", 8, reason="one channel broadcast over many", k=(1, 8, 1, 1)
    ),
    image("Sum", "z = Sum(a, a, c)", 8, **PER_CHANNEL),
    image("Mean", "z = Mean(a, c)", 8, **PER_CHANNEL),
    image("Max with a constant", "z = Max(a, c)", 8, **PER_CHANNEL),
    image("Min with a scalar", "z = Min(a, c)", 8, c=floats(-0.3)),
    image("Div", "z = Div(a, c)", 8, c=floats(1, 2, 3, 4, 5, 6, 7, 8).reshape(8, 1, 1)),
    image("Div by what is positive", "e = Exp(a) p = Add(e, c) z = Div(a, p)", 8, c=floats(1.0)),
    image(
        "Div by what may be zero",
        "d = Relu(a) p = Sub(d, c) z = Div(a, p)",
        0,
        reason="may divide by zero",
        c=floats(-1.0),
    ),
    image(
        "Div by a masked constant",
        "m = Mul(a, a) d = Add(m, c) z = Div(a, d)",
        0,
        reason="may divide by zero",
        c=floats(1, 2, 3, 4, 5, 6, 7, 8).reshape(8, 1, 1),
    ),
    image("Pow", "z = Pow(a, c)", 8, c=floats(2.0)),
    image("Pow of a root", "r = Relu(a) z = Pow(r, c)", 8, c=floats(0.5)),
    image("Pow of a negative", "e = Exp(a) z = Pow(e, c)", 8, c=floats(-1.0)),
    image("Pow of a pole", "z = Pow(a, c)", 0, reason="may have no such power", c=floats(-2.0)),
    image("Log of what is positive", "e = Exp(a) s = Add(e, c) z = Log(s)", 8, c=floats(1.0)),
    image("Mod", "z = Mod<fmod=1>(a, c)", 8, c=floats(2.0)),
    image("Clip", "z = Clip(a, low, high)", 8, low=np.array(0.2, np.float32), high=np.array(1.0, np.float32)),
    image("Clip as in opset 6", "z = Clip<min=0.0, max=1.0>(a)", 8, opset=9),
    image("PRelu", "z = PRelu(a, c)", 8, **PER_CHANNEL),
    image("PRelu one slope", "z = PRelu(a, c)", 8, reason="one channel broadcast", c=(1, 1, 1)),
    image("Where", "g = Greater(a, c) z = Where(g, a, c)", 8, **PER_CHANNEL),
    image("Where with a scalar", "g = Less(a, c) z = Where(g, c, a)", 8, c=np.array(-1.0, np.float32)),
    image(
        "compare and cast",
        "g = Greater(a, c) h = Less(a, c) o = Or(g, h) n = Not(o) z = Cast<to=1>(n)",
        8,
        **PER_CHANNEL,
    ),
    image(
        "more comparisons",
        "g = GreaterOrEqual(a, c) h = LessOrEqual(a, c) e = Equal(g, h) o = And(g, e) p = Xor(o, h) q = IsNaN(a) "
        "i = IsInf(a) j = Or(i, q) k = Or(p, j) z = Cast<to=1>(k)",
        8,
        **PER_CHANNEL,
    ),
    image(
        "BitwiseNot",
        "i = Cast<to=6>(a) n = BitwiseNot(i) f = Cast<to=1>(n) m = ReduceSum(f, d) z = Add(a, m)",
        0,
        reason="ReduceSum over the channels",
        opset=18,
        d=ints(1),
    ),
    image("CastLike", "z = CastLike(a, c)", 8, c=floats(1.0)),
    image("Dropout with its mask", "d, m = Dropout(a) f = Cast<to=1>(m) z = Mul(d, f)", 8),
    image("BatchNormalization", "z = BatchNormalization(a, s, t, m, q)", 8, s=8, t=8, m=8, q=floats(*range(1, 9))),
    vector(
        "BatchNormalization of vectors",
        "z = BatchNormalization(a, s, t, m, q)",
        8,
        s=8,
        t=8,
        m=8,
        q=floats(*range(1, 9)),
    ),
    image(
        "BatchNormalization of a model input",
        "n = BatchNormalization(x, s, t, m, q) z = Conv(n, k)",
        16,
        reason="coupled with an axis of fixed size",
        k=(8, 3, 1, 1),
        s=3,
        t=3,
        m=3,
        q=floats(1, 2, 3),
    ),
    image(
        "squeeze and excite",
        "p = GlobalAveragePool(a) q = Conv(p, k, c) r = Relu(q) s = Conv(r, l) g = Sigmoid(s) z = Mul(a, g)",
        10,
        k=(2, 8, 1, 1),
        c=2,
        l=(8, 2, 1, 1),
    ),
    image(
        "squeeze and excite by Gemm",
        "p = ReduceMean<axes=[2,3], keepdims=0>(a) q = Gemm(p, k) r = Relu(q) s = Gemm(r, l) "
        "g = HardSigmoid(s) u = Unsqueeze(g, ends) z = Mul(a, u)",
        10,
        k=(8, 2),
        l=(2, 8),
        ends=ints(2, 3),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_elementwise(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("op", [*ZERO, *NOT_ZERO])
def test_a_product_of_branches_is_cut_only_where_zero_stays_zero(op: str) -> None:
    """Q·Kᵀ of f(Q) and f(K) may lose a channel of both only if f(0) = 0."""
    body = (
        f"q = MatMul(a, i) f = {op}(q) k = MatMul(a, j) g = {op}(k) "
        "t = Transpose<perm=[0,2,1]>(g) s = MatMul(f, t) z = Tanh(s)"
    )
    case = tokens(op, body, 8 + (6 if op in ZERO else 0), 5, opset=NEWEST.get(op, 17), i=(8, 6), j=(8, 6))
    if op in NO_KERNEL:
        assert len(build_map(Graph(case.model)).free) == case.free
    else:
        check(case)


@pytest.mark.parametrize("op", DOMAIN)
def test_a_function_of_limited_domain_is_left_alone(op: str) -> None:
    """What comes in is in the domain; that it is at a removed channel too cannot be seen from the graph."""
    inner = f"s = {'Cosh' if op == 'Acosh' else 'Sigmoid'}(a) h = Mul(s, g) p = Sub(h, c)"
    weights: dict[str, Any] = {"g": floats(1.0 if op == "Acosh" else 0.5), "c": floats(-0.1)}
    check(image(op, f"{inner} z = {op}(p)", 0, reason="where a channel is removed", **weights))


@pytest.mark.parametrize("op", ["Log", "Reciprocal", "Sqrt"])
def test_a_function_of_limited_domain_takes_what_is_positive(op: str) -> None:
    body = (
        f"q = Mul(a, a) e = Softplus(a) s = Add(q, e) m = Max(s, c) r = Relu(a) d = Div(r, m) f = Add(d, e) z = {op}(f)"
    )
    check(image(op, body, 8, c=floats(0.5)))


@pytest.mark.parametrize("op", ["Acos", "Asin", "Atanh", "Sqrt"])
def test_a_function_of_limited_domain_takes_what_is_zero(op: str) -> None:
    inner = "Abs" if op == "Sqrt" else "Softsign"
    check(image(op, f"p = {inner}(a) z = {op}(p)", 8))
