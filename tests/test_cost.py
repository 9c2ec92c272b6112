"""What a selection costs is what the rewritten file holds."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
import pytest
from exactness import model_of, random_keep
from onnx import ModelProto, numpy_helper, shape_inference
from random_models import random_model
from witness import stored_weights

from onnxprune.graph import Graph
from onnxprune.measure import count_weights
from onnxprune.ops import build_map
from onnxprune.passes.cost import cost_of
from onnxprune.passes.rewrite import rewrite

NET = """(float[2,3,8,8] x) => (float[A,B] y)
{ a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)
  d = Conv<group=8>(r, w2)
  e = Conv<group=2, strides=[2,2]>(d, w3)
  u = ConvTranspose<strides=[2,2]>(e, w4)
  f = Flatten(u)
  g = Gemm<transB=1>(f, w5, b5)
  y = MatMul(g, w6) }"""


def net() -> ModelProto:
    return model_of(
        NET, w1=(8, 3, 3, 3), b1=8, w2=(8, 1, 3, 3), w3=(8, 4, 1, 1), w4=(8, 4, 2, 2), w5=(10, 144), b5=10, w6=(10, 5)
    )


def macs_and_slices(model: ModelProto) -> tuple[int, int]:
    """Counted layer by layer from the shapes of a file with contractions of stored weights only."""
    held = {tensor.name: numpy_helper.to_array(tensor).shape for tensor in model.graph.initializer}
    graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.value_info, *graph.output)
    }
    macs = slices = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            w = held[node.input[1]]
            over = shapes[node.output[0] if node.op_type == "Conv" else node.input[0]]
            macs += prod(w) * over[0] * prod(over[2:])
            slices += w[0] * w[1]
        elif node.op_type in ("Gemm", "MatMul"):
            macs += prod(held[node.input[1]]) * shapes[node.input[0]][0]
            slices += prod(held[node.input[1]])
    return macs, slices


@pytest.mark.parametrize("seed", range(6))
def test_weights_are_those_of_the_written_model(seed: int) -> None:
    channel_map = build_map(Graph(net()))
    keep = random_keep(channel_map, 0.5, np.random.default_rng(seed))
    assert cost_of(channel_map, "weights")(keep) == stored_weights(rewrite(channel_map, keep))


@pytest.mark.parametrize("seed", range(6))
def test_macs_and_kernel_slices_are_those_of_the_written_model(seed: int) -> None:
    channel_map = build_map(Graph(net()))
    keep = random_keep(channel_map, 0.5, np.random.default_rng(seed))
    assert not np.all(keep)
    macs, slices = macs_and_slices(rewrite(channel_map, keep))
    assert cost_of(channel_map, "macs")(keep) == macs
    assert cost_of(channel_map, "kernels")(keep) == slices


def test_random_models_hold_no_more_than_the_cost_says() -> None:
    """They may hold less: what only nodes read that lost all their channels goes with these."""
    equal = 0
    for seed in range(300):
        channel_map = build_map(Graph(random_model(seed)))
        keep = random_keep(channel_map, 0.5, np.random.default_rng(seed))
        cost, held = cost_of(channel_map, "weights")(keep), stored_weights(rewrite(channel_map, keep))
        assert held <= cost, f"seed {seed}"
        equal += held == cost
    assert equal > 270


def test_keeping_everything_costs_the_model() -> None:
    model = net()
    channel_map = build_map(Graph(model))
    assert cost_of(channel_map, "weights")(np.ones(channel_map.groups, np.bool_)) == stored_weights(model)


def test_costs_fall_with_every_group_that_leaves() -> None:
    channel_map = build_map(Graph(net()))
    keep = np.ones(channel_map.groups, np.bool_)
    for measure in ("weights", "macs", "kernels"):
        cost = cost_of(channel_map, measure)
        for group in channel_map.free:
            less = keep.copy()
            less[group] = False
            assert cost(less) < cost(keep)


# ---- what counts as a weight ----------------------------------------------------------------------------------------


def counted(body: str, **weights: Any) -> int:
    model = model_of(f"(float[2,4] x, bool t) => (float[A,B] y) {{ {body} }}", **weights)
    assert count_weights(model) == stored_weights(model)
    return count_weights(model)


def test_biases_and_indices_are_no_weights() -> None:
    biases = {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32), "i": np.ones((5, 5), np.int64)}
    assert counted("y = Gemm(x, w, b)", **biases) == 12


def test_constant_nodes_count() -> None:
    assert counted("w = Constant<value=float[4,2] {1,2,3,4,5,6,7,8}>() y = MatMul(x, w)") == 8


def test_quantised_weights_count() -> None:
    quantised = {"q": np.ones((4, 3), np.int8), "s": np.array(1, np.float32)}
    assert counted("w = DequantizeLinear(q, s) y = MatMul(x, w)", **quantised) == 12


def test_half_precision_counts() -> None:
    assert counted("w = Cast<to=1>(h) y = MatMul(x, w)", h=np.ones((4, 3), np.float16)) == 12


def test_bodies_count() -> None:
    branch = "g{} () => (float[2,4] u) {{ w = Constant<value=float[2,4] {{1,2,3,4,5,6,7,8}}>() u = Add(x, w) }}"
    body = f"y = If(t) <then_branch = {branch.format(1)}, else_branch = {branch.format(2)}>"
    assert counted(body) == 16


def test_sparse_tensors_count_what_they_stand_for() -> None:
    model = net()
    values = numpy_helper.from_array(np.ones(2, np.float32), "sparse")
    indices = numpy_helper.from_array(np.array([0, 3]), "indices")
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [3, 5]))
    assert count_weights(model) == count_weights(net()) + 15
