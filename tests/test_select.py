"""Selection: within the budget, topologically consistent, the best first, on good widths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exactness import model_of
from numpy.typing import NDArray
from onnx import numpy_helper
from random_models import random_model

from onnxprune.alignment import Alignment
from onnxprune.channels import ChannelMap
from onnxprune.graph import Graph
from onnxprune.ops import build_map
from onnxprune.passes.cost import MEASURES, Measure, cost_of
from onnxprune.passes.families import families
from onnxprune.passes.flow import flow
from onnxprune.passes.fold import nonzero_slices, signal_blocks
from onnxprune.passes.scores import METHODS
from onnxprune.passes.select import Selection, consistent, reachable, select

NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "residual": (
        """(float[1,3,8,8] x) => (float[A,B] y)
        { a = Conv(x, w1, b1) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, w2) d = Add(b, c) e = Relu(d)
          g = GlobalAveragePool(e) f = Flatten(g) y = Gemm(f, w3, b3) }""",
        {"w1": (24, 3, 3, 3), "b1": 24, "w2": (24, 24, 3, 3), "w3": (24, 5), "b3": 5},
    ),
    "dense": (
        """(float[1,3,8,8] x) => (float[A,B,C,D] y)
        { a = Conv(x, w1) b = Conv(a, w2) c = Concat<axis=1>(a, b) d = Conv(c, w3) e = Concat<axis=1>(c, d)
          y = Conv(e, w4) }""",
        {"w1": (12, 3, 1, 1), "w2": (16, 12, 1, 1), "w3": (20, 28, 1, 1), "w4": (4, 48, 1, 1)},
    ),
    "depthwise": (
        """(float[1,3,8,8] x) => (float[A,B,C,D] y)
        { a = Conv(x, w1) b = Relu(a) c = Conv<group=32>(b, w2) d = Relu(c) e = Conv(d, w3) f = Relu(e)
          y = Conv(f, w4) }""",
        {"w1": (32, 3, 1, 1), "w2": (32, 1, 3, 3), "w3": (16, 32, 1, 1), "w4": (4, 16, 1, 1)},
    ),
    "two outputs": (
        """(float[1,3,8,8] x) => (float[A,B,C,D] y, float[A,E,C,D] z)
        { a = Conv(x, w1) b = Conv(a, w2) y = Conv(b, w3) c = Conv(a, w4) z = Conv(c, w5) }""",
        {"w1": (16, 3, 1, 1), "w2": (16, 16, 1, 1), "w3": (2, 16, 1, 1), "w4": (16, 16, 1, 1), "w5": (3, 16, 1, 1)},
    ),
}
each_net = pytest.mark.parametrize("name", NETS)
each_sparsity = pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9])

Bools = NDArray[np.bool_]


def mapped(name: str) -> ChannelMap:
    text, weights = NETS[name]
    return build_map(Graph(model_of(text, **weights)))


def chosen(
    channel_map: ChannelMap, sparsity: float, align: int = 1, method: str = "lean", measure: Measure = "weights"
) -> Selection:
    scores = METHODS[method](0).scores(channel_map)
    return select(channel_map, scores, cost_of(channel_map, measure), sparsity, Alignment(align))


def free(channel_map: ChannelMap, name: str) -> NDArray[np.integer[Any]]:
    """Groups of a tensor's channels that may leave."""
    ids = channel_map.axes[name][1]
    assert ids is not None
    return ids[~channel_map.frozen[ids]]


@each_net
@each_sparsity
@pytest.mark.parametrize("measure", MEASURES)
def test_the_budget_is_met(name: str, sparsity: float, measure: Measure) -> None:
    channel_map = mapped(name)
    cost = cost_of(channel_map, measure)
    found = chosen(channel_map, sparsity, measure=measure)
    assert found.cost == cost(found.keep)
    assert found.cost <= found.budget == (1 - sparsity) * cost(np.ones(channel_map.groups, np.bool_))


@each_net
@each_sparsity
@pytest.mark.parametrize("method", METHODS)
def test_every_kept_channel_is_on_a_path(name: str, sparsity: float, method: str) -> None:
    channel_map = mapped(name)
    keep = chosen(channel_map, sparsity, method=method).keep
    alive = flow(channel_map, {}, keep).alive
    assert np.all(alive[keep & ~channel_map.frozen])


@each_net
@each_sparsity
def test_every_output_is_still_reached(name: str, sparsity: float) -> None:
    channel_map = mapped(name)
    found = flow(channel_map, {}, chosen(channel_map, sparsity).keep)
    for output in channel_map.graph.outputs:
        ids = channel_map.axes[output][1]
        assert ids is not None
        assert np.all(found.forward[ids] > -np.inf)


