"""The channel graph against edges derived by hand, and reachability against its plain definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from exactness import model_of, random_feeds, run_model
from random_models import random_model

from onnxprune.bodies import laid_out, restore
from onnxprune.graph import Graph
from onnxprune.ops import build_map
from onnxprune.passes.channel_edges import channel_graph
from onnxprune.passes.channel_graph import ChannelGraph, accessible, coaccessible, consistent_edges
from onnxprune.passes.kernel_slices import cut_kernels, kernels_of

IMAGE = "(float[1,2,8,8] x) => (float[A,B,C,D] y)"


def graph_of(text: str, opset: int = 17, /, **weights: Any) -> ChannelGraph:
    return channel_graph(build_map(Graph(model_of(text, opset, **weights))))


def edges(graph: ChannelGraph) -> set[str]:
    """``a0>b1`` for every edge, links and slices alike; ``a*`` is all of a tensor."""
    pairs = list(zip(graph.link_source, graph.link_target, strict=True))
    for block in graph.blocks:
        for out, target in enumerate(block.targets):
            pairs += [(source, target) for source in block.sources[out // (len(block.targets) // block.groups)]]
    return {f"{_name(graph, int(a))}>{_name(graph, int(b))}" for a, b in pairs}


def _name(graph: ChannelGraph, vertex: int) -> str:
    tensor, index = graph.name(vertex)
    return f"{tensor}{'*' if index is None else index}"


def dense(sources: str, targets: str) -> set[str]:
    return {f"{a}>{b}" for a in sources.split() for b in targets.split()}


def same(a: str, b: str, count: int) -> set[str]:
    return {f"{a}{i}>{b}{i}" for i in range(count)}


def test_a_strided_residual_block_joins_both_ways_to_the_sum() -> None:
    graph = graph_of(
        f"{IMAGE} {{ a = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w1) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, w2) "
        "d = Conv<strides=[2,2]>(x, w3) e = Add(c, d) y = Relu(e) }",
        w1=(2, 2, 3, 3), w2=(3, 2, 3, 3), w3=(3, 2, 1, 1),
    )  # fmt: skip
    assert edges(graph) == (
        dense("x0 x1", "a0 a1") | same("a", "b", 2) | dense("b0 b1", "c0 c1 c2") | dense("x0 x1", "d0 d1 d2")
        | same("c", "e", 3) | same("d", "e", 3) | same("e", "y", 3)
    )  # fmt: skip


def test_a_transposed_convolution_beside_a_skip_lands_at_its_offset() -> None:
    graph = graph_of(
        f"{IMAGE} {{ a = Conv(x, w1) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) b = Conv(p, w2) "
        "u = ConvTranspose<strides=[2,2]>(b, w3) c = Concat<axis=1>(u, a) y = Conv(c, w4) }",
        w1=(2, 2, 1, 1), w2=(3, 2, 1, 1), w3=(3, 1, 2, 2), w4=(1, 3, 1, 1),
    )  # fmt: skip
    assert edges(graph) == (
        dense("x0 x1", "a0 a1") | same("a", "p", 2) | dense("p0 p1", "b0 b1 b2") | dense("b0 b1 b2", "u0")
        | {"u0>c0", "a0>c1", "a1>c2"} | dense("c0 c1 c2", "y0")
    )  # fmt: skip


def test_a_grouped_convolution_joins_within_its_groups() -> None:
    graph = graph_of(f"{IMAGE} {{ a = Conv(x, w1) y = Conv<group=2>(a, w2) }}", w1=(4, 2, 1, 1), w2=(6, 2, 3, 3))
    assert edges(graph) == dense("x0 x1", "a0 a1 a2 a3") | dense("a0 a1", "y0 y1 y2") | dense("a2 a3", "y3 y4 y5")


def test_a_grouped_convolution_of_a_model_input() -> None:
    graph = graph_of(f"{IMAGE} {{ y = Conv<group=2>(x, w) }}", w=(4, 1, 3, 3))
    assert edges(graph) == {"x0>y0", "x0>y1", "x1>y2", "x1>y3"}


def test_a_grouped_transposed_convolution_joins_within_its_groups() -> None:
    graph = graph_of(
        f"{IMAGE} {{ a = Conv(x, w1) y = ConvTranspose<group=2>(a, w2) }}", w1=(4, 2, 1, 1), w2=(4, 3, 2, 2)
    )
    assert edges(graph) == dense("x0 x1", "a0 a1 a2 a3") | dense("a0 a1", "y0 y1 y2") | dense("a2 a3", "y3 y4 y5")


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_no_path_goes_around_the_slices_of_a_grouped_convolution(operator: str) -> None:
    """Whole groups leave together, and still are as many channels; the zero slice of a depthwise one ends paths."""
    graph = graph_of(f"{IMAGE} {{ a = Conv(x, w1) y = {operator}<group=4>(a, w2) }}", w1=(4, 2, 1, 1), w2=(4, 1, 3, 3))
    assert not len(graph.link_source)
    kept = np.ones((4, 1), np.bool_)
    kept[2] = False
    assert accessible(graph, {1: kept})[graph.outputs].tolist() == [True, True, False, True]


def test_depthwise_kernels_are_slices_and_the_normalisation_behind_is_their_gain() -> None:
    gamma, variance = np.array([2.0, -3.0], np.float32), np.array([0.25, 4.0], np.float32)
    graph = graph_of(
        f"{IMAGE} {{ a = Conv<group=2>(x, w) b = BatchNormalization<epsilon=0.0>(a, g, s, m, v) y = Relu(b) }}",
        w=(2, 1, 3, 3), g=gamma, s=2, m=2, v=variance,
    )  # fmt: skip
    assert edges(graph) == same("x", "a", 2) | same("a", "b", 2) | same("b", "y", 2)
    np.testing.assert_allclose(graph.blocks[0].gain, np.log([4.0, 1.5]))
    assert not graph.link_gain.any()


def test_a_gain_that_not_all_readers_see_stays_on_its_link() -> None:
    graph = graph_of(
        f"{IMAGE} {{ a = Conv(x, w) b = Mul(a, s) y = Add(a, b) }}",
        w=(2, 2, 1, 1), s=np.array([[[[3.0]], [[5.0]]]], np.float32),
    )  # fmt: skip
    assert not graph.blocks[0].gain.any()
    held = {_name(graph, int(v)): g for v, g in zip(graph.link_target, graph.link_gain, strict=True) if g}
    assert held == {"b0": pytest.approx(np.log(3)), "b1": pytest.approx(np.log(5))}


def test_a_quotient_by_a_constant_gains_its_inverse() -> None:
    graph = graph_of(f"{IMAGE} {{ a = Conv(x, w) y = Div(a, s) }}", w=(2, 2, 1, 1), s=np.array(4.0, np.float32))
    np.testing.assert_allclose(graph.blocks[0].gain, -np.log([4.0, 4.0]))


def test_split_and_shuffle_move_channels() -> None:
    graph = graph_of(
        f"{IMAGE} {{ a = Conv(x, w) r = Reshape(a, r1) t = Transpose<perm=[0,2,1,3,4]>(r) b = Reshape(t, r2) "
        "p, q = Split<axis=1>(b) y = Concat<axis=1>(q, p) }",
        w=(4, 2, 1, 1), r1=np.array([1, 2, 2, 8, 8]), r2=np.array([1, 4, 8, 8]),
    )  # fmt: skip
    assert edges(graph) - dense("x0 x1", "a0 a1 a2 a3") == (
        {"a0>b0", "a2>b1", "a1>b2", "a3>b3"} | {"b0>p0", "b1>p1", "b2>q0", "b3>q1"}
        | {"q0>y0", "q1>y1", "p0>y2", "p1>y3"}
    )  # fmt: skip


def test_flatten_spreads_a_channel_over_its_positions() -> None:
    graph = graph_of("(float[1,2,1,2] x) => (float[A,B] y) { f = Flatten(x) y = Gemm<transB=1>(f, w) }", w=(1, 4))
    assert edges(graph) == {"x0>f0", "x0>f1", "x1>f2", "x1>f3"} | dense("f0 f1 f2 f3", "y0")


def test_a_channel_last_image_is_read_along_its_last_axis() -> None:
    graph = graph_of(
        "(float[1,4,4,3] x) => (float[A,B,C,D] y) { t = Transpose<perm=[0,3,1,2]>(x) y = Conv(t, w) }", w=(2, 3, 1, 1)
    )
    assert edges(graph) == same("x", "t", 3) | dense("t0 t1 t2", "y0 y1")


def test_what_mixes_channels_joins_all_to_all_through_one_vertex() -> None:
    graph = graph_of(
        f"{IMAGE} {{ a = Conv(x, w1) b = Softmax<axis=1>(a) y = Conv(b, w2) }}",
        w1=(3, 2, 1, 1), w2=(2, 3, 1, 1),
    )  # fmt: skip
    assert len(graph.vertices_of("b")) == 1
    assert {"a0>b*", "a1>b*", "a2>b*", "b*>y0", "b*>y1"} <= edges(graph)


def test_a_product_of_activations_depends_on_all_of_both() -> None:
    graph = graph_of(
        "(float[1,4,6] x) => (float[A,B,C] y) { q = MatMul(x, w1) k = MatMul(x, w2) t = Transpose<perm=[0,2,1]>(k) "
        "s = MatMul(q, t) y = MatMul(s, w3) }",
        w1=(6, 3), w2=(6, 3), w3=(4, 2),
    )  # fmt: skip
    ahead, behind = accessible(graph, {}), coaccessible(graph, {})
    assert ahead.all()
    assert behind.all()
    first = next(block for block in graph.blocks if _name(graph, int(block.targets[0])) == "q0")
    dead = accessible(graph, {first.node: np.zeros(first.shape, np.bool_)})
    assert not dead[graph.vertices_of("q")].any()
    assert dead[graph.vertices_of("s")].all()  # through k


def test_units_of_a_recurrent_layer_are_joined_to_its_inputs() -> None:
    graph = graph_of(
        "(float[5,1,3] x) => (float[A,B,C,D] y) { y, h = GRU<hidden_size=2>(x, w, r) }",
        w=(1, 6, 3), r=(1, 6, 2),
    )  # fmt: skip
    (block,) = graph.blocks
    assert block.shape == (2, 3)
    assert accessible(graph, {}).all()
    assert not accessible(graph, {block.node: np.zeros((2, 3), np.bool_)})[graph.outputs].any()


def test_edges_off_every_path_from_input_to_output_are_dropped() -> None:
    graph = graph_of(f"{IMAGE} {{ a = Conv(x, w1) y = Conv(a, w2) }}", w1=(3, 2, 1, 1), w2=(1, 3, 1, 1))
    first, second = graph.blocks
    mask = {first.node: np.array([[1, 0], [0, 0], [1, 1]], bool), second.node: np.array([[1, 1, 0]], bool)}
    kept = consistent_edges(graph, mask)
    assert kept[first.node].tolist() == [[True, False], [False, False], [False, False]]
    assert kept[second.node].tolist() == [[True, False, False]]


def test_edges_lead_from_lower_to_higher_numbers_in_real_models(models: Any) -> None:
    for path in sorted(models.glob("*.onnx")):
        graph = channel_graph(build_map(Graph(onnx.load(path))))
        assert np.all(graph.link_source < graph.link_target)
        assert all(block.sources.max() < block.targets.min() for block in graph.blocks)
        assert accessible(graph, {}).all()


def test_a_normalisation_mixes_though_its_paths_keep_apart() -> None:
    graph = graph_of(
        "(float[1,4,3] x) => (float[A,B,C] y) { a = MatMul(x, w1) b = LayerNormalization(a, g, s) y = MatMul(b, w2) }",
        w1=(3, 2), w2=(2, 1), g=2, s=2,
    )  # fmt: skip
    first, last = graph.blocks
    mask = {first.node: np.array([[1, 1, 1], [0, 0, 0]], bool), last.node: np.array([[0, 1]], bool)}
    b = graph.vertices_of("b")[:2]
    assert accessible(graph, mask)[b].tolist() == [True, False]
    assert accessible(graph, mask, mixing=True)[b].all()
    a = first.targets
    assert coaccessible(graph, mask)[a].tolist() == [False, True]
    assert coaccessible(graph, mask, mixing=True)[a].all()


@pytest.mark.parametrize("part", range(4))
def test_what_is_out_of_reach_has_no_influence(part: int) -> None:
    """Random models of all understood operators, with random kernel slices cut: cutting those that end in channels
    that are not co-accessible changes no output, and outputs that are not accessible do not change with the inputs."""
    cut, constant = 0, 0
    for seed in range(20 * part, 20 * part + 20):
        model = random_model(seed)
        if laid_out(model) is not model or model.functions:
            continue  # bodies and functions laid out are for the analysis, not to be run
        channel_map = build_map(Graph(model))
        kernels, graph = kernels_of(channel_map), channel_graph(channel_map)
        rng = np.random.default_rng(seed)
        share = rng.choice([0.15, 0.4, 0.7])
        mask = kernels.mask({held.node: rng.random(kernels.nonzero[held.node].shape) < share for held in kernels.free})
        feeds, others = random_feeds(model, rng), random_feeds(model, rng)
        results = run_model(restore(cut_kernels(kernels, mask).graph.model), feeds)
        behind = coaccessible(graph, mask, mixing=True)
        read = {block.node: mask[block.node] & behind[block.targets][:, None] for block in graph.blocks}
        fewer = kernels.mask({
            held.node: np.logical_or.reduce([read.get(node, mask[node]) for node in held.nodes])
            for held in kernels.free
        })  # fmt: skip
        cut += kernels.count(fewer) < kernels.count(mask)
        ahead = accessible(graph, mask, mixing=True)
        without = run_model(restore(cut_kernels(kernels, fewer).graph.model), feeds)
        moved = run_model(restore(cut_kernels(kernels, mask).graph.model), others)
        for value, before, after, other in zip(model.graph.output, results, without, moved, strict=True):
            if before.dtype.kind != "f" or not np.isfinite(before).all():
                continue
            allowed = 1e-4 * max(1.0, float(np.abs(before).max(initial=0)))
            change = before.astype(np.float64) - after.astype(np.float64)
            assert np.abs(change).max(initial=0) <= allowed, f"seed {seed}: '{value.name}' was read"
            for span in graph.spans:
                if span.tensor == value.name and span.axis is not None:
                    dead = np.flatnonzero(~ahead[span.vertices])
                    constant += len(dead)
                    here, there = (np.take(held, dead, span.axis).astype(np.float64) for held in (before, other))
                    assert np.abs(here - there).max(initial=0) <= allowed, f"seed {seed}: '{value.name}' is reached"
    assert cut
    assert constant
