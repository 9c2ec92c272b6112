"""Channels inside the bodies of If, Loop and Scan, and across their edges."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exactness import Outcome, assert_exact, model_of
from generate_bodies import model_with_bodies, with_dead_channels
from onnx import GraphProto, ModelProto, NodeProto
from witness import feeds, largest_error, outputs, stored_weights
from zeroed import runs

import onnxprune
from onnxprune.bodies import flatten, restore
from onnxprune.channels import ChannelMap
from onnxprune.graph import Graph, subgraphs
from onnxprune.ops import build_map
from onnxprune.passes.masked import masked_reference
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

LOOP_WHILE = hidden(
    "z = Loop(, c, a) <body = b (int64 i, bool g, float[2,8] s) => (bool g2, float[2,8] t) { h = MatMul(s, u) "
    "t = Relu(h) m = ReduceSum <keepdims = 0> (t) k = Constant <value = float {-1.0}> () g3 = Less(m, k) "
    "k2 = Constant <value = int64 {2}> () g4 = Less(i, k2) g2 = Or(g3, g4) }>",
    u=(8, 8),
)  # fmt: skip
LOOP_COUNTS = hidden(
    "n = Constant <value = int64 {3}> () z = Loop(n, , a) <body = b (int64 i, bool g, float[2,8] s) "
    "=> (bool g2, float[2,8] t) { g2 = Identity(g) ui = Gather <axis = 0> (u, i) h = MatMul(s, ui) t = Relu(h) }>",
    u=(3, 8, 8),
)  # fmt: skip
LOOP_WEIGHTS = hidden(
    "n = Constant <value = int64 {3}> () z, f, l = Loop(n, c, a, u, v0) <body = b (int64 i, bool g, float[2,8] s, "
    "float[8,8] uu, float[8,8] vv) => (bool g2, float[2,8] t, float[8,8] uo, float[8,8] vo) { g2 = Identity(g) "
    "h = MatMul(s, uu) r = Relu(h) q = MatMul(r, vv) t = Tanh(q) uo = Identity(uu) vj = Identity(vv) "
    "vo = Identity(vj) }>",
    u=(8, 8), v0=(8, 8),
)  # fmt: skip
LOOP_WEIGHTS_READ = hidden(
    "n = Constant <value = int64 {3}> () e, f = Loop(n, c, a, u) <body = b (int64 i, bool g, float[2,8] s, "
    "float[8,8] uu) => (bool g2, float[2,8] t, float[8,8] uu) { g2 = Identity(g) h = MatMul(s, uu) t = Relu(h) }> "
    "z = MatMul(e, f)",
    u=(8, 8),
)  # fmt: skip
LOOP_NORM = model_of(
    "(float[1,5,8] x) => (float[1,5,2] y) { a = MatMul(x, w) n = Constant <value = int64 {2}> () "
    "f, g, h, l = Loop(n, , a, s0, b0) <body = b (int64 i, bool c, float[1,5,5] t, float[5] s, float[5] b) => "
    "(bool c2, float[1,5,5] t2, float[5] s2, float[5] b2, float[1,5,5] o) { c2 = Identity(c) "
    "m = InstanceNormalization <epsilon = 0.1> (t, s, b) t2 = Elu(m) s2 = Identity(s) b2 = Identity(b) o = Neg(m) }> "
    "z = Slice(x, k0, k2, k3) q = MatMul(z, v) r = ReduceMean <axes = [0], keepdims = 0> (l) y = Add(q, q) }",
    13, w=(8, 5), v=(2, 2), s0=np.ones(5, np.float32), b0=np.zeros(5, np.float32), k0=np.array([0]), k2=np.array([2]),
    k3=np.array([2]),
)  # fmt: skip
SCAN_WEIGHTS = model_of(
    "(float[5,2,6] x) => (float[5,2,4] y) { a = MatMul(x, w) h0, f, l = Scan <num_scan_inputs = 1, "
    "body = b (float[2,8] s, float[8,8] uu, float[2,8] e) => (float[2,8] t, float[8,8] uo, float[2,8] o) { "
    "r = MatMul(s, uu) k = Add(r, e) t = Tanh(k) uo = Identity(uu) o = Identity(t) }> (k0, u, a) y = MatMul(l, v) }",
    w=(6, 8), v=(8, 4), u=(8, 8), k0=np.zeros((2, 8), np.float32),
)  # fmt: skip
IF_UNREAD = hidden("lost = " + branches("p = Relu(a)", "q = Neg(a)").removeprefix("z = ") + " z = Neg(a)")
SEQUENCE_MAP = hidden(
    "l = SequenceConstruct(a, a) m = SequenceMap(l, w) <body = b (float[2,8] e, float[6,8] ww) => (float[2,8] o) "
    "{ q = MatMul(x, ww) o = Add(q, e) }> k = Constant <value = int64 {0}> () z = SequenceAt(m, k)"
)
IF_SEQUENCE = model_of(
    "(float[2,6] x, bool c) => (float[2,4] y) { a = MatMul(x, w) s = If(c) <then_branch = t () => (seq(float[2,8]) p) "
    "{ p = SequenceConstruct(a) }, else_branch = e () => (seq(float[2,8]) q) { b = MatMul(a, u) "
    "q = SequenceConstruct(b) }> k = Constant <value = int64 {0}> () z = SequenceAt(s, k) y = MatMul(z, v) }",
    w=(6, 8), v=(8, 4), u=(8, 8),
)  # fmt: skip
LOOP_SEQUENCE = model_of(
    "(float[2,6] x, bool c) => (float[2,4] y) { a = MatMul(x, w) s = SequenceConstruct(a) "
    "n = Constant <value = int64 {3}> () r = Loop(n, c, s) <body = b (int64 i, bool g, seq(float[2,8]) si) "
    "=> (bool g2, seq(float[2,8]) so) { g2 = Identity(g) h = MatMul(a, u) so = SequenceInsert(si, h) }> "
    "k = Constant <value = int64 {0}> () z = SequenceAt(r, k) y = MatMul(z, v) }",
    w=(6, 8), v=(8, 4), u=(8, 8),
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
    "Loop while": LOOP_WHILE,
    "Loop counts": LOOP_COUNTS,
    "Scan": SCAN,
    "Scan axes": SCAN_AXES,
    "Loop weights": LOOP_WEIGHTS,
    "Loop weights read": LOOP_WEIGHTS_READ,
    "Scan weights": SCAN_WEIGHTS,
    "If unread": IF_UNREAD,
}
_ALL_STAY = {
    "If unlike": IF_UNLIKE,
    "If sequence": IF_SEQUENCE,
    "Loop grows": LOOP_GROWS,
    "Loop sequence": LOOP_SEQUENCE,
    "SequenceMap": SEQUENCE_MAP,
}
_MODELS = _ALL_LEAVE | _ALL_STAY


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


@pytest.mark.parametrize("name", _ALL_STAY)
def test_what_has_no_fixed_shape_stays(name: str) -> None:
    assert not len(map_of(_ALL_STAY[name]).free)


@pytest.mark.parametrize("name", _MODELS)
def test_half_of_the_weights_leave_exactly(name: str) -> None:
    try:
        result = onnxprune.prune(_MODELS[name], sparsity=0.5, align="none")
    except onnxprune.UnreachableError:
        assert name in _ALL_STAY
        return
    assert result.verification is not None
    assert result.verification.ok
    onnx.checker.check_model(result.model, full_check=True)


# ---- random models --------------------------------------------------------------------------------------------------


def test_random_models_with_bodies_are_exact() -> None:
    outcomes = []
    for seed in range(100):
        model = model_with_bodies(seed)
        assert restore(flatten(model)) == model
        outcomes += _exact(model, seed)
    assert sum(outcome.removed > 0 for outcome in outcomes) > 60


def _exact(model: ModelProto, seed: int) -> list[Outcome]:
    try:
        return assert_exact(model, 0.5, [seed])
    except AssertionError as error:
        if "not finite" in str(error):  # two runs of a loop may go beyond what a number can hold
            return []
        raise


def test_dead_channels_leave_random_models_with_bodies_unnoticed() -> None:
    removed = 0
    for seed in range(60):
        model = with_dead_channels(model_with_bodies(seed), seed)
        result = onnxprune.prune(model, check=False)
        fed = feeds(model, seed)
        if runs(model, fed):
            assert largest_error(outputs(model, fed), outputs(result.model, fed)) < 1e-4
            removed += bool(result.plan.cuts)
    assert removed > 20


def test_a_scan_keeps_the_axes_of_the_outputs_that_are_left() -> None:
    model = model_of(
        "(float[2,5,6] x) => (float[2,5,4] y) { a = MatMul(x, w) k, l = Scan <num_scan_inputs = 1, "
        "scan_input_axes = [1], scan_output_axes = [0, 1], scan_output_directions = [1, 0], body = b (float[2,8] e) "
        "=> (float[2,3] p, float[2,8] o) { p = MatMul(e, u) o = Relu(e) }> (a) "
        "t = Transpose <perm = [1, 0, 2]> (k) z = Concat <axis = 2> (t, l) y = MatMul(z, v) }",
        w=(6, 8), u=(8, 3), v=(11, 4),
    )  # fmt: skip
    channel_map = map_of(model)
    keep = np.ones(channel_map.groups, np.bool_)
    for ids in channel_map.axes["k"]:
        keep[[] if ids is None else ids] = False
    pruned = rewrite(channel_map, keep)
    onnx.checker.check_model(pruned, full_check=True)
    expected = outputs(masked_reference(channel_map, keep), feeds(model))
    assert largest_error(expected, outputs(pruned, feeds(model))) < 1e-6
    scan = next(node for node in pruned.graph.node if node.op_type == "Scan")
    assert [list(held.ints) for held in scan.attribute if held.ints] == [[1], [1], [0]]


@pytest.mark.parametrize("seed", range(12))
def test_states_that_never_change_keep_the_width_of_what_they_begin_as(seed: int) -> None:
    for model in (LOOP_NORM, LOOP_WEIGHTS, LOOP_WEIGHTS_READ, SCAN_WEIGHTS):
        assert restore(flatten(model)) == model
        assert_exact(model, (0.3, 0.6, 1.0)[seed % 3], [seed])


# ---- names, plans, files --------------------------------------------------------------------------------------------


def test_branches_may_use_the_same_names() -> None:
    model = hidden(branches("h = MatMul(a, u) p = Relu(h)", "h = MatMul(a, u) q = Neg(h)"))
    model = in_body(in_body(model, 0, u=(8, 8)), 1, u=(8, 8))
    flat = flatten(model)
    made = [name for node in flat.graph.node for name in node.output]
    assert len(made) == len(set(made))
    assert {tensor.name for tensor in flat.graph.initializer} == {"w", "v", "u", "u_2"}
    pruned = onnxprune.prune(model, sparsity=0.4, align="none").model
    for body in bodies_of(pruned):
        assert [tensor.name for tensor in body.initializer] == ["u"]
        assert body.node[0].output[0] == "h"


def bodies_of(model: ModelProto) -> list[GraphProto]:
    return [body for node in model.graph.node for body in subgraphs(node)]


def test_declarations_inside_bodies_follow() -> None:
    model = in_body(hidden(branches("h = MatMul(a, u) p = Relu(h)", "q = Neg(a)")), 0, u=(8, 8))
    body = bodies_of(model)[0]
    body.value_info.append(onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, [2, 8]))
    outcome = assert_exact(model, seeds=[1])[0]
    left = int(np.count_nonzero(outcome.keep[outcome.map.axes["h"][1]]))
    pruned = bodies_of(outcome.pruned)[0]
    assert 0 < left < 8
    assert [dim.dim_value for dim in pruned.value_info[0].type.tensor_type.shape.dim] == [2, left]
    assert [dim.dim_value for dim in pruned.output[0].type.tensor_type.shape.dim] == [2, left]
    assert onnx.shape_inference.infer_shapes(outcome.pruned, check_type=True, strict_mode=True)


def test_an_output_of_which_nothing_is_left_leaves_its_branches() -> None:
    model = hidden(
        "z1, z2 = If(c) <then_branch = t () => (float[2,8] p1, float[2,5] p2) { p1 = Relu(a) p2 = MatMul(a, u) }, "
        "else_branch = e () => (float[2,8] q1, float[2,5] q2) { q1 = Neg(a) q2 = MatMul(a, s) }>"
        " z = Concat <axis = 1> (z1, z2)",
        u=(8, 5), s=(8, 5), v=(13, 4),
    )  # fmt: skip
    channel_map = map_of(model)
    keep = np.ones(channel_map.groups, np.bool_)
    keep[channel_map.axes["z2"][1]] = False
    pruned = rewrite(channel_map, keep)
    onnx.checker.check_model(pruned, full_check=True)
    assert [list(node.output) for node in pruned.graph.node if node.op_type == "If"] == [["z1"]]
    assert [[value.name for value in body.output] for body in bodies_of(pruned)] == [["p1"], ["q1"]]
    assert {tensor.name for tensor in pruned.graph.initializer} == {"w", "v"}
    fed = feeds(model)
    masked = masked_reference(channel_map, keep)
    assert largest_error(outputs(masked, fed), outputs(pruned, fed)) < 1e-6


def test_a_state_that_is_left_out_is_still_carried() -> None:
    model = hidden(
        "n = Constant <value = int64 {3}> () f1, f2 = Loop(n, c, a, a) <body = b (int64 i, bool g, float[2,8] s1, "
        "float[2,8] s2) => (bool g2, float[2,8] t1, float[2,8] t2) { g2 = Identity(g) t2 = Tanh(s1) "
        "t1 = Add(s2, s1) }> z = Identity(f1)"
    )
    assert any(outcome.removed for outcome in assert_exact(model))
    next(node for node in model.graph.node if node.op_type == "Loop").output[1] = ""  # this ONNX Runtime cannot run
    assert restore(flatten(model)) == model
    assert len(map_of(model).free) == 8


def test_a_state_that_only_the_next_iteration_reads_keeps_what_makes_it() -> None:
    model = hidden(
        "n = Constant <value = int64 {3}> () f1, f2 = Loop(n, c, a, a) <body = b (int64 i, bool g, float[2,8] s1, "
        "float[2,8] s2) => (bool g2, float[2,8] t1, float[2,8] t2) { g2 = Identity(g) h = MatMul(s1, u) "
        "r = Relu(h) t2 = MatMul(r, s) t1 = Tanh(s2) }> z = Identity(f1)",
        u=(8, 5), s=(5, 8),
    )  # fmt: skip
    result = onnxprune.prune(model)
    assert not result.plan.cuts
    fed = feeds(model)
    assert largest_error(outputs(model, fed), outputs(result.model, fed)) == 0


def test_a_loop_stays_whole_where_a_final_state_loses_its_reader() -> None:
    model = hidden(
        "n = Constant <value = int64 {3}> () f1, f2 = Loop(n, c, a, a) <body = b (int64 i, bool g, float[2,8] s1, "
        "float[2,8] s2) => (bool g2, float[2,8] t1, float[2,8] t2) { g2 = Identity(g) t2 = Tanh(s1) "
        "t1 = Add(s2, s1) }> k = MatMul(f2, u) r = Relu(k) z = Concat <axis = 1> (f1, r)",
        u=(8, 5), v=(13, 4),
    )  # fmt: skip
    _without(model, "k", 1)


def test_a_scan_keeps_a_slice_that_is_only_counted() -> None:
    model = model_of(
        "(float[5,2,6] x) => (float[2,4] y) { a = MatMul(x, w) e1 = MatMul(x, k) h = Scan <num_scan_inputs = 2, "
        "body = b (float[2,8] s, float[2,8] e, float[2,3] o) => (float[2,8] t) { t = Add(s, e) }> (k0, a, e1) "
        "y = MatMul(h, v) }",
        w=(6, 8), v=(8, 4), k=(6, 3), k0=np.zeros((2, 8), np.float32),
    )  # fmt: skip
    assert any(outcome.removed for outcome in assert_exact(model))


def _without(model: ModelProto, tensor: str, axis: int) -> None:
    """Removing all channels of a tensor is exact."""
    channel_map = map_of(model)
    keep = np.ones(channel_map.groups, np.bool_)
    keep[channel_map.axes[tensor][axis]] = False
    pruned = rewrite(channel_map, keep)
    onnx.checker.check_model(pruned, full_check=True)
    fed = feeds(model)
    assert largest_error(outputs(masked_reference(channel_map, keep), fed), outputs(pruned, fed)) < 1e-6


def test_weights_that_an_if_chooses_are_no_constants() -> None:
    model = model_of(
        "(float[2,6] x, bool c) => (float[2,4] y) { k = If(c) <then_branch = t () => (float[6,8] p) { p = Neg(w) }, "
        "else_branch = e () => (float[6,8] q) { q = Relu(w) }> a = MatMul(x, k) y = MatMul(a, v) }",
        w=(6, 8), v=(8, 4),
    )  # fmt: skip
    onnxprune.prune(model)
    assert_exact(model)


def test_a_state_that_grows_has_no_shape() -> None:
    shapes = map_of(LOOP_GROWS).shapes.of
    assert "a" in shapes
    assert not shapes.keys() & {"s", "t", "z"}


def test_many_small_bodies_take_seconds_not_minutes() -> None:
    chain = " ".join(
        f"z{i + 1} = If(c) <then_branch = t () => (float[2,8] p) {{ p = Relu(z{i}) }}, "
        f"else_branch = e () => (float[2,8] q) {{ q = Neg(z{i}) }}>"
        for i in range(800)
    )
    model = hidden(f"z0 = Identity(a) {chain} z = Identity(z800)")
    begin = time.process_time()
    assert restore(flatten(model)) == model
    assert len(map_of(model).free) == 8
    assert time.process_time() - begin < 20


def test_a_plan_made_once_does_the_same_again() -> None:
    result = onnxprune.prune(IF_NESTED, sparsity=0.5, align="none")
    plan = onnxprune.Plan.from_json(result.plan.to_json())
    assert onnxprune.prune(IF_NESTED, plan=plan).model == result.model


def test_external_data_inside_a_body_is_pruned_and_saved(tmp_path: Path) -> None:
    model = in_body(hidden(branches("h = MatMul(a, u) p = MatMul(h, s)", "q = Neg(a)")), 0, u=(8, 300), s=(300, 8))
    onnx.save(model, tmp_path / "all.onnx")
    for tensor in bodies_of(model)[0].initializer:
        onnx.external_data_helper.set_external_data(tensor, f"{tensor.name}.bin")
        (tmp_path / f"{tensor.name}.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    result = onnxprune.prune(tmp_path / "model.onnx", sparsity=0.5, check=False)
    result.save(tmp_path / "pruned.onnx")
    other = onnxprune.prune(tmp_path / "all.onnx", sparsity=0.5, check=False)
    saved = onnx.load(tmp_path / "pruned.onnx")
    fed = feeds(other.model, 0)
    assert largest_error(outputs(other.model, fed), outputs(saved, fed)) == 0


def test_the_census_says_what_freezes_weights_in_bodies() -> None:
    found = onnxprune.inspect(in_body(hidden(branches("p = MatMul(a, u)", "q = Neg(a)")), 0, u=(8, 8))).census
    assert found.free == found.total == 6 * 8 + 8 * 8 + 8 * 4
    stuck = onnxprune.inspect(LOOP_GROWS).census
    assert {cause.operator for cause in stuck.frozen} == {"Loop", "MatMul"}
    assert any("no fixed shape" in cause.reason for cause in stuck.frozen)


# ---- what a stranger may send ---------------------------------------------------------------------------------------


def nested(levels: int) -> ModelProto:
    """If in If in If …"""
    inner = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["a"], ["r0"])], "b", [], [_value("r0")])
    for level in range(1, levels + 1):
        node = onnx.helper.make_node("If", ["c"], [f"r{level}"])
        for name in ("then_branch", "else_branch"):
            node.attribute.add(name=name, type=onnx.AttributeProto.GRAPH).g.CopyFrom(inner)
            if name == "then_branch":
                inner = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["a"], [f"e{level}"])], "b", [],
                                               [_value(f"e{level}")])  # fmt: skip
        inner = onnx.helper.make_graph([node], "b", [], [_value(f"r{level}")])
    model = hidden(branches("p = Relu(a)", "q = Neg(a)"))
    place = next(i for i, node in enumerate(model.graph.node) if node.op_type == "If")
    model.graph.node[place].CopyFrom(inner.node[0])
    model.graph.node[place].output[0] = "z"
    return model


def _value(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 8])


def test_bodies_as_deep_as_protobuf_reads_them() -> None:
    model = nested(24)
    assert restore(flatten(model)) == model
    assert any(outcome.removed for outcome in assert_exact(model, seeds=[0, 1]))


def test_a_body_with_many_nodes_takes_seconds_not_minutes() -> None:
    chain = " ".join(f"r{i + 1} = Relu(r{i})" for i in range(10_000))
    model = hidden(branches(f"r0 = Neg(a) {chain} p = Neg(r10000)", "q = Neg(a)"))
    begin = time.process_time()
    assert restore(flatten(model)) == model
    assert len(map_of(model).free) == 8
    assert time.process_time() - begin < 20


@pytest.mark.parametrize("source", [IF_CAPTURES, LOOP_STATE, SCAN], ids=["If", "Loop", "Scan"])
@pytest.mark.parametrize(
    "broken",
    [
        lambda node, body: node.attribute.pop(),
        lambda node, body: body.output.pop(),
        lambda node, body: node.output.append("more"),
        lambda node, body: body.output.add(name="nowhere"),
        lambda node, body: body.input.add(name="more"),
        lambda node, body: node.input.pop(),
    ],
    ids=["no body", "an output less", "an output more", "a result more", "an input more", "an input less"],
)
def test_a_node_that_its_bodies_do_not_fit_is_left_alone(
    source: ModelProto, broken: Callable[[NodeProto, GraphProto], object]
) -> None:
    model = ModelProto()
    model.CopyFrom(source)
    node = next(node for node in model.graph.node if node.op_type in ("If", "Loop", "Scan"))
    node.attribute.sort(key=lambda held: held.type)  # the bodies last
    broken(node, next(iter(subgraphs(node))))
    assert flatten(model) is model
    channel_map = map_of(model)
    read = {*node.input, *channel_map.graph.captured}
    assert all(channel_map.frozen[ids].all() for ids in channel_map.axes["a"] if ids is not None) or "a" not in read


# ---- a real one -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "samples"), [(16000, 576), (8000, 288)])
def test_both_branches_of_a_voice_detector(real_models: Path, rate: int, samples: int) -> None:
    """Nearly all its weights lie in the two branches of an If, one for each sampling rate."""
    path = real_models / "silero_vad_v6.onnx"
    result = onnxprune.prune(path, sparsity=0.5)
    assert stored_weights(result.model) <= 0.5 * stored_weights(path)
    rng = np.random.default_rng(0)
    fed = {
        "input": rng.standard_normal((1, samples)).astype(np.float32),
        "state": rng.standard_normal((2, 1, 128)).astype(np.float32),
        "sr": np.array(rate),
    }
    assert largest_error(outputs(result.masked, fed), outputs(result.model, fed)) < 1e-5


# ---- conditions on sizes --------------------------------------------------------------------------------------------

_SQUEEZE = (
    "h = {made} k = Shape(h) n = Constant <value = int64[1] {{{axis}}}> () d = Gather <axis = 0> (k, n) "
    "one = Constant <value = int64[1] {{1}}> () e0 = Equal(d, one) e = Squeeze(e0) z = If(e) "
    "<then_branch = t () => (float[M,8] p) {{ p = Squeeze(h, n) }}, else_branch = f () => (float[A,B,C] q) "
    "{{ q = Identity(h) }}> y = MatMul(z, v) }}"
)


def test_a_condition_on_a_size_that_never_changes_is_settled() -> None:
    """What a scripted squeeze is exported as."""
    text = "(float[2,L,6] x) => (float[2,4] y) { a = MatMul(x, w) r = Relu(a) m = Constant <value = int64[1] {1}> () "
    made = _SQUEEZE.format(made="ReduceMean <axes = [1], keepdims = 1> (r)", axis=1)
    model = model_of(text + made, w=(6, 8), v=(8, 4))
    assert len(map_of(model).free) == 8
    assert_exact(model, sizes={"x": [2, 7, 6]})


@pytest.mark.parametrize("length", [1, 7])
def test_a_condition_on_a_size_that_may_change_is_not(length: int) -> None:
    text = "(float[2,L,6] x) => (float[A,B,4] y) { a = MatMul(x, w) "
    model = model_of(text + _SQUEEZE.format(made="Relu(a)", axis=1), w=(6, 8), v=(8, 4))
    assert not len(map_of(model).free)
    assert_exact(model, sizes={"x": [2, length, 6]})