@each_net
@each_sparsity
def test_what_is_frozen_stays(name: str, sparsity: float) -> None:
    channel_map = mapped(name)
    assert np.all(chosen(channel_map, sparsity).keep[channel_map.frozen])


@each_net
@each_sparsity
def test_among_interchangeable_groups_the_best_stay(name: str, sparsity: float) -> None:
    channel_map = mapped(name)
    scores = METHODS["magnitude"](0).scores(channel_map)
    keep = chosen(channel_map, sparsity, method="magnitude").keep
    family = families(channel_map)
    for members in (np.flatnonzero((family == f) & ~channel_map.frozen) for f in np.unique(family)):
        left, gone = members[keep[members]], members[~keep[members]]
        if len(left) and len(gone):
            assert scores[left].min() >= scores[gone].max()


@each_net
@each_sparsity
def test_no_further_group_would_have_fitted(name: str, sparsity: float) -> None:
    channel_map = mapped(name)
    cost = cost_of(channel_map, "weights")
    found = chosen(channel_map, sparsity)
    for group in np.flatnonzero(~found.keep):
        more = found.keep.copy()
        more[group] = True
        assert cost(more) > found.budget or not flow(channel_map, {}, more).alive[group]


@each_net
@pytest.mark.parametrize("sparsity", [0.3, 0.6])
@pytest.mark.parametrize("align", [4, 8])
def test_kept_widths_are_good_ones(name: str, sparsity: float, align: int) -> None:
    channel_map = mapped(name)
    found = chosen(channel_map, sparsity, align)
    family = families(channel_map)
    for members in (np.flatnonzero((family == f) & ~channel_map.frozen) for f in np.unique(family)):
        kept = int(np.count_nonzero(found.keep[members]))
        assert kept % align == 0 or kept in (1, 2, 3, 4, 6, len(members))
    assert found.cost <= found.budget


@each_net
def test_sparser_keeps_less(name: str) -> None:
    channel_map = mapped(name)
    costs = [chosen(channel_map, sparsity).cost for sparsity in (0.0, 0.2, 0.5, 0.8)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == cost_of(channel_map, "weights")(np.ones(channel_map.groups, np.bool_))


@each_net
def test_beyond_what_is_reachable_it_returns_the_least(name: str) -> None:
    channel_map = mapped(name)
    cost = cost_of(channel_map, "weights")
    most = reachable(channel_map, cost)
    found = chosen(channel_map, (1 + most) / 2)
    assert found.cost > found.budget
    assert 1 - found.cost / found.whole == pytest.approx(most)


def test_what_is_just_reachable_is_reached() -> None:
    """One of five channels is left, 2 of 10 weights: a share of 0.8 is gone."""
    channel_map = build_map(Graph(model_of("(float[1,1] x) => (float[1,1] y) { a = Gemm(x, w) y = Gemm(a, v) }",
                                           w=(1, 5), v=(5, 1))))  # fmt: skip
    found = chosen(channel_map, 0.8)
    assert (found.cost, found.whole) == (2, 10)
    assert found.fits
    assert not chosen(channel_map, 0.81).fits


@each_net
def test_what_is_reachable_is_reached_whatever_the_scores(name: str) -> None:
    channel_map = mapped(name)
    cost = cost_of(channel_map, "weights")
    sparsity = reachable(channel_map, cost) - 1e-9
    for seed in range(10):
        scores = np.random.default_rng(seed).random(channel_map.groups)
        found = select(channel_map, scores, cost, sparsity, Alignment(1))
        assert found.cost <= found.budget
        assert np.all(flow(channel_map, {}, found.keep).alive[found.keep & ~channel_map.frozen])


def test_dead_channels_leave_first_and_their_budget_is_used() -> None:
    """Half of the filters are zero: at 30 % the others need not suffer."""
    text, weights = NETS["residual"]
    model = model_of(text, **weights)
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            values = numpy_helper.to_array(tensor).copy()
            values[:12] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, "w1"))
    channel_map = build_map(Graph(model))
    blocks = signal_blocks(nonzero_slices(channel_map))
    scores = METHODS["lean"](0).scores(channel_map)
    keep = select(channel_map, scores, cost_of(channel_map, "weights"), 0.3, Alignment(1), blocks).keep
    alive = flow(channel_map, blocks, keep).alive
    assert np.all(alive[keep & ~channel_map.frozen])


