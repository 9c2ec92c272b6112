"""Where constants live: quantised, behind other operators, shared."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case, check, floats, image, ints, tokens

SCALE = np.array(0.02, np.float32)
HALF = np.float16
CASES = [
    image(
        "QuantizeLinear pair",
        "q = QuantizeLinear(a, s, o) z = DequantizeLinear(q, s, o)",
        8,
        s=SCALE,
        o=np.array(3, np.uint8),
    ),
    image(
        "QuantizeLinear of zero points that differ",
        "q = QuantizeLinear(a, s, o) f = DequantizeLinear(q, s, p) m = ReduceSum(f, d) z = Add(a, m)",
        0,
        reason="ReduceSum over the channels",
        s=SCALE,
        o=np.array(3, np.uint8),
        p=np.array(5, np.uint8),
        d=ints(1),
    ),
    image(
        "DequantizeLinear weight",
        "k = DequantizeLinear(i, s, o) z = Conv(a, k)",
        14,
        6,
        s=SCALE,
        o=np.array(7, np.int8),
        i=np.arange(48, dtype=np.int8).reshape(6, 8, 1, 1),
    ),
    image(
        "DequantizeLinear weight per channel",
        "k = DequantizeLinear<axis=0>(i, s, o) z = Conv(a, k)",
        14,
        6,
        s=np.linspace(0.01, 0.02, 6, dtype=np.float32),
        o=np.arange(6, dtype=np.int8),
        i=np.arange(48, dtype=np.int8).reshape(6, 8, 1, 1),
    ),
    image(
        "DequantizeLinear bias",
        "l = DequantizeLinear<axis=0>(i, s) z = Conv(a, k, l)",
        14,
        6,
        k=(6, 8, 1, 1),
        s=np.linspace(0.01, 0.02, 6, dtype=np.float32),
        i=np.arange(6, dtype=np.int32),
    ),
    image(
        "DequantizeLinear of a Transpose",
        "t = Transpose<perm=[1,0,2,3]>(i) k = DequantizeLinear(t, s, o) z = Conv(a, k)",
        14,
        6,
        s=SCALE,
        o=np.array(7, np.int8),
        i=np.arange(48, dtype=np.int8).reshape(8, 6, 1, 1),
    ),
    image(
        "DequantizeLinear of a Transpose per channel",
        "t = Transpose<perm=[1,0,2,3]>(i) k = DequantizeLinear<axis=0>(t, s, o) z = Conv(a, k)",
        0,
        6,
        "its zero is not the same along its axis",
        s=np.full(6, 0.02, np.float32),
        o=np.arange(6, dtype=np.int8),
        i=np.arange(48, dtype=np.int8).reshape(8, 6, 1, 1),
    ),
    image(
        "DequantizeLinear in blocks",
        "k = DequantizeLinear<axis=1, block_size=4>(i, s, o) z = Conv(a, k)",
        8,
        6,
        opset=21,
        s=np.linspace(0.01, 0.02, 12, dtype=np.float32).reshape(6, 2, 1, 1),
        o=np.arange(12, dtype=np.int8).reshape(6, 2, 1, 1),
        i=np.arange(48, dtype=np.int8).reshape(6, 8, 1, 1),
    ),
    image(
        "Constant node",
        "k = Constant<value=float[2,8,1,1] {1,2,3,4,5,6,7,8,-1,-2,-3,-4,-5,-6,-7,-8}>() z = Conv(a, k)",
        10,
        2,
    ),
    image("Cast weight", "f = Cast<to=1>(k) z = Conv(a, f)", 14, 6, k=np.ones((6, 8, 1, 1), HALF)),
    tokens("Transpose weight", "t = Transpose(k) z = MatMul(a, t)", 14, 6, k=(6, 8)),
    image("Identity weight", "f = Identity(k) z = Conv(a, f)", 14, 6, k=(6, 8, 1, 1)),
    image("Reshape weight", "f = Reshape(k, s) z = Conv(a, f)", 14, 6, k=(6, 8), s=ints(6, 8, 1, 1)),
    image("Unsqueeze weight", "f = Unsqueeze(k, d) z = Conv(a, f)", 14, 6, k=(6, 8), d=ints(2, 3)),
    image(
        "weight of a product",
        "f = Mul(k, s) z = Conv(a, f)",
        0,
        6,
        "its constant is computed by Mul",
        k=(6, 8, 1, 1),
        s=floats(2),
    ),
    image("bias of a product", "l = Mul(c, s) z = Conv(a, k, l)", 14, 6, k=(6, 8, 1, 1), c=6, s=floats(2)),
    image("bias of a single channel", "l = Reshape(c, s) p = Conv(a, k) h = Add(p, l) z = Concat<axis=1>(h, a)", 9, 9,
          k=(1, 8, 1, 1), c=1, s=ints(1, 1, 1, 1)),
    image("zeros by ConstantOfShape", "l = ConstantOfShape(s) z = Conv(a, k, l)", 14, 6, k=(6, 8, 1, 1), s=ints(6)),
    image("shared weight", "p = Conv(a, k) r = Relu(p) z = Conv(r, k)", 8, k=(8, 8, 1, 1)),
    image(
        "weight read by two branches",
        "p = Conv(a, k) q = Conv(a, k) r = Sigmoid(q) z = Add(p, r)",
        14,
        6,
        k=(6, 8, 1, 1),
    ),
    image("shared bias", "p = Conv(a, k, b) z = Relu(p)", 8, k=(8, 8, 1, 1)),
    image(
        "bias of zeros, shared",
        "p = Conv(a, k, o) z = Conv(p, q, o)",
        24,
        k=(8, 8, 1, 1),
        q=(8, 8, 1, 1),
        o=floats(*[0] * 8),
    ),
    image(
        "bias that also divides",
        "p = Conv(a, k, c) e = Reshape(c, s) z = Div(p, e)",
        8,
        reason="shared between unlike uses",
        k=(8, 8, 1, 1),
        c=floats(*range(1, 9)),
        s=ints(8, 1, 1),
    ),
    tokens(
        "embedding",
        "i = Cast<to=7>(x) e = Gather(k, i) s = ReduceSum<keepdims=0>(e, d) z = Add(a, s)",
        8,
        k=(4, 8),
        d=ints(2),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_stored(case: Case) -> None:
    check(case)
