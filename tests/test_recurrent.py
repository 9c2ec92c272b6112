"""Hidden units of LSTM, GRU and RNN are channels; letters of an Einsum are axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exactness import assert_exact, model_of
from onnx import ModelProto

from onnxprune.graph import Graph
from onnxprune.ops import build_map

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _layer(operator: str, directions: int, *, bias: bool = True, peepholes: bool = False) -> ModelProto:
    """features 5 → MatMul 6 → recurrent 8 → Gemm-like MatMul 3."""
    gates, hidden = _GATES[operator], 8
    direction = "bidirectional" if directions == 2 else "forward"
    extra = ", , , , p" if peepholes else ""
    more = ', linear_before_reset = 1' if operator == "GRU" else ""
    text = f"""(float[4, 2, 5] x) => (float[4, 2, 3] y)
    {{ a = MatMul(x, w0)
       h = {operator}<hidden_size = {hidden}, direction = "{direction}"{more}>(a, w, r{", b" if bias else ""}{extra})
       t = Transpose<perm = [0, 2, 1, 3]>(h)
       shape = Constant<value = int64[3] {{0, 0, -1}}>()
       f = Reshape(t, shape)
       y = MatMul(f, w1) }}"""
    weights: dict[str, Any] = {
        "w0": (5, 6), "w": (directions, gates * hidden, 6), "r": (directions, gates * hidden, hidden),
        "w1": (directions * hidden, 3),
    }  # fmt: skip
    if bias:
        weights["b"] = (directions, 2 * gates * hidden)
    if peepholes:
        weights["p"] = (directions, 3 * hidden)
    return model_of(text, **weights)


@pytest.mark.parametrize("operator", list(_GATES))
@pytest.mark.parametrize("directions", [1, 2])
def test_hidden_units_and_inputs_leave(operator: str, directions: int) -> None:
    found = assert_exact(_layer(operator, directions))
    assert len(found[0].map.free) == 6 + 8
    assert all(outcome.removed for outcome in found)


@pytest.mark.parametrize(("between", "free"), [("a = Identity(m)", 6 + 8), ("a = Sigmoid(m)", 8)])
@pytest.mark.parametrize("each", [1, 32])
def test_quantised_weights(between: str, free: int, each: int) -> None:
    """Scales and zero points of a direction, or of every gate; inputs are quantised by their range."""
    rng = np.random.default_rng(0)
    model = model_of(
        f"""(float[4, 2, 5] x) => (float[A, B, C] y)
        {{ m = MatMul(x, w0) {between}
           h = com.microsoft.DynamicQuantizeLSTM<hidden_size = 8, direction = "bidirectional">
               (a, w, r, b, , , , , ws, wz, rs, rz)
           t = Transpose<perm = [0, 2, 1, 3]>(h)
           shape = Constant<value = int64[3] {{0, 0, -1}}>()
           f = Reshape(t, shape)
           y = MatMul(f, w1) }}""",
        w0=(5, 6), b=(2, 64), w1=(16, 3),
        w=rng.integers(-90, 90, (2, 6, 32)).astype(np.int8), r=rng.integers(-90, 90, (2, 8, 32)).astype(np.int8),
        ws=rng.uniform(0.005, 0.01, (2, each)[: 1 + (each > 1)]).astype(np.float32),
        rs=rng.uniform(0.005, 0.01, (2, each)[: 1 + (each > 1)]).astype(np.float32),
        wz=np.zeros((2, each)[: 1 + (each > 1)], np.int8), rz=np.zeros((2, each)[: 1 + (each > 1)], np.int8),
    )  # fmt: skip
    found = assert_exact(model)
    assert len(found[0].map.free) == free
    assert all(outcome.removed for outcome in found)


def test_hidden_size_follows() -> None:
    outcome = assert_exact(_layer("LSTM", 2))[0]
    node = next(n for n in outcome.pruned.graph.node if n.op_type == "LSTM")
    left = next(a.i for a in node.attribute if a.name == "hidden_size")
    weight = next(t for t in outcome.pruned.graph.initializer if t.name == "r")
    assert left < 8
    assert list(weight.dims) == [2, 4 * left, left]


def test_gates_that_the_export_puts_in_order() -> None:
    """Some exporters store the gates in another order and reorder them in the graph: Slice, Slice, Concat."""
    model = model_of(
        """(float[4, 2, 5] x) => (float[4, 2, 3] y)
        { a = MatMul(x, w0)
          i = Slice(s, n0, n8, n0) f = Slice(s, n8, n16, n0) g = Slice(s, n16, n24, n0) o = Slice(s, n24, n32, n0)
          c = Concat<axis = 0>(i, o, f, g) w = Unsqueeze(c, n0)
          h = LSTM<hidden_size = 8>(a, w, r)
          t = Squeeze(h, n1)
          y = MatMul(t, w1) }""",
        w0=(5, 6), s=(32, 6), r=(1, 32, 8), w1=(8, 3), n1=np.array([1]),
        **{f"n{n}": np.array([n]) for n in (0, 8, 16, 24, 32)},
    )  # fmt: skip
    found = assert_exact(model)
    assert len(found[0].map.free) == 6 + 8
    assert all(outcome.removed for outcome in found)


def test_zeros_of_the_size_of_the_batch_to_begin_with() -> None:
    """Converted Keras layers expand a 0 to [batch, hidden], with the batch taken from the input."""
    model = model_of(
        """(float[4, N, 5] x) => (float[4, N, 3] y)
        { a = MatMul(x, w0)
          s = Shape(x) n = Slice(s, n1, n2) c = Concat<axis = 0>(n, n8) e = Expand(zero, c) i = Unsqueeze(e, n0)
          h = LSTM<hidden_size = 8>(a, w, r, , , i, i)
          t = Squeeze(h, n1)
          y = MatMul(t, w1) }""",
        w0=(5, 6), w=(1, 32, 6), r=(1, 32, 8), w1=(8, 3), zero=np.zeros(1, np.float32),
        **{f"n{n}": np.array([n]) for n in (0, 1, 2, 8)},
    )  # fmt: skip
    found = assert_exact(model)
    assert len(found[0].map.free) == 6 + 8
    assert all(outcome.removed for outcome in found)


def test_without_bias_and_with_peepholes() -> None:
    assert_exact(_layer("LSTM", 1, bias=False))
    assert_exact(_layer("LSTM", 1, peepholes=True))


def test_an_initial_state_that_is_fed_keeps_the_units() -> None:
    text = """(float[4, 2, 5] x, float[1, 2, 8] h0) => (float[4, 1, 2, 8] y)
    { y = RNN<hidden_size = 8>(x, w, r, b, , h0) }"""
    channel_map = build_map(Graph(model_of(text, w=(1, 8, 5), r=(1, 8, 8), b=(1, 16))))
    assert not len(channel_map.free)


def test_last_state_through_dense_layers() -> None:
    text = """(float[4, 2, 5] x) => (float[2, 3] y)
    { all, last = GRU<hidden_size = 8>(x, w, r, b)
      axes = Constant<value = int64[1] {0}>()
      s = Squeeze(last, axes)
      y = MatMul(s, w1) }"""
    found = assert_exact(model_of(text, w=(1, 24, 5), r=(1, 24, 8), b=(1, 48), w1=(8, 3)))
    assert len(found[0].map.free) == 8


@pytest.mark.parametrize(
    ("equation", "shape"),
    [("bij,jk->bik", (7, 9)), ("bij,kj->bik", (9, 7)), ("bij,jk->bki", (7, 9)), ("bij,jk", (7, 9))],
)
def test_einsum_with_a_stored_weight(equation: str, shape: tuple[int, ...]) -> None:
    last = "bki,kc->bic" if equation.endswith("bki") else "bik,kc->bic"
    text = f"""(float[2, 4, 5] x) => (float[2, 4, 3] y)
    {{ a = MatMul(x, w0)
       h = Einsum<equation = "{equation}">(a, w)
       y = Einsum<equation = "{last}">(h, w1) }}"""
    found = assert_exact(model_of(text, w0=(5, 7), w=shape, w1=(9, 3)))
    assert len(found[0].map.free) == 7 + 9


def test_einsum_attention_prunes_head_width() -> None:
    text = """(float[2, 4, 6] x) => (float[2, 4, 6] y)
    { q = Einsum<equation = "bsc,chd->bshd">(x, wq)
      k = Einsum<equation = "bsc,chd->bshd">(x, wk)
      v = Einsum<equation = "bsc,chd->bshd">(x, wv)
      logits = Einsum<equation = "bqhd,bkhd->bhqk">(q, k)
      p = Softmax<axis = -1>(logits)
      o = Einsum<equation = "bhqk,bkhd->bqhd">(p, v)
      y = Einsum<equation = "bqhd,hdc->bqc">(o, wo) }"""
    weights: dict[str, Any] = {name: np.random.default_rng(i).standard_normal((6, 3, 4)).astype(np.float32) / 2
               for i, name in enumerate(("wq", "wk", "wv"))}  # fmt: skip
    model = model_of(text, wo=(3, 4, 6), **weights)
    found = assert_exact(model)
    assert len(found[0].map.free) == 3 + 4 + 4  # heads, width of queries and keys, width of values


def test_einsum_with_an_ellipsis_is_left_alone() -> None:
    text = """(float[2, 4, 5] x) => (float[2, 4, 3] y)
    { a = MatMul(x, w0)
      y = Einsum<equation = "...j,jk->...k">(a, w) }"""
    channel_map = build_map(Graph(model_of(text, w0=(5, 7), w=(7, 3))))
    assert not len(channel_map.free)
    assert any(reason.operator == "Einsum" for reason in channel_map.reasons.values())
