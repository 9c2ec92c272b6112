"""Attention: heads stay rectangular, and queries meet keys without a weight between."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import Case, check, floats, ints, tokens

HEADS: dict[str, Any] = {
    "kq": (8, 8),
    "kk": (8, 8),
    "kv": (8, 8),
    "bq": 8,
    "bk": 8,
    "h": ints(0, 0, 2, 4),
    "j": ints(0, 0, 8),
}
PROJECT = "".join(
    f"m{c} = MatMul(a, k{c}) {p} r{c} = Reshape(p{c}, h) t{c} = Transpose<perm=[0,2,{perm}]>(r{c}) "
    for c, p, perm in (
        ("q", "pq = Add(mq, bq)", "1,3"),
        ("k", "pk = Add(mk, bk)", "3,1"),
        ("v", "pv = Identity(mv)", "1,3"),
    )
)
SEE = "s = MatMul(tq, tk) n = Softmax<axis=-1>(s) o = MatMul(n, tv) c = Transpose<perm=[0,2,1,3]>(o) z = Reshape(c, j)"
CASES = [
    tokens("attention", PROJECT + SEE, 8 + 4 + 4, **HEADS),
    tokens("attention of few wide heads", PROJECT + SEE, 8 + 4, **{**HEADS, "h": ints(0, 0, 4, 2)}),
    tokens(
        "attention with a mask",
        PROJECT + SEE.replace("Softmax<axis=-1>(s)", "Softmax<axis=-1>(f)").replace("n =", "f = Where(m, s, i) n =", 1),
        8 + 4 + 4,
        m=np.tri(5, dtype=bool),
        i=np.array(-1e4, np.float32),
        **HEADS,
    ),
    tokens(
        "attention of sigmoids",
        PROJECT.replace("Reshape(pq", "Reshape(fq")
        .replace("Reshape(pk", "Reshape(fk")
        .replace("pq = Add(mq, bq)", "pq = Add(mq, bq) fq = Sigmoid(pq)")
        .replace("pk = Add(mk, bk)", "pk = Add(mk, bk) fk = Sigmoid(pk)")
        + SEE,
        8 + 2 + 2,
        reason="summed over, though removal does not make it zero",
        **HEADS,
    ),
    tokens(
        "attention of one sigmoid",
        PROJECT.replace("Reshape(pq", "Reshape(fq").replace("pq = Add(mq, bq)", "pq = Add(mq, bq) fq = Sigmoid(pq)")
        + SEE,
        8 + 4 + 4,
        **HEADS,
    ),
    tokens(
        "attention with a shift",
        PROJECT.replace("Add(mq, bq)", "Add(mq, f)").replace("Add(mk, bk)", "Add(mk, f)") + SEE,
        8 + 2 + 2,
        reason="summed over",
        **{k: w for k, w in HEADS.items() if k not in ("bq", "bk")},
        f=floats(0.5),
    ),
    tokens(
        "attention by a position bias",
        PROJECT + SEE.replace("n =", "f = Add(s, t) n =").replace("(s)", "(f)"),
        8 + 4 + 4,
        t=(2, 5, 5),
        **HEADS,
    ),
    tokens(
        "attention of fused qkv",
        "m = MatMul(a, k) r = Reshape(m, h) p = Transpose<perm=[2,0,3,1,4]>(r) "
        "q = Gather<axis=0>(p, i0) e = Gather<axis=0>(p, i1) u = Gather<axis=0>(p, i2) "
        "t = Transpose<perm=[0,1,3,2]>(e) "
        "s = MatMul(q, t) n = Softmax<axis=-1>(s) o = MatMul(n, u) c = Transpose<perm=[0,2,1,3]>(o) z = Reshape(c, j)",
        8 + 4,
        k=(8, 24),
        h=ints(0, 0, 3, 2, 4),
        j=ints(0, 0, 8),
        i0=np.array(0),
        i1=np.array(1),
        i2=np.array(2),
    ),
    tokens(
        "queries of a key that keeps all it has",
        "pq = MatMul(a, k) r = Reshape(pq, h) q = Transpose<perm=[0,2,1,3]>(r) u = Unsqueeze(x, i1) e = Expand(u, i2) "
        "t = Transpose<perm=[0,1,3,2]>(e) s = MatMul(q, t) n = Softmax<axis=-1>(s) o = MatMul(n, e) "
        "c = Transpose<perm=[0,2,1,3]>(o) z = Reshape(c, j)",
        8 + 4,
        wide=24,
        k=(8, 24),
        h=ints(0, 0, 4, 6),
        j=ints(0, 0, -1),
        i1=ints(1),
        i2=ints(1, 4, 1, 1),
    ),
    tokens(
        "groups of queries of keys that keep all they have",
        "pq = MatMul(a, k) r = Reshape(pq, h) q = Transpose<perm=[0,2,1,3]>(r) l = Reshape(x, g) "
        "f2 = Transpose<perm=[0,2,1,3]>(l) u = Unsqueeze(f2, i1) f = Expand(u, i2) e = Reshape(f, i3) "
        "t = Transpose<perm=[0,1,3,2]>(e) s = MatMul(q, t) n = Softmax<axis=-1>(s) o = MatMul(n, e) "
        "c = Transpose<perm=[0,2,1,3]>(o) z = Reshape(c, j)",
        8 + 4,
        wide=24,
        k=(8, 24),
        h=ints(0, 0, 8, 3),
        g=ints(0, 0, 2, 3),
        j=ints(0, 0, -1),
        i1=ints(2),
        i2=ints(1, 1, 4, 1, 1),
        i3=ints(2, 8, 5, 3),
    ),
    tokens(
        "rotary positions",
        "q = MatMul(a, k) l, r = Split<axis=-1>(q) n = Neg(r) t = Concat<axis=-1>(n, l) m = Mul(q, c) f = Mul(t, s) "
        "z = Add(m, f)",
        8 + 4,
        k=(8, 8),
        c=(5, 8),
        s=(5, 8),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attention(case: Case) -> None:
    check(case)
