"""Kernel granularity: kernel slices are chosen, the masked reference has them at zero, and what is dead without them
leaves. Whatever is chosen, the pruned model equals the masked reference."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import run
from exactness import Array, assert_same_outputs, model_of
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto
from random_models import random_model
from test_property import models as any_model
from witness import assert_zeroed_copy, constants, feeds, largest_error, outputs, stored_weights

import onnxprune
from onnxprune.bodies import flatten
from onnxprune.graph import Graph
from onnxprune.kernel_budget import Budget, within_budget
from onnxprune.ops import build_map
from onnxprune.passes.channel_graph import EdgeMask, accessible
from onnxprune.passes.kernel_scores import KERNEL_METHODS, Magnitude, Topology
from onnxprune.passes.kernel_slices import Kernels, kernels_of, on_paths
from onnxprune.pipeline import Result
from onnxprune.plan import KernelCut, Plan, kernel_cuts

MODELS = ("gcn_skeleton", "msd_circles", "resnet_digits", "resnet_digits_zeroed", "unet_circles", "vit_digits")
EXAMPLES = int(os.environ.get("ONNXPRUNE_EXAMPLES", "0"))
each_model = pytest.mark.parametrize("name", MODELS)
each_method = pytest.mark.parametrize("method", list(KERNEL_METHODS))


def pruned(model: ModelProto | Path, sparsity: float | None = 0.5, **options: Any) -> Result:
    options = {"method": "magnitude", "measure": "kernels", "granularity": "kernel", "check": False, **options}
    return onnxprune.prune(model, sparsity=sparsity, **options)


def kernels(model: ModelProto) -> Kernels:
    return kernels_of(build_map(Graph(flatten(model))))


def slices_left(model: ModelProto) -> int:
    """Non-zero kernel slices of Conv, ConvTranspose (ungrouped), Gemm and MatMul with a matrix, from the file alone."""
    held, count = constants(model), 0
    for node in model.graph.node:
        weight = held.get(node.input[1]) if len(node.input) > 1 else None
        if weight is not None and node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            count += int(np.count_nonzero(np.any(weight.reshape(*weight.shape[:2], -1) != 0, axis=2)))
    return count


def difference(masked: ModelProto | Path, found: ModelProto | Path) -> float:
    """Largest difference between two models, as a share of the largest number of an output."""
    given = feeds(masked)
    return largest_error(outputs(masked, given), outputs(found, given))


# ---- the project's models -------------------------------------------------------------------------------------------


@each_model
@each_method
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_pruned_equals_masked_reference(models: Path, name: str, method: str, sparsity: float) -> None:
    model = onnx.load(models / f"{name}.onnx")
    result = pruned(model, sparsity, method=method)
    onnx.checker.check_model(result.model, full_check=True)
    assert difference(result.masked, result.model) < 1e-4
    assert_zeroed_copy(model, result.masked)


@each_model
@each_method
def test_at_most_the_share_of_kernel_slices_stays(models: Path, name: str, method: str) -> None:
    model = onnx.load(models / f"{name}.onnx")
    before = slices_left(model)
    for sparsity in (0.25, 0.8):
        result = pruned(model, sparsity, method=method)
        assert slices_left(result.masked) <= (1 - sparsity) * before + 1e-6
        assert slices_left(result.model) <= slices_left(result.masked)


@each_model
def test_the_sizes_are_what_can_be_counted(models: Path, name: str) -> None:
    model = onnx.load(models / f"{name}.onnx")
    result = pruned(model, 0.8)
    assert (result.before.kernels, result.after.kernels) == (slices_left(model), slices_left(result.model))
    assert result.after.weights == stored_weights(result.model)


@each_model
@pytest.mark.parametrize("measure", ["weights", "macs"])
@pytest.mark.parametrize("method", ["magnitude", "l1"])
def test_other_budgets_are_physical(models: Path, name: str, measure: str, method: str) -> None:
    result = pruned(models / f"{name}.onnx", 0.6, method=method, measure=measure)
    assert getattr(result.after, measure) <= 0.4 * getattr(result.before, measure)
    if measure == "weights":
        assert stored_weights(result.model) <= 0.4 * stored_weights(models / f"{name}.onnx")


@each_model
@each_method
def test_every_slice_that_stays_is_on_a_path(models: Path, name: str, method: str) -> None:
    result = pruned(models / f"{name}.onnx", 0.9, method=method)
    left = kernels(result.masked)
    assert left.count(on_paths(left, left.nonzero)) == left.total


@each_model
@pytest.mark.parametrize("sparsity", [0.9, 0.98])
def test_topology_spends_the_whole_budget_on_connected_slices(models: Path, name: str, sparsity: float) -> None:
    result = pruned(models / f"{name}.onnx", sparsity, method="topology")
    before, left = kernels(onnx.load(models / f"{name}.onnx")), kernels(result.masked)
    alive = on_paths(before, before.nonzero)
    possible, reached = accessible(before.graph, alive), accessible(left.graph, left.nonzero)
    assert np.array_equal(possible[before.graph.outputs], reached[left.graph.outputs])
    assert left.total == min(int((1 - sparsity) * before.total + 1e-6), before.count(alive))
    assert result.connected is not None
    assert result.connected.method == 1.0


@pytest.mark.parametrize("name", ["gcn_skeleton", "vit_digits"])
def test_topology_is_magnitude_where_that_is_connected(models: Path, name: str) -> None:
    plain, found = (pruned(models / f"{name}.onnx", method=method) for method in ("magnitude", "topology"))
    assert plain.connected is not None
    assert plain.connected.method == 1.0
    assert found.plan.kernels == plain.plan.kernels


@pytest.mark.parametrize("method", ["topology", "lean", "lean-anchored"])
def test_a_dense_net_stays_connected(models: Path, method: str) -> None:
    """Where plain magnitude leaves nothing that an input reaches."""
    result = pruned(models / "msd_circles.onnx", 0.95, method=method)
    assert result.connected is not None
    assert result.connected.plain_magnitude == 0.0
    assert result.after.kernels > 0.8 * 0.05 * result.before.kernels


def test_a_budget_below_what_reaches_every_output_is_refused(models: Path) -> None:
    with pytest.raises(onnxprune.UnreachableError, match=r"at most 0\.99\d+ can"):
        pruned(models / "resnet_digits.onnx", 0.9999, method="topology")


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_a_physical_budget_is_filled_in_few_steps(models: Path, power: float, sparsity: float) -> None:
    held = kernels(onnx.load(models / "unet_circles.onnx"))
    selection, seen = Topology().selection(held), list[float]()

    def size(mask: EdgeMask) -> float:
        seen.append(1e6 * (held.count(mask) / held.total) ** power)
        return seen[-1]

    budget = Budget("weights", sparsity, size, 1e6)
    found = within_budget(held, selection, budget)
    assert 0.98 * budget.most <= size(found.mask) <= budget.most
    assert len(seen) <= 7


def test_slices_that_stay_anyway_do_not_make_the_search_coarse(models: Path) -> None:
    model = onnx.load(models / "unet_circles.onnx")
    alone = {node.name for node in model.graph.node if "Conv" in node.op_type} - {"/encoder1/encoder1.0/Conv"}
    held = kernels_of(build_map(Graph(flatten(model))), alone)
    free = held.total - held.fixed
    assert 0 < 100 * free < held.fixed
    budget = Budget("weights", 0.5, lambda mask: float(held.count(mask) - held.fixed), float(free))
    assert within_budget(held, Magnitude().selection(held), budget).count - held.fixed >= free // 2 - 1


def test_inspection_tells_what_plain_magnitude_leaves_connected(models: Path) -> None:
    found = onnxprune.inspect(models / "msd_circles.onnx")
    assert list(found.plain_connectivity) == [0.5, 0.9, 0.98]
    assert found.plain_connectivity[0.9] == 0.0
    assert found.to_json()["plain_magnitude_connected"][0]["sparsity"] == 0.5


@each_model
def test_a_plan_applied_again_gives_the_same_file(models: Path, name: str) -> None:
    model = onnx.load(models / f"{name}.onnx")
    for method, sparsity, align in (("magnitude", 0.5, None), ("l1", 0.9, "none"), ("random", 0.9, None)):
        first = pruned(model, sparsity, method=method, align=align)
        plan = Plan.from_json(first.plan.to_json())
        assert plan == first.plan
        again = onnxprune.prune(model, plan=plan, check=False)
        assert again.model.SerializeToString() == first.model.SerializeToString()
        assert again.masked.SerializeToString() == first.masked.SerializeToString()


@each_model
def test_without_a_sparsity_it_is_lossless_mode(models: Path, name: str) -> None:
    path = models / f"{name}.onnx"
    assert pruned(path, None).model == onnxprune.prune(path, check=False).model


def test_it_is_verified_by_default(models: Path) -> None:
    result = pruned(models / "resnet_digits.onnx", 0.9, check=True)
    assert result.verification is not None
    assert result.verification.ok


# ---- single layers --------------------------------------------------------------------------------------------------

IMAGE = "(float[2,4,6,6] x) => (float[A,B,C,D] y)"
TOKENS = "(float[2,5,6] x) => (float[A,B,C] y)"


def array(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantised(points: Any) -> dict[str, Array]:
    values = np.random.default_rng(0).integers(0, 255, (8, 4, 3, 3)).astype(np.uint8)
    scale = np.full(np.shape(points), 0.01, np.float32)
    return {"q": values, "s": scale, "z": np.asarray(points, np.uint8), "v": array(3, 8, 1, 1)}


LAYERS: dict[str, ModelProto] = {
    "conv": model_of(f"{IMAGE} {{ a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) y = Conv(r, v) }}",
                     w=(8, 4, 3, 3), b=8, v=(3, 8, 1, 1)),
    "conv under padding": model_of(f"{IMAGE} {{ a = Conv(x, w, b) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, v) }}",
                                   w=(8, 4, 3, 3), b=8, v=(3, 8, 3, 3)),
    "grouped": model_of(f"{IMAGE} {{ a = Conv<group=2>(x, w, b) r = Relu(a) y = Conv(r, v) }}",
                        w=(8, 2, 3, 3), b=8, v=(3, 8, 1, 1)),
    "depthwise": model_of(f"{IMAGE} {{ a = Conv(x, w) d = Conv<group=8>(a, k) r = Relu(d) y = Conv(r, v) }}",
                          w=(8, 4, 1, 1), k=(8, 1, 3, 3), v=(3, 8, 1, 1)),
    "transposed": model_of(f"{IMAGE} {{ a = ConvTranspose(x, w, b) r = Relu(a) y = Conv(r, v) }}",
                           w=(4, 8, 3, 3), b=8, v=(3, 8, 1, 1)),
    "transposed in groups": model_of(f"{IMAGE} {{ a = ConvTranspose<group=2>(x, w) r = Relu(a) y = Conv(r, v) }}",
                                     w=(4, 5, 3, 3), v=(3, 10, 1, 1)),
    "gemm": model_of("(float[3,6] x) => (float[A,B] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm<transB=1>(r, v) }",
                     w=(6, 8), b=8, v=(5, 8)),
    "tokens": model_of(f"{TOKENS} {{ a = MatMul(x, w) c = Add(a, b) r = Relu(c) y = MatMul(r, v) }}",
                       w=(6, 8), b=8, v=(8, 4)),
    "shared": model_of(f"{IMAGE} {{ a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) c = Conv<pads=[1,1,1,1]>(r, w) "
                       "y = Conv(c, v) }", w=(4, 4, 3, 3), v=(3, 4, 1, 1)),
    "recurrent": model_of("(float[5,2,6] x) => (float[A,B,C,D] y) { y = LSTM<hidden_size=4>(x, w, r, b) }",
                          w=(1, 16, 6), r=(1, 16, 4), b=(1, 32)),
    "einsum": model_of(f"{TOKENS} {{ a = MatMul(x, w) r = Relu(a) y = Einsum<equation=\"blc,cd->bld\">(r, v) }}",
                       w=(6, 8), v=(8, 4)),
    "residual": model_of(f"{IMAGE} {{ a = Conv(x, w, b) r = Relu(a) c = Conv(r, u) s = Add(r, c) y = Conv(s, v) }}",
                         w=(8, 4, 1, 1), b=8, u=(8, 8, 1, 1), v=(3, 8, 1, 1)),
    "concat": model_of(f"{IMAGE} {{ a = Conv(x, w, b) r = Relu(a) z = Concat<axis=1>(x, r) y = Conv(z, v) }}",
                       w=(8, 4, 1, 1), b=8, v=(3, 12, 1, 1)),
    "two outputs": model_of("(float[2,4,6,6] x) => (float[A,B,C,D] y, float[E,F,G,H] z) "
                            "{ a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) z = Conv(r, u) }",
                            w=(8, 4, 1, 1), b=8, v=(3, 8, 1, 1), u=(2, 8, 1, 1)),
    "transposed weight": model_of(f"{TOKENS} {{ t = Transpose(w) a = MatMul(x, t) r = Relu(a) y = MatMul(r, v) }}",
                                  w=(8, 6), v=(8, 4)),
    "quantised": model_of(f"{IMAGE} {{ w = DequantizeLinear(q, s, z) a = Conv(x, w) r = Relu(a) y = Conv(r, v) }}",
                          **quantised(120)),
    "quantised per channel": model_of(
        f"{IMAGE} {{ w = DequantizeLinear<axis=0>(q, s, z) a = Conv(x, w) r = Relu(a) y = Conv(r, v) }}",
        **quantised(np.arange(100, 108))),
}  # fmt: skip


def random_cuts(held: Kernels, share: float, seed: int) -> tuple[KernelCut, ...]:
    rng = np.random.default_rng(seed)
    chosen = {each.node: rng.random(held.nonzero[each.node].shape) >= share for each in held.free}
    return kernel_cuts(held, held.mask(chosen))


def assert_exact_without(model: ModelProto, share: float, seed: int) -> int:
    """Cut kernel slices at random, connected or not; returns how many."""
    cuts = random_cuts(kernels(model), share, seed)
    plan = Plan("random", granularity="kernel", sparsity=0.5, kernels=cuts)
    result = onnxprune.prune(model, plan=plan, check=False)
    onnx.checker.check_model(result.model, full_check=True)
    assert_same_outputs(result.masked, result.model, feeds(model, seed))
    return sum(int(np.count_nonzero(cut.gone)) for cut in cuts)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_any_slices_can_go(name: str, share: float) -> None:
    assert all(assert_exact_without(LAYERS[name], share, seed) for seed in range(4))


@pytest.mark.parametrize("name", LAYERS)
def test_the_masked_reference_only_has_zeros_more(name: str) -> None:
    model = LAYERS[name]
    result = pruned(model, 0.5)
    before, after = constants(model), constants(result.masked)
    assert [(n.op_type, n.input, n.output) for n in model.graph.node] == [
        (n.op_type, n.input, n.output) for n in result.masked.graph.node
    ]
    changed = {name: before[name] != after[name] for name in before}
    assert any(np.any(places) for places in changed.values())
    for weight, places in changed.items():
        points = before["z"] if weight == "q" else np.zeros(())
        zero = np.broadcast_to(points.reshape(points.shape + (1,) * 3 if points.ndim else ()), before[weight].shape)
        assert np.array_equal(after[weight][places], zero[places])


def test_a_slice_is_one_pair_of_channels_whatever_the_layout() -> None:
    expected = {"grouped": 40, "depthwise": 64, "transposed": 56, "transposed in groups": 50, "gemm": 88, "shared": 44}
    expected |= {"recurrent": 24, "transposed weight": 80}
    assert {name: kernels(LAYERS[name]).total for name in expected} == expected


def test_a_shared_weight_has_one_mask_and_counts_for_each_reader() -> None:
    held = kernels(LAYERS["shared"])
    assert [len(each.nodes) for each in held.free] == [2, 1]
    result = pruned(LAYERS["shared"], 0.5)
    left = kernels(result.masked)
    assert np.array_equal(left.nonzero[0], left.nonzero[2])
    assert left.total <= 22


def test_a_weight_that_others_read_too_keeps_its_slices() -> None:
    text = f"{TOKENS} {{ a = MatMul(x, w) t = Transpose(w) z = MatMul(a, t) n = ReduceSum(w) y = Add(z, n) }}"
    assert not kernels(model_of(text, w=(6, 8))).free
    tied = f"{TOKENS} {{ a = MatMul(x, w) t = Transpose(w) y = MatMul(a, t) }}"
    assert not kernels(model_of(tied, w=(6, 8))).free  # one slice here is another there


# ---- keep -----------------------------------------------------------------------------------------------------------


def test_layers_left_alone_keep_their_slices(models: Path) -> None:
    model = onnx.load(models / "resnet_digits.onnx")
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    first, last = convolutions[0], model.graph.node[-1]
    result = pruned(model, 0.7, keep=(first.output[0], last.output[0]))
    before, after = constants(model), constants(result.masked)
    kept = {first.input[1], last.input[1]}
    for name in {node.input[1] for node in convolutions} | kept:
        assert np.array_equal(before[name], after[name]) == (name in kept)


def test_what_is_left_alone_may_leave_too_little(models: Path) -> None:
    with pytest.raises(onnxprune.UnreachableError, match="at most 0 can"):
        pruned(models / "resnet_digits.onnx", 0.5, keep=("*",))


# ---- plans ----------------------------------------------------------------------------------------------------------


def test_the_json_says_which_slices_go(models: Path) -> None:
    plan = pruned(models / "resnet_digits.onnx", 0.5).plan
    held = json.loads(plan.to_json())
    assert held["granularity"] == "kernel"
    first = held["kernels"][0]
    assert sorted(first) == ["bits", "input", "node", "shape", "tensor"]
    assert "kernel slices of" in str(plan)


def test_bits_and_back_are_the_same_slices() -> None:
    gone = np.random.default_rng(0).random((7, 5)) < 0.5
    assert np.array_equal(KernelCut.of("w", 0, 1, gone).gone, gone)


def test_a_plan_for_another_model_is_refused(models: Path) -> None:
    plan = pruned(models / "resnet_digits.onnx", 0.5).plan
    with pytest.raises(onnxprune.UsageError, match="does not fit this model"):
        onnxprune.prune(models / "unet_circles.onnx", plan=plan, check=False)


@pytest.mark.parametrize(
    "changed",
    [
        {"tensor": "other"},
        {"node": 10_000},
        {"input": 0},
        {"shape": (1, 8)},
        {"bits": "!"},
        {"bits": ""},
        {"bits": "AAAAAAAA"},
        {"shape": (1, 2, 3)},
        {"shape": (-1, -8)},
        {"node": "a"},
        {"colour": "red"},
    ],
    ids=str,
)
def test_kernels_beyond_the_model_are_refused(models: Path, changed: dict[str, object]) -> None:
    path = models / "resnet_digits.onnx"
    held = json.loads(pruned(path, 0.5).plan.to_json())
    held["kernels"][0] |= changed
    with pytest.raises(onnxprune.UsageError, match="plan") as refused:
        onnxprune.prune(path, plan=Plan.from_json(json.dumps(held)), check=False)
    assert "\n" not in str(refused.value)


def test_a_plan_may_not_remove_channels_that_its_kernels_leave_alive(models: Path) -> None:
    """Channels and slices of a plan go together: the result would not be what the masked reference says."""
    path = models / "resnet_digits.onnx"
    channels = onnxprune.prune(path, sparsity=0.5, check=False).plan
    wrong = replace(channels, granularity="kernel", kernels=pruned(path, 0.3).plan.kernels)
    with pytest.raises(onnxprune.OnnxpruneError):
        onnxprune.prune(path, plan=wrong)


# ---- the command line -----------------------------------------------------------------------------------------------


def test_the_command_line_prunes_kernels_and_plans_them(models: Path, tmp_path: Path) -> None:
    model, out, again = models / "resnet_digits.onnx", tmp_path / "a.onnx", tmp_path / "b.onnx"
    plan, masked, report = (tmp_path / name for name in ("plan.json", "masked.onnx", "report.json"))
    options = ("--method", "sv", "--granularity", "kernel", "--measure", "kernels", "-s", "0.9", "-q")
    assert run(model, "-o", out, *options, "--save-plan", plan, "--emit-masked", masked, "--report", report) == 0
    assert run(model, "-o", again, "--plan", plan, "-q") == 0
    assert out.read_bytes() == again.read_bytes()
    assert difference(masked, out) < 1e-4
    said = json.loads(report.read_text())
    assert said["before"]["kernels"] == slices_left(onnx.load(model))
    assert 0 < said["connected"]["method"] <= 1
    assert said["after"]["kernels"] == slices_left(onnx.load(out))


def test_a_method_of_the_other_granularity_is_refused(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(models / "resnet_digits.onnx", "--method", "sv", "-s", "0.5") == 2
    assert "--granularity kernel" in capsys.readouterr().err


# ---- any model ------------------------------------------------------------------------------------------------------


@settings(
    max_examples=EXAMPLES or 120,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(any_model(), st.sampled_from([0.5, 0.8, 0.95]), st.integers(0, 2**16))
def test_random_slices_of_random_models(model: onnx.ModelProto, share: float, seed: int) -> None:
    note(onnx.printer.to_text(model))
    assert_exact_without(model, share, seed)


def test_random_models_have_slices_to_cut() -> None:
    """The property would be empty if there were none."""
    cut = [assert_exact_without(random_model(seed), 0.8, seed) for seed in range(40)]
    assert sum(count > 0 for count in cut) > 30


@pytest.mark.parametrize("granularity", ["channel", "kernel"])
def test_the_grid_of_the_norms_may_be_asked_for(models: Path, granularity: str) -> None:
    """On 2 points per axis other channels and slices are the strongest."""
    path = models / "resnet_digits.onnx"
    options: dict[str, Any] = {"granularity": granularity, "measure": "kernels", "check": False}
    coarse, usual, fine, again = (
        onnxprune.prune(path, sparsity=0.5, norm_grid=n, **options).plan.to_json() for n in (2, None, 256, 256)
    )
    assert coarse != usual
    assert fine == again
    with pytest.raises(onnxprune.UsageError, match="norm grid is 2000"):
        onnxprune.prune(path, sparsity=0.5, norm_grid=2000, **options)
