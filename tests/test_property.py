"""The contracts on random models: pruned equals masked reference, lossless equals original, and the whole pipeline.

hypothesis takes every decision of the generator, so that a failing model comes out small. ``ONNXPRUNE_EXAMPLES`` sets
the number of models of each property (by default some hundred, always the same ones); a long run asks for thousands,
and for new ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import onnx
from exactness import assert_exact, assert_same_outputs
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from random_models import random_model
from witness import feeds, stored_weights
from zeroed import runs, with_zeros

import onnxprune
from onnxprune.errors import UnreachableError
from onnxprune.measure import count_weights

T = TypeVar("T")
EXAMPLES = int(os.environ.get("ONNXPRUNE_EXAMPLES", "0"))


class Drawn:
    """Decisions of hypothesis (a ``generate.Choices``)."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def pick(self, options: Sequence[T]) -> T:
        return options[self.draw(st.integers(0, len(options) - 1))]


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    return random_model(Drawn(draw))


def examples(count: int) -> settings:
    """Always the same ``count`` examples, or as many new ones as were asked for."""
    return settings(max_examples=EXAMPLES or count, derandomize=not EXAMPLES, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck))  # fmt: skip


SEEDS = st.integers(0, 2**16)


@examples(1200)
@given(models(), st.sampled_from([0.3, 0.6, 0.9]), SEEDS)
def test_pruned_equals_masked_reference(model: onnx.ModelProto, share: float, seed: int) -> None:
    note(onnx.printer.to_text(model))
    assert_exact(model, share, [seed])


@examples(250)
@given(models(), SEEDS)
def test_lossless_equals_original(model: onnx.ModelProto, seed: int) -> None:
    model = with_zeros(model, seed)
    note(onnx.printer.to_text(model))
    given = feeds(model, seed)
    assume(runs(model, given))
    pruned = onnxprune.prune(model, check=False).model
    assert_same_outputs(model, pruned, given)
    assert list(pruned.graph.output) == list(model.graph.output)


@examples(100)
@given(models(), st.sampled_from([0.2, 0.5, 0.8]), st.sampled_from(["lean", "magnitude", "random"]), SEEDS)
def test_the_whole_pipeline(model: onnx.ModelProto, sparsity: float, method: str, seed: int) -> None:
    """The budget is met and the result verified, or the error says how far one can go."""
    note(onnx.printer.to_text(model))
    assume(runs(model, feeds(model, seed)))
    try:
        result = onnxprune.prune(model, sparsity=sparsity, method=method, seed=seed)
    except UnreachableError as refusal:
        reachable = refusal.reachable
    else:
        reachable = 1.0
    if reachable < 1:
        assert 0 <= reachable < sparsity
        return
    assert result.verification is not None
    assert count_weights(result.model) == result.after.weights
    assert result.after.weights <= (1 - sparsity) * result.before.weights + 1e-6
    assert list(result.model.graph.output) == list(model.graph.output)


def test_seeded_models_are_mostly_prunable() -> None:
    """The property would be empty if the random models had nothing to remove."""
    outcomes = [assert_exact(random_model(seed), 0.5, [seed])[0] for seed in range(600)]
    assert sum(outcome.removed > 0 for outcome in outcomes) > 400
    assert sum(outcome.removed for outcome in outcomes) > 2000


def test_seeded_models_lose_what_is_zeroed() -> None:
    """The lossless property would be empty if nothing were dead."""
    smaller = 0
    for seed in range(60):
        model = with_zeros(random_model(seed), seed)
        smaller += stored_weights(onnxprune.prune(model, check=False).model) < stored_weights(model)
    assert smaller > 20
