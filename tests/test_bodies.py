"""Channels inside the bodies of If, Loop and Scan, and across their edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from exactness import assert_exact, model_of
from onnx import ModelProto

import onnxprune
from onnxprune.bodies import flatten, restore
from onnxprune.channels import ChannelMap
from onnxprune.graph import Graph, subgraphs
from onnxprune.ops import build_map
from onnxprune.passes.rewrite import rewrite

# ---- models: 6 features in, a hidden layer of 8 channels, something with bodies, 4 features out ----------------------

_HIDDEN = "(float[2,6] x, bool c) => (float[2,4] y) { a = MatMul(x, w) "
_END = " y = MatMul(z, v) }"


def hidden(middle: str, ir: int = 8, /, **weights: Any) -> ModelProto:
    """``middle``: from a [2, 8] and the condition c to z [2, 8]."""
    return model_of(_HIDDEN + middle + _END, 17, ir, **{"w": (6, 8), "v": (8, 4), **weights})


def branches(then: str, other: str) -> str:
    one, two = f"t () => (float[2,8] p) {{ {then} }}", f"e () => (float[2,8] q) {{ {other} }}"
    return f"z = If(c) <then_branch = {one}, else_branch = {two}>"


def in_body(model: ModelProto, place: int = 0, **weights: Any) -> ModelProto:
    """The model with constants moved into a body of its first node that has any."""
    body = list(subgraphs(next(n for n in model.graph.node if any(True for _ in subgraphs(n)))))[place]
    for name, shape in weights.items():
        held = model_of("(float[1] x) => (float[1] y) { y = Relu(x) }", **{name: shape}).graph.initializer[0]
        body.initializer.append(held)
    return model


IF_CAPTURES = hidden(branches("p = Relu(a)", "q = Tanh(a)"))
IF_CLOSED = in_body(
    in_body(
        hidden(branches(*(f"h = MatMul(a, u) r = Relu(h) {name} = MatMul(r, s)" for name in "pq"))),
        0, u=(8, 5), s=(5, 8),
    ),
    1, u=(8, 7), s=(7, 8),
)  # fmt: skip
IF_SHARED_WEIGHT = hidden(branches("p = MatMul(a, u)", "h = MatMul(a, u) q = Sigmoid(h)"), u=(8, 8))
IF_CONSTANT = in_body(hidden(branches("p = Relu(a)", "q = Identity(k)")), 1, k=(2, 8))
IF_STORED_OUTPUT = in_body(hidden(branches("p = Relu(a)", "")), 1, q=(2, 8))
IF_NESTED = in_body(hidden(branches(
    "h = MatMul(a, u) n = Not(c) p = If(n) <then_branch = tt () => (float[2,8] i) { i = Add(h, a) }, "
    "else_branch = te () => (float[2,8] j) { j = Relu(h) }>",
    "q = Neg(a)",
)), 0, u=(8, 8))  # fmt: skip
IF_TWO_OUTPUTS = hidden(
    "z1, z2 = If(c) <then_branch = t () => (float[2,8] p1, float[2,5] p2) { p1 = Relu(a) p2 = MatMul(a, u) }, "
    "else_branch = e () => (float[2,8] q1, float[2,5] q2) { q1 = Neg(a) h = MatMul(a, u) q2 = Relu(h) }>"
    " zz = MatMul(z2, s) z = Add(z1, zz)",
    u=(8, 5), s=(5, 8),
)  # fmt: skip
IF_UNLIKE = model_of(
    "(float[2,6] x, bool c) => (float[M,4] y) { a = MatMul(x, w) z = If(c) <then_branch = t () => (float[M,8] p) "
    "{ p = Concat <axis = 0> (a, a) }, else_branch = e () => (float[N,8] q) { q = Relu(a) }> y = MatMul(z, v) }",
    w=(6, 8), v=(8, 4),
)  # fmt: skip
LOOP_STATE = hidden(
    "n = Constant <value = int64 {3}> () z = Loop(n, c, a) <body = b (int64 i, bool g, float[2,8] s) "
    "=> (bool g2, float[2,8] t) { g2 = Identity(g) r = MatMul(s, u) xw = MatMul(x, d) k = Add(r, xw) t = Tanh(k) }>",
    u=(8, 8), d=(6, 8),
)  # fmt: skip
LOOP_TWO_STATES = hidden(
    "n = Constant <value = int64 {3}> () f1, f2 = Loop(n, c, a, k0) <body = b (int64 i, bool g, float[2,8] s1, "
    "float[2,8] s2) => (bool g2, float[2,8] t1, float[2,8] t2) { g2 = Identity(g) r = MatMul(s1, u) "
    "j = Sigmoid(r) m = Mul(j, s2) t2 = Add(m, s1) t1 = Tanh(t2) }> z = Identity(f1)",
    u=(8, 8), k0=np.zeros((2, 8), np.float32),
)  # fmt: skip
LOOP_STACK = hidden(
    "n = Constant <value = int64 {3}> () f, l = Loop(n, c, a) <body = b (int64 i, bool g, float[2,8] s) "
    "=> (bool g2, float[2,8] t, float[2,8] o) { g2 = Identity(g) r = MatMul(s, u) t = Relu(r) o = Add(t, a) }> "
    "k0 = Constant <value = int64[1] {0}> () z = ReduceSum <keepdims = 0> (l, k0)",
    u=(8, 8),
)  # fmt: skip
LOOP_GROWS = model_of(
    "(float[2,6] x, bool c) => (float[M,4] y) { a = MatMul(x, w) n = Constant <value = int64 {3}> () "
    "z = Loop(n, c, a) <body = b (int64 i, bool g, float[P,8] s) => (bool g2, float[Q,8] t) "
    "{ g2 = Identity(g) t = Concat <axis = 0> (s, a) }> y = MatMul(z, v) }",
    w=(6, 8), v=(8, 4),
)  # fmt: skip
SCAN = model_of(
    "(float[5,2,6] x) => (float[5,2,4] y, float[2,8] h) { a = MatMul(x, w) h0, l = Scan <num_scan_inputs = 1, "
    "body = b (float[2,8] s, float[2,8] e) => (float[2,8] t, float[2,8] o) { r = MatMul(s, u) k = Add(r, e) "
    "t = Tanh(k) o = Identity(t) }> (k0, a) y = MatMul(l, v) h = MatMul(h0, q) }",
    w=(6, 8), v=(8, 4), u=(8, 8), q=(8, 8), k0=np.zeros((2, 8), np.float32),
)  # fmt: skip
SCAN_AXES = model_of(
    "(float[2,5,6] x) => (float[2,5,4] y) { a = MatMul(x, w) l = Scan <num_scan_inputs = 1, scan_input_axes = [1], "
    "scan_output_axes = [1], scan_input_directions = [1], body = b (float[2,8] e) => (float[2,8] o) "
    "{ o = Relu(e) }> (a) y = MatMul(l, v) }",
    w=(6, 8), v=(8, 4),
)  # fmt: skip

_ALL_LEAVE = {
    "If captures": IF_CAPTURES,
    "If closed": IF_CLOSED,
    "If shared weight": IF_SHARED_WEIGHT,
    "If constant": IF_CONSTANT,
    "If stored output": IF_STORED_OUTPUT,
    "If nested": IF_NESTED,
    "If two outputs": IF_TWO_OUTPUTS,
    "Loop state": LOOP_STATE,
    "Loop two states": LOOP_TWO_STATES,
    "Loop stack": LOOP_STACK,
    "Scan": SCAN,
    "Scan axes": SCAN_AXES,
}
_SOME_STAY = {"If unlike": IF_UNLIKE, "Loop grows": LOOP_GROWS}
_MODELS = _ALL_LEAVE | _SOME_STAY


def map_of(model: ModelProto) -> ChannelMap:
    return build_map(Graph(flatten(model)))


@pytest.mark.parametrize("name", _MODELS)
def test_laid_out_and_put_back_a_model_is_what_it_was(name: str) -> None:
    model = _MODELS[name]
    flat = flatten(model)
    assert not any(True for node in flat.graph.node for _ in subgraphs(node))
    assert restore(flat) == model
    assert rewrite(map_of(model), np.ones(map_of(model).groups, np.bool_)) == model


@pytest.mark.parametrize("name", _MODELS)
def test_pruned_equals_masked(name: str) -> None:
    onnx.checker.check_model(_MODELS[name], full_check=True)
    assert_exact(_MODELS[name], seeds=range(6))


@pytest.mark.parametrize("name", _ALL_LEAVE)
def test_hidden_channels_may_leave(name: str) -> None:
    assert len(map_of(_ALL_LEAVE[name]).free) >= 8


@pytest.mark.parametrize("name", _SOME_STAY)
def test_what_has_no_fixed_shape_stays(name: str) -> None:
    assert not len(map_of(_SOME_STAY[name]).free)


@pytest.mark.parametrize("name", _MODELS)
def test_half_of_the_weights_leave_exactly(name: str) -> None:
    try:
        result = onnxprune.prune(_MODELS[name], sparsity=0.5, align="none")
    except onnxprune.UnreachableError:
        assert name in _SOME_STAY
        return
    assert result.verification is not None
    assert result.verification.ok
    onnx.checker.check_model(result.model, full_check=True)