def test_the_order_of_equal_scores_is_fixed() -> None:
    channel_map = mapped("dense")
    cost = cost_of(channel_map, "weights")
    first, again = (select(channel_map, np.ones(channel_map.groups), cost, 0.5, Alignment(1)).keep for _ in range(2))
    assert np.array_equal(first, again)


def test_random_models_are_consistent_within_the_budget() -> None:
    for seed in range(200):
        channel_map = build_map(Graph(random_model(seed)))
        for measure in MEASURES:
            cost = cost_of(channel_map, measure)
            found = select(channel_map, METHODS["random"](seed).scores(channel_map), cost, 0.4, Alignment(1))
            assert found.cost <= found.budget or found.cost == pytest.approx(
                (1 - reachable(channel_map, cost)) * found.whole
            )
            for outputs, inputs in channel_map.needs:
                assert not np.any(found.keep[outputs]) or np.any(found.keep[inputs]), f"seed {seed}, {measure}"


# ---- what has to be given back --------------------------------------------------------------------------------------


def test_an_output_without_any_input_gets_its_best_one_back() -> None:
    channel_map = mapped("depthwise")
    keep = np.ones(channel_map.groups, np.bool_)
    keep[free(channel_map, "b")] = False
    scores = np.arange(channel_map.groups, dtype=np.float64)
    kept = consistent(channel_map, {}, keep, scores)
    assert np.flatnonzero(kept[free(channel_map, "b")]).tolist() == [len(free(channel_map, "b")) - 1]


def test_what_is_given_back_gets_what_it_needs_itself() -> None:
    """Groups that a residual couples are asked for after the layer that makes them had its turn."""
    channel_map = mapped("residual")
    kept = consistent(channel_map, {}, channel_map.frozen.copy(), np.zeros(channel_map.groups))
    for outputs, inputs in channel_map.needs:
        assert not np.any(kept[outputs]) or np.any(kept[inputs])


# ---- families -------------------------------------------------------------------------------------------------------


def test_a_family_is_all_channels_between_the_same_layers() -> None:
    channel_map = mapped("dense")
    family = families(channel_map)
    a, b, d = (family[free(channel_map, name)] for name in "abd")
    assert [len(np.unique(f)) for f in (a, b, d)] == [1, 1, 1]
    assert len(np.unique(np.concatenate((a, b, d)))) == 3


def test_the_groups_of_a_family_cost_the_same() -> None:
    for name in NETS:
        channel_map = mapped(name)
        family = families(channel_map)
        cost: Callable[[Bools], float] = cost_of(channel_map, "weights")
        for f in np.unique(family[channel_map.free]):
            members = np.flatnonzero((family == f) & ~channel_map.frozen)
            costs = {cost(np.arange(channel_map.groups) != group) for group in members}
            assert len(costs) == 1


# ---- scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lean", "magnitude"])
def test_scaling_a_layer_and_undoing_it_changes_no_ranking(method: str) -> None:
    """W1·α and W2/α are the same function."""
    text, weights = NETS["depthwise"]
    plain = model_of(text, **weights)
    scaled = model_of(text, **weights)
    for tensor in scaled.graph.initializer:
        factor = {"w1": 100.0, "w2": 0.01}.get(tensor.name, 1.0)
        tensor.CopyFrom(
            numpy_helper.from_array((numpy_helper.to_array(tensor) * factor).astype(np.float32), tensor.name)
        )
    one, other = (chosen(build_map(Graph(model)), 0.5, method=method).keep for model in (plain, scaled))
    assert np.array_equal(one, other)


def test_lean_ranks_a_channel_by_its_strongest_chain() -> None:
    """Two channels between input and output; the product of the norms decides, not either norm."""
    text = "(float[1,1,4,4] x) => (float[A,B,C,D] y) { a = Conv(x, w1) b = Relu(a) y = Conv(b, w2) }"
    w1 = np.array([3.0, 1.0, 2.0], np.float32).reshape(3, 1, 1, 1)
    w2 = np.array([0.1, 2.0, 0.5], np.float32).reshape(1, 3, 1, 1)
    channel_map = build_map(Graph(model_of(text, w1=w1, w2=w2)))
    ids = channel_map.axes["a"][1]
    assert ids is not None
    assert np.exp(METHODS["lean"](0).scores(channel_map)[ids]) == pytest.approx([0.3, 2.0, 1.0])


def test_random_depends_on_its_seed_alone(models: Path) -> None:
    channel_map = build_map(Graph(onnx.load(models / "resnet_digits.onnx")))
    first, again, other = (METHODS["random"](seed).scores(channel_map) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
