"""What the rewriter leaves as it is, and what it adds."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from cases import floats, ints
from exactness import assert_exact, model_of, random_keep
from onnx import ModelProto, helper

from onnxprune.graph import Graph
from onnxprune.ops import build_map
from onnxprune.passes.rewrite import rewrite

HALVES = """(float[N,3,6,6] x) => (float[A,B,C,D] y)
{ a = Conv(x, w, b)
  s = Reshape(a, t)
  r = Relu(s)
  z = Reshape(r, u)
  unread = Neg(x)
  y = Conv(z, v) }"""
WEIGHTS: dict[str, Any] = {"w": (8, 3, 1, 1), "b": 8, "v": (4, 8, 1, 1), "t": ints(0, 8, 36), "u": ints(0, 8, 6, 6)}


def pruned(model: ModelProto) -> ModelProto:
    channel_map = build_map(Graph(model))
    return rewrite(channel_map, random_keep(channel_map, 0.5, np.random.default_rng(0)))


def test_a_model_that_keeps_everything_is_the_same_file() -> None:
    model = model_of(HALVES, **WEIGHTS)
    channel_map = build_map(Graph(model))
    assert rewrite(channel_map, np.ones(channel_map.groups, np.bool_)).SerializeToString() == model.SerializeToString()


def test_the_same_choice_makes_the_same_file() -> None:
    model = model_of(HALVES, **WEIGHTS)
    assert pruned(model).SerializeToString(deterministic=True) == pruned(model).SerializeToString(deterministic=True)


def test_nodes_names_and_notes_stay() -> None:
    model = model_of(HALVES, **WEIGHTS)
    model.doc_string = "notes"
    model.metadata_props.add(key="author", value="someone")
    model.graph.initializer[0].doc_string = "a weight"
    model.graph.node[2].doc_string = "an activation"
    after = pruned(model)
    assert [(n.op_type, list(n.output), n.doc_string) for n in after.graph.node] == [
        (n.op_type, list(n.output), n.doc_string) for n in model.graph.node
    ]
    assert [t.name for t in after.graph.initializer] == [t.name for t in model.graph.initializer]
    assert after.graph.initializer[0].doc_string == "a weight"
    assert (after.doc_string, list(after.metadata_props)) == (model.doc_string, list(model.metadata_props))


def test_a_constant_that_others_read_too_is_not_changed() -> None:
    text = HALVES.replace("unread = Neg(x)", "q = Reshape(x2, t)").replace("] x)", "] x, float[N,8,36] x2)")
    model = model_of(text, **WEIGHTS)
    after = pruned(model)
    targets = [n.input[1] for n in after.graph.node if n.op_type == "Reshape"]
    assert targets.count("t") == 1
    assert len(set(targets)) == 3
    assert_exact(model)


def test_declared_shapes_follow() -> None:
    model = model_of(HALVES, **WEIGHTS)
    model.graph.value_info.append(helper.make_tensor_value_info("a", 1, ["N", 8, 6, 6]))
    model.graph.value_info.append(helper.make_tensor_value_info("s", 1, ["N", "C", 36]))
    after = pruned(model)
    held = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in after.graph.value_info}
    width = next(t.dims[0] for t in after.graph.initializer if t.name == "w")
    assert width < 8
    assert held == {"a": ["N", width, 6, 6], "s": ["N", "C", 36]}


def test_constants_are_listed_among_the_inputs_before_ir_4() -> None:
    text = """(float[2,3,6,6] x) => (float[A,B,C,D] y)
    { a = Conv(x, w)
      g = Gather<axis=1>(a, i)
      h = Gather<axis=0>(g, i)
      y = Conv(h, v) }"""
    model = model_of(text, 9, 3, w=(8, 3, 1, 1), v=(4, 2, 1, 1), i=ints(0, 1))
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for outcome in assert_exact(model, 0.9):
        listed = {value.name for value in outcome.pruned.graph.input}
        assert {tensor.name for tensor in outcome.pruned.graph.initializer} <= listed


def test_what_a_body_captures_keeps_its_shape() -> None:
    text = """(float[2,3,6,6] x, bool c) => (float[A,B,C,D] y, float[E,F,G,H] i)
    { a = Conv(x, w)
      b = Conv(a, k)
      i = If (c) <then_branch = g1 () => (float[E,F,G,H] t) { t = Neg(a) },
                  else_branch = g2 () => (float[E,F,G,H] e) { e = Mul(a, s) }>
      y = Conv(b, v) }"""
    model = model_of(text, w=(8, 3, 1, 1), k=(7, 8, 1, 1), s=(8, 1, 1), v=(4, 7, 1, 1))
    channel_map = build_map(Graph(model))
    assert len(channel_map.free) == 7
    assert any("body" in found.reason for found in channel_map.reasons.values())
    assert_exact(model)


def test_an_operator_that_is_not_understood_keeps_its_channels() -> None:
    text = """(float[2,6] x) => (float[A,B] y)
    { a = Gemm(x, w)
      u = NonZero(a)
      f = Cast<to=1>(u)
      y = Gemm<transA=1>(f, v) }"""
    channel_map = build_map(Graph(model_of(text, w=(6, 8), v=(2, 4))))
    assert not len(channel_map.free)
    assert any(found.operator == "NonZero" for found in channel_map.reasons.values())


def test_a_shape_is_told_of_what_remains_and_the_old_sizes_reach_who_asks() -> None:
    text = """(float[2,3,6,6] x) => (float[A,B,C,D] y, int64[4] n)
    { a = Conv(x, w)
      n = Shape(a)
      y = Conv(a, v) }"""
    assert_exact(model_of(text, w=(8, 3, 1, 1), v=(4, 8, 1, 1)), 0.9)


def test_nothing_may_be_left_of_what_is_only_asked_for_its_shape() -> None:
    text = """(float[N,3,6,6] x) => (float[A,B,C,D] y)
    { a = Conv(x, w)
      n = Shape(a)
      f = Cast<to=1>(n)
      s = ReduceSum(f)
      b = Conv(x, k)
      c = Div(b, s)
      y = Conv(c, v) }"""
    for outcome in assert_exact(model_of(text, w=(8, 3, 1, 1), k=(8, 3, 1, 1), v=(4, 8, 1, 1)), 1.0):
        assert outcome.removed == 14


def test_a_tensor_without_elements_is_not_taken_for_an_emptied_one() -> None:
    text = """(float[2,6] x) => (float[A,B] y)
    { a = Gemm(x, w)
      e = Slice(a, s, s, d)
      c = Concat<axis=1>(e, a)
      y = Gemm(c, v) }"""
    model = model_of(text, w=(6, 8), v=(8, 4), s=ints(3), d=ints(1))
    assert any(outcome.removed for outcome in assert_exact(model))


def test_a_part_without_elements_stays_a_part() -> None:
    text = """(float[2,6] x) => (float[A,B] y)
    { a = Gemm(x, w)
      p, e, q = Split<axis=1>(a, n)
      c = Concat<axis=1>(q, e, p)
      y = Gemm(c, v) }"""
    model = model_of(text, w=(6, 8), v=(8, 4), n=ints(2, 0, 6))
    assert any(outcome.removed for outcome in assert_exact(model, 0.8))


def test_an_emptied_branch_goes_with_all_its_nodes() -> None:
    text = """(float[2,6] x) => (float[A,B] y)
    { a = Gemm(x, w)
      b = Relu(a)
      d = Gemm(x, k)
      c = Concat<axis=1>(b, d)
      y = Gemm(c, v) }"""
    model = model_of(text, w=(6, 2), k=(6, 8), v=(10, 4), s=floats(1))
    channel_map = build_map(Graph(model))
    keep = np.ones(channel_map.groups, np.bool_)
    keep[channel_map.axes["a"][1]] = False
    after = rewrite(channel_map, keep)
    onnx.checker.check_model(after, full_check=True)
    assert [node.op_type for node in after.graph.node] == ["Gemm", "Concat", "Gemm"]
    assert "w" not in {tensor.name for tensor in after.graph.initializer}
