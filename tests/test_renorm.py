"""Normalisations over the channels: what --allow-renorm opens, what is exact without it, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest
from exactness import Array, model_of
from onnx import ModelProto

import onnxprune
from onnxprune.errors import UnreachableError


def residual(norm: str, opset: int = 23, **weights: Array) -> ModelProto:
    """Two branches on a residual of 32 channels, each behind a normalisation."""
    text = f"""(float[2,5,6] x) => (float[2,5,4] y)
    {{ a = MatMul(x, w)
       n = {norm}(a, g)
       h = MatMul(n, u)
       f = Relu(h)
       d = MatMul(f, v)
       r = Add(a, d)
       m = {norm}(r, e)
       y = MatMul(m, o) }}"""
    held = {"w": (6, 32), "g": 32, "u": (32, 8), "v": (8, 32), "e": 32, "o": (32, 4), **weights}
    return model_of(text, opset, **held)


def test_without_a_sparsity_no_normalisation_runs_over_fewer_channels() -> None:
    unread = np.ones((32, 8), np.float32)
    unread[3] = 0
    output = np.ones((32, 4), np.float32)
    output[3] = 0
    result = onnxprune.prune(residual("LayerNormalization", u=unread, o=output), allow_renorm=True)
    assert result.verification is not None
    assert result.verification.ok
    assert not result.renormalised
    assert not result.plan.allow_renorm


def test_the_error_says_how_far_allow_renorm_would_go() -> None:
    model = residual("LayerNormalization")
    told = r"normalised over the channels.*with --allow-renorm .not exact., at most 0\.9"
    with pytest.raises(UnreachableError, match=told):
        onnxprune.prune(model, sparsity=0.9)
    result = onnxprune.prune(model, sparsity=0.9, allow_renorm=True)
    assert result.renormalised
    assert result.after.weights <= 0.1 * result.before.weights


@pytest.mark.parametrize("allow_renorm", [False, True])
def test_a_root_mean_square_over_fewer_channels_is_exact(allow_renorm: bool) -> None:
    norm = "RMSNormalization<epsilon=0.1>"
    result = onnxprune.prune(residual(norm), sparsity=0.9, allow_renorm=allow_renorm, method="magnitude")
    assert result.verification is not None
    assert result.verification.ok
    assert not result.renormalised
    assert result.after.weights <= 0.1 * result.before.weights


def test_a_sparsity_that_no_flag_reaches_mentions_none() -> None:
    with pytest.raises(UnreachableError) as raised:
        onnxprune.prune(residual("RMSNormalization"), sparsity=0.999)
    assert "--allow-renorm" not in str(raised.value)
