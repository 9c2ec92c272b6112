"""Plans: data that says which channels leave, and that can be applied again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.graph import Graph
from onnxprune.ops import build_map
from onnxprune.plan import Cut, Plan, keep_of, plan_of

MODELS = ("gcn_skeleton", "msd_circles", "resnet_digits", "resnet_digits_zeroed", "unet_circles", "vit_digits")
each_model = pytest.mark.parametrize("name", MODELS)


def load(models: Path, name: str) -> onnx.ModelProto:
    return onnx.load(models / f"{name}.onnx")


@each_model
def test_json_and_back_is_the_same_plan(models: Path, name: str) -> None:
    plan = onnxprune.prune(load(models, name), sparsity=0.5, check=False).plan
    assert plan.cuts
    assert Plan.from_json(plan.to_json()) == plan


@each_model
@pytest.mark.parametrize("sparsity", [None, 0.5, 0.9])
def test_applied_again_it_gives_the_same_model(models: Path, name: str, sparsity: float | None) -> None:
    first = onnxprune.prune(load(models, name), sparsity=sparsity, method="random", seed=3, check=False)
    again = onnxprune.prune(load(models, name), plan=Plan.from_json(first.plan.to_json()), check=False)
    assert again.model.SerializeToString() == first.model.SerializeToString()


@each_model
def test_it_says_everything_that_leaves(models: Path, name: str) -> None:
    channel_map = build_map(Graph(load(models, name)))
    keep = np.random.default_rng(0).random(channel_map.groups) < 0.7
    keep |= channel_map.frozen
    for outputs, inputs in reversed(channel_map.needs):
        if np.any(keep[outputs]) and not np.any(keep[inputs]):
            keep[inputs[0]] = True
    plan = plan_of(channel_map, keep, np.zeros_like(keep), Plan())
    assert np.array_equal(keep_of(channel_map, plan), keep)


@each_model
def test_each_group_is_named_once(models: Path, name: str) -> None:
    result = onnxprune.prune(load(models, name), sparsity=0.5, check=False)
    channel_map = result.original
    named = [
        int(group)
        for cut in result.plan.cuts
        for ids in [channel_map.uses[cut.node, cut.input][cut.axis]]
        if ids is not None
        for group in ids[list(cut.indices)]
    ]
    assert len(named) == len(set(named))
    assert set(named) == set(np.flatnonzero(~result.keep).tolist())


def test_reasons_tell_what_was_dead_from_what_was_chosen(models: Path) -> None:
    model = load(models, "resnet_digits_zeroed")
    lossless = onnxprune.prune(model, check=False).plan
    pruned = onnxprune.prune(model, sparsity=0.8, check=False).plan
    assert {cut.reason for cut in lossless.cuts} == {"dead"}
    assert {cut.reason for cut in pruned.cuts} == {"dead", "score"}


def test_it_prints_in_one_line(models: Path) -> None:
    plan = onnxprune.prune(load(models, "resnet_digits"), sparsity=0.5, check=False).plan
    assert "\n" not in str(plan)
    assert "lean" in str(plan)


def with_cut(**changed: object) -> str:
    """The JSON of a plan with one cut."""
    cut = {"tensor": "w", "node": 0, "input": 1, "axis": 0, "indices": [0], "reason": "score"}
    return json.dumps({"onnxprune_plan": 1, "keep": [], "cuts": [cut | changed]})


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_a_plan_for_another_model_is_refused(models: Path) -> None:
    plan = onnxprune.prune(load(models, "resnet_digits"), sparsity=0.5, check=False).plan
    with pytest.raises(onnxprune.UsageError, match="does not fit this model"):
        onnxprune.prune(load(models, "unet_circles"), plan=plan, check=False)


def test_a_plan_for_a_wider_model_is_refused(models: Path) -> None:
    model = load(models, "resnet_digits")
    plan = onnxprune.prune(model, sparsity=0.5, check=False).plan
    narrow = onnxprune.prune(model, sparsity=0.9, check=False).model
    with pytest.raises(onnxprune.UsageError, match="does not fit this model"):
        onnxprune.prune(narrow, plan=plan, check=False)


def some_cut(models: Path) -> tuple[onnx.ModelProto, Plan, Cut]:
    model = load(models, "resnet_digits")
    plan = onnxprune.prune(model, sparsity=0.5, check=False).plan
    return model, plan, plan.cuts[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"axis": 7},
        {"axis": -1},
        {"input": 9},
        {"node": 10_000},
        {"tensor": "other"},
        {"indices": (100_000,)},
        {"indices": (-1,)},
    ],
    ids=str,
)
def test_cuts_beyond_the_model_are_refused(models: Path, changed: dict[str, object]) -> None:
    model, plan, cut = some_cut(models)
    wrong = replace(plan, cuts=(replace(cut, **changed),))  # type: ignore[arg-type]
    with pytest.raises(onnxprune.UsageError, match="plan"):
        onnxprune.prune(model, plan=wrong, check=False)


def test_a_plan_may_not_remove_what_is_frozen(models: Path) -> None:
    model = load(models, "resnet_digits")
    last = max(i for i, node in enumerate(model.graph.node) if node.op_type == "Gemm")
    name = model.graph.node[last].input[2]
    wrong = Plan(sparsity=0.5, cuts=(Cut(name, last, 2, 0, (0,), "score"),))
    with pytest.raises(onnxprune.UsageError, match="may not leave"):
        onnxprune.prune(model, plan=wrong, check=False)


def test_a_plan_may_not_empty_a_layer(models: Path) -> None:
    model, plan, cut = some_cut(models)
    channel_map = build_map(Graph(model))
    ids = channel_map.uses[cut.node, cut.input][cut.axis]
    assert ids is not None
    wrong = replace(plan, cuts=(replace(cut, indices=tuple(range(len(ids)))),))
    with pytest.raises(onnxprune.UsageError, match="removes every input"):
        onnxprune.prune(model, plan=wrong, check=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        "null",
        "3",
        "{}",
        '{"onnxprune_plan": 1}',
        '{"onnxprune_plan": 2, "cuts": [], "keep": []}',
        '{"onnxprune_plan": 1, "cuts": [{}], "keep": []}',
        '{"onnxprune_plan": 1, "cuts": 5, "keep": []}',
        '{"onnxprune_plan": 1, "cuts": [], "keep": [], "colour": "red"}',
        '{"onnxprune_plan": 1, "cuts": [], "keep": [], "sparsity": "much"}',
        '{"onnxprune_plan": 1, "cuts": [], "keep": [], "measure": "parameters"}',
        with_cut(node="a"),
        with_cut(node=True),
        with_cut(axis=1.5),
        with_cut(indices=["a"]),
        with_cut(indices=[]),
        with_cut(indices=[-1]),
        with_cut(indices=3),
        with_cut(colour="red"),
    ],
)
def test_what_is_no_plan_is_refused_in_one_line(models: Path, text: str) -> None:
    with pytest.raises(onnxprune.UsageError) as refused:
        onnxprune.prune(load(models, "resnet_digits"), plan=Plan.from_json(text), check=False)
    assert "\n" not in str(refused.value)


def test_a_cut_as_made_above_is_read() -> None:
    assert Plan.from_json(with_cut()).cuts == (Cut("w", 0, 1, 0, (0,), "score"),)


def test_the_json_names_its_version(models: Path) -> None:
    plan = onnxprune.prune(load(models, "resnet_digits"), sparsity=0.5, check=False).plan
    assert json.loads(plan.to_json())["onnxprune_plan"] == 1
