"""The main job on the project's own models, checked from the written files alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import run, run_process
from witness import assert_zeroed_copy, feeds, largest_error, outputs, stored_weights

import onnxprune
from onnxprune.channels import ChannelMap
from onnxprune.passes.cost import cost_of
from onnxprune.passes.families import families

MODELS = ("gcn_skeleton", "msd_circles", "resnet_digits", "resnet_digits_zeroed", "unet_circles", "vit_digits")
SPARSITIES = (0.3, 0.5, 0.8, 0.9, 0.98)
METHODS = ("lean", "magnitude", "random")
TOLERANCE = 1e-4  # of the output's scale


@dataclass(frozen=True)
class Run:
    """One run of the command line."""

    model: Path
    out: Path
    masked: Path
    code: int


Prune = Callable[..., Run]


@pytest.fixture(scope="module")
def prune(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Prune:
    """Prunes a model of the project once per choice of options; runs that inspect calls unreachable are skipped."""
    folder = tmp_path_factory.mktemp("runs")

    @cache
    def reachable(name: str) -> float:
        return onnxprune.inspect(models / f"{name}.onnx").reach["weights"]

    @cache
    def pruned(name: str, sparsity: float, *options: str) -> Run:
        if sparsity > reachable(name):
            pytest.skip(f"inspect says that at most {reachable(name):.4f} can be reached")
        model = models / f"{name}.onnx"
        stem = "-".join((name, str(sparsity), *options))
        out, masked = folder / f"{stem}.onnx", folder / f"{stem}.masked.onnx"
        code = run(model, "-s", str(sparsity), "-o", out, "--emit-masked", masked, "--no-verify", "-q", *options)
        return Run(model, out, masked, code)

    return pruned


def test_the_list_of_models_is_complete(models: Path) -> None:
    results = set(models.glob("*.pruned.onnx"))  # the README's first command writes one beside its model
    assert sorted(path.stem for path in set(models.glob("*.onnx")) - results) == list(MODELS)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("name", MODELS)
class TestEveryModelAndSparsity:
    def test_ends_well(self, prune: Prune, name: str, sparsity: float) -> None:
        assert prune(name, sparsity).code == 0

    def test_stores_no_more_than_asked(self, prune: Prune, name: str, sparsity: float) -> None:
        made = prune(name, sparsity)
        assert 0 < stored_weights(made.out) <= (1 - sparsity) * stored_weights(made.model)

    def test_pruned_equals_masked(self, prune: Prune, name: str, sparsity: float) -> None:
        made = prune(name, sparsity)
        given = feeds(made.model, seed=int(100 * sparsity))
        assert largest_error(outputs(made.masked, given), outputs(made.out, given)) <= TOLERANCE

    def test_masked_is_the_original_with_zeros(self, prune: Prune, name: str, sparsity: float) -> None:
        made = prune(name, sparsity)
        assert_zeroed_copy(onnx.load(made.model), onnx.load(made.masked))

    def test_keeps_the_interface(self, prune: Prune, name: str, sparsity: float) -> None:
        made = prune(name, sparsity)
        before, after = onnx.load(made.model).graph, onnx.load(made.out).graph
        assert list(after.input) == list(before.input)
        assert list(after.output) == list(before.output)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_every_method_is_exact_and_within_budget(prune: Prune, name: str, method: str) -> None:
    made = prune(name, 0.5, "--method", method)
    given = feeds(made.model)
    assert made.code == 0
    assert stored_weights(made.out) <= 0.5 * stored_weights(made.model)
    assert largest_error(outputs(made.masked, given), outputs(made.out, given)) <= TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_model_still_looks_at_its_input(prune: Prune, name: str) -> None:
    """Exact but constant would be exact and useless."""
    made = prune(name, 0.9)
    one, other = (outputs(made.out, feeds(made.model, seed)) for seed in (0, 1))
    assert largest_error(one, other) > 0.01


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_command_with_its_defaults(models: Path, tmp_path: Path, name: str) -> None:
    assert run(models / f"{name}.onnx", "--sparsity", "0.5", "-o", tmp_path / "out.onnx", "-q") == 0


def test_as_a_process_it_writes_beside_the_model_by_default(models: Path, tmp_path: Path) -> None:
    model = tmp_path / "digits.onnx"
    model.write_bytes((models / "resnet_digits.onnx").read_bytes())
    done = run_process(model, "--sparsity", "0.98")
    assert (done.returncode, done.stderr) == (0, "")
    assert stored_weights(tmp_path / "digits.pruned.onnx") <= 0.02 * stored_weights(model)


@pytest.mark.parametrize("name", MODELS)
def test_more_than_can_be_reached_says_how_far_one_can_go(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = models / f"{name}.onnx"
    reachable = onnxprune.inspect(model).reach["weights"]
    assert run(model, "-s", str((1 + reachable) / 2), "-o", tmp_path / "out.onnx", "-q") == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"at most {int(reachable * 1e4) / 1e4:g} can" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_what_inspect_calls_reachable_can_be_reached(models: Path, name: str, method: str) -> None:
    reachable = onnxprune.inspect(models / f"{name}.onnx").reach["weights"]
    result = onnxprune.prune(models / f"{name}.onnx", sparsity=reachable - 1e-9, method=method, check=False)
    assert result.after.weights <= (1 - reachable + 1e-9) * result.before.weights + 1e-6


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_without_alignment_the_budget_is_filled_to_within_a_group_a_layer(
    models: Path, name: str, method: str, sparsity: float
) -> None:
    result = onnxprune.prune(models / f"{name}.onnx", sparsity=sparsity, method=method, align="none", check=False)
    budget = (1 - sparsity) * result.before.weights
    assert result.after.weights <= budget
    assert result.after.weights + _one_more_in_every_layer(result.channel_map, result.keep) > budget


def _one_more_in_every_layer(channel_map: ChannelMap, keep: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    """Weights that keeping one more group of every family would add, were each added alone."""
    cost = cost_of(channel_map, "weights")
    family = families(channel_map)
    _, first = np.unique(np.where(keep, -1, family), return_index=True)
    total = 0.0
    for group in first:
        more = keep.copy()
        more[group] = True
        total += cost(more) - cost(keep)
    return total


def test_the_same_run_writes_the_same_bytes(models: Path, tmp_path: Path) -> None:
    for out in ("a.onnx", "b.onnx"):
        run(models / "unet_circles.onnx", "-s", "0.7", "-o", tmp_path / out, "--no-verify", "-q")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_number_of_threads_changes_nothing(models: Path, tmp_path: Path) -> None:
    for threads in ("1", "2"):
        done = run_process(
            models / "resnet_digits.onnx", "-s", "0.8", "-o", tmp_path / f"{threads}.onnx", "--no-verify", "-q",
            OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads,
        )  # fmt: skip
        assert done.returncode == 0
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()
