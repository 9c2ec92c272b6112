"""Models whose batch or length is open: nothing may depend on the sizes guessed for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import Case, check, ints
from exactness import model_of


def open_batch(name: str, given: str, body: str, free: int, reason: str = "",
               **weights: Any) -> Case:  # fmt: skip
    """The batch (and more) is a symbol; fed with 4, while the analysis guesses 2 and 3."""
    text = f"({given} x) => (float[A,B,C] y) {{ a = MatMul(x, w) {body} y = MatMul(z, v) }}"
    return Case(name, model_of(text, **weights), free, reason, {"x": (4, 5, 6)})


LINES: dict[str, Any] = {"w": (6, 8), "v": (8, 4)}
SIZES = "n = Shape(a) n0 = Gather(n, i0) n1 = Gather(n, i1) "
INDEX: dict[str, Any] = {"i0": ints(0), "i1": ints(1)}
CASES = [
    open_batch(
        "computed target",
        "float[N,L,6]",
        SIZES + "t = Concat<axis=0>(n0, n1, h) r = Reshape(a, t) s = Relu(r) "
        "u = Concat<axis=0>(n0, n1, e) z = Reshape(s, u)",
        4,
        h=ints(2, 4),
        e=ints(8),
        **INDEX,
        **LINES,
    ),
    open_batch(
        "heads in the batch",
        "float[N,L,6]",
        SIZES + "q = Mul(n0, two) t = Concat<axis=0>(n1, q, h) "
        "p = Transpose<perm=[1,0,2]>(a) r = Reshape(p, t) s = Transpose<perm=[1,0,2]>(r) "
        "m = Transpose<perm=[0,2,1]>(s) "
        "f = MatMul(s, m) g = Softmax<axis=2>(f) o = MatMul(g, s) d = Transpose<perm=[1,0,2]>(o) "
        "u = Concat<axis=0>(n1, n0, e) c = Reshape(d, u) z = Transpose<perm=[1,0,2]>(c)",
        4,
        two=ints(4),
        h=ints(2),
        e=ints(8),
        **INDEX,
        **LINES,
    ),
    open_batch(
        "all channels in the batch",
        "float[N,L,6]",
        "n = Shape(a) n0 = Gather(n, i0) q = Mul(n0, e) t = Concat<axis=0>(q, m) "
        "p = Transpose<perm=[0,2,1]>(a) r = Reshape(p, t) s = Relu(r) u = Concat<axis=0>(n0, e, m) c = Reshape(s, u) "
        "z = Transpose<perm=[0,2,1]>(c)",
        8,
        e=ints(8),
        m=ints(-1),
        i0=ints(0),
        **LINES,
    ),
    open_batch(
        "expanded to the batch", "float[N,L,6]", "n = Shape(a) f = Expand(c, n) z = Add(a, f)", 8, c=(1, 8), **LINES
    ),
    open_batch(
        "filled like",
        "float[N,L,6]",
        "n = Shape(a) f = ConstantOfShape<value=float[1]{0.5}>(n) z = Mul(a, f)",
        8,
        **LINES,
    ),
    open_batch(
        "shape of what has channels in the batch",
        "float[N,5,6]",
        "p = Transpose<perm=[0,2,1]>(a) r = Reshape(p, t) n = Shape(r) "
        "f = Cast<to=1>(n) s = ReduceSum(f) q = Div(r, s) c = Reshape(q, u) z = Transpose<perm=[0,2,1]>(c)",
        8,
        t=ints(-1, 5),
        u=ints(-1, 8, 5),
        **LINES,
    ),
    open_batch(
        "sliced from the end of the batch",
        "float[N,5,6]",
        "p = Transpose<perm=[0,2,1]>(a) r = Reshape(p, t) "
        "q = Slice(r, s, e, d) c = Reshape(q, u) o = Transpose<perm=[0,2,1]>(c) z = Add(a, o)",
        0,
        t=ints(-1, 5),
        u=ints(1, 8, 5),
        s=ints(-8),
        e=ints(np.iinfo(np.int64).max),
        d=ints(0),
        **LINES,
    ),
    open_batch(
        "padded by what is computed",
        "float[N,L,6]",
        "n = Shape(x) n1 = Gather(n, i1) s = Sub(n1, n1) p = Concat<axis=0>(s, s, s, s, one, s) "
        "q = Pad(a, p) m = Slice(q, s, e, d) z = Relu(m)",
        8,
        one=ints(1),
        e=ints(8),
        d=ints(2),
        i1=ints(1),
        **LINES,
    ),
    open_batch(
        "joined as the batch says",
        "float[N,5,6]",
        "r = Reshape(a, t) s = Relu(r) z = Reshape(s, u)",
        8,
        t=ints(5, -1, 8),
        u=ints(-1, 5, 8),
        **LINES,
    ),
    open_batch(
        "batch of 2 by chance",
        "float[N,5,6]",
        "p = Transpose<perm=[0,2,1]>(a) r = Reshape(p, t) s = Relu(r) c = Reshape(s, u) z = Transpose<perm=[0,2,1]>(c)",
        0,
        "sizes of open dimensions",
        t=ints(2, -1, 5),
        u=ints(-1, 8, 5),
        **LINES,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_open_sizes(case: Case) -> None:
    check(case)
