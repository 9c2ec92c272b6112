"""The consistency rules alone notice faults that leave wrong sizes, without a model being run.

Each fault is planted where a model is pruned. Where the result does not run, or makes outputs of another shape, the
rules have to say so. They are silent about sizes that depend on what is fed, and about limits of single kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import test_planted_faults
import test_planted_rare_faults
from exactness import random_feeds, random_keep, run_model
from onnx import ModelProto
from planted import SHARES, tried

from onnxprune.bodies import laid_out
from onnxprune.consistency import assert_consistent
from onnxprune.errors import ModelError, VerificationError
from onnxprune.graph import Graph
from onnxprune.ops import build_map
from onnxprune.passes.masked import masked_reference
from onnxprune.passes.rewrite import rewrite

OF_SIZE = (
    *(f"{op} not resized" for op in (
        "Conv", "ConvInteger", "ConvTranspose", "Expand", "Gather", "GroupNormalization", "Pad", "QLinearConv",
        "Reshape", "Slice", "Split", "Squeeze")),
    *(f"heads of {op} not counted" for op in (
        "Attention", "com.microsoft.Attention", "com.microsoft.GroupQueryAttention",
        "com.microsoft.MultiHeadAttention", "com.microsoft.RotaryEmbedding")),
    *(f"units of {op} not counted" for op in ("GRU", "LSTM", "RNN")),
    "bias not sliced", "biases of integers not sliced", "branch uncoupled", "captured constants not sliced",
    "computed target unchanged", "heads not rectangular", "keys taken for values", "mask of every head whole",
    "pairs of a rotation not coupled", "scales not sliced", "Split sizes reversed", "states not coupled",
    "unfrozen: coupled with a fixed size", "unfrozen: one channel broadcast over many", "wrong axis",
    "zero points not sliced",
)  # fmt: skip
FAULTS = {fault.name: fault for fault in (*test_planted_faults.FAULTS, *test_planted_rare_faults.FAULTS)}
WRONG = 4  # results of wrong sizes that are looked at


@dataclass(frozen=True)
class Pruned:
    masked: ModelProto
    model: ModelProto

    def has_wrong_sizes(self, seed: int) -> bool:
        feeds = random_feeds(self.masked, np.random.default_rng(seed))
        expected = run_model(self.masked, feeds)
        try:
            found = run_model(self.model, feeds)
        except Exception:  # its own exception types
            return True
        return any(a.shape != b.shape for a, b in zip(expected, found, strict=True))


def pruned(model: ModelProto, seed: int) -> Pruned | None:
    """The model without some channels; None where the rewriter itself has noticed."""
    try:
        channel_map = build_map(Graph(laid_out(model)))
        keep = random_keep(channel_map, SHARES[seed % 2], np.random.default_rng(seed))
        return Pruned(masked_reference(channel_map, keep), rewrite(channel_map, keep))
    except (IndexError, ModelError, ValueError):
        return None


def is_refused(model: ModelProto, original: ModelProto) -> bool:
    try:
        assert_consistent(model, original)
    except VerificationError:
        return True
    return False


@pytest.mark.parametrize("name", OF_SIZE)
def test_wrong_sizes_are_noticed_without_a_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, noticed = 0, 0
    for seed, model in tried(FAULTS[name]):
        with monkeypatch.context() as planted:
            FAULTS[name].plant(planted)
            found = pruned(model, seed)
        if found is not None and found.has_wrong_sizes(seed):
            wrong += 1
            noticed += is_refused(found.model, model)
        if wrong == WRONG:
            break
    assert wrong
    assert noticed >= 0.75 * wrong, f"{noticed} of {wrong}"
