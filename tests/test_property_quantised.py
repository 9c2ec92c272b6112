"""The exactness contract on random quantised models: whatever is removed, pruned equals masked reference."""

from __future__ import annotations

import os

import numpy as np
import pytest
from exactness import assert_exact
from generate_quantised import random_quantised_model

from onnxprune import prune
from onnxprune.passes import masked

MODELS = int(os.environ.get("ONNXPRUNE_EXAMPLES", "0")) or 250


def test_pruned_equals_masked_reference() -> None:
    outcomes = [assert_exact(random_quantised_model(seed), (0.3, 0.6, 0.9)[seed % 3], [seed])[0]
                for seed in range(MODELS)]  # fmt: skip
    assert sum(outcome.removed > 0 for outcome in outcomes) > 0.9 * MODELS  # else there was nothing to check


def test_lossless_is_the_original() -> None:
    for seed in range(MODELS // 5):
        prune(random_quantised_model(seed))  # verified


def _all_exact() -> None:
    for seed in range(MODELS):
        assert_exact(random_quantised_model(seed), 0.5, [seed])


def test_a_zero_that_is_not_the_zero_point_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked, "zeros", lambda _, __, shape: np.zeros(shape, np.int8))
    with pytest.raises(AssertionError):
        _all_exact()
