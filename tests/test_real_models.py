"""Trained models found in public repositories. They are not part of the project; without them, these tests skip."""

from __future__ import annotations

from pathlib import Path

from witness import stored_weights

import onnxprune

_PRUNABLE = 25  # of them, at least, lose half of their weights


def _paths(real_models: Path) -> list[Path]:
    return sorted(real_models.glob("*.onnx"))


def test_half_of_the_weights_leave_or_it_is_said_why(real_models: Path) -> None:
    """``prune`` runs pruned and masked and raises where they differ, so a result is exact."""
    halved, refused = [], {}
    for path in _paths(real_models):
        try:
            result = onnxprune.prune(path, sparsity=0.5)
        except onnxprune.UnreachableError as error:
            refused[path.name] = error
            continue
        assert result.verification is not None
        assert result.verification.ok
        assert stored_weights(result.model) <= 0.5 * stored_weights(path)
        halved.append(path.name)
    assert len(halved) >= _PRUNABLE, refused
    for name, refusal in refused.items():
        assert refusal.reachable < 0.5, name
        assert "hang on" in str(refusal), name


def test_lossless_mode_leaves_the_outputs_alone(real_models: Path) -> None:
    for path in _paths(real_models):
        result = onnxprune.prune(path)
        assert result.verification is not None
        assert result.verification.ok, path.name
        assert not result.verification.interface, path.name


def test_frozen_and_free_weights_add_up(real_models: Path) -> None:
    for path in _paths(real_models):
        found = onnxprune.inspect(path)
        assert found.census.free + sum(found.census.frozen.values()) == stored_weights(path), path.name
