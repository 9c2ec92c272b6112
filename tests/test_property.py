"""The exactness contract on random models: whatever is removed, pruned equals masked reference.

hypothesis takes every decision of the generator, so that a failing model comes out small. ``ONNXPRUNE_EXAMPLES`` sets
the number of models (default 1500, always the same ones); a long run asks for thousands, and for new ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import onnx
from exactness import assert_exact
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from random_models import random_model

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


@settings(
    max_examples=EXAMPLES or 1500,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(models(), st.sampled_from([0.3, 0.6, 0.9]), st.integers(0, 2**16))
def test_pruned_equals_masked_reference(model: onnx.ModelProto, share: float, seed: int) -> None:
    note(onnx.printer.to_text(model))
    assert_exact(model, share, [seed])


def test_seeded_models_are_mostly_prunable() -> None:
    """The property would be empty if the random models had nothing to remove."""
    outcomes = [assert_exact(random_model(seed), 0.5, [seed])[0] for seed in range(600)]
    assert sum(outcome.removed > 0 for outcome in outcomes) > 400
    assert sum(outcome.removed for outcome in outcomes) > 2000
