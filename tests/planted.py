"""Faults that are planted in the compiler, and the random models on which the contracts have to notice them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import pytest
from exactness import Array, assert_exact, assert_same_outputs
from generate_bodies import model_with_bodies
from generate_quantised import random_quantised_model
from onnx import GraphProto, ModelProto, numpy_helper
from random_models import random_model, unusual_model
from witness import feeds
from zeroed import with_zeros

import onnxprune
from onnxprune.channels import Ids, NodeContext
from onnxprune.graph import subgraphs
from onnxprune.ops.table import RULES, Rule

__all__ = ["SHARES", "Fault", "Plant", "assert_noticed", "tried", "unfrozen", "unresized"]

TRIED = 400  # models that have the operator
SHARES = 0.5, 0.9  # of the channels that leave

Plant = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[ModelProto, int], object]


@dataclass(frozen=True)
class Fault:
    """``op``: what models have to have to be tried, '' for any model. ``kind``: of models, and with it the contract."""

    name: str
    op: str
    plant: Plant
    kind: str = "usual"


def unresized(op: str) -> Plant:
    """A node keeps the sizes, positions or counts it spells out."""
    return lambda patch: patch.setitem(RULES, op, Rule(RULES[op].channels))


def unfrozen(reason: str) -> Plant:
    """What must stay for this reason may leave."""
    right = NodeContext.freeze

    def freeze(ctx: NodeContext, ids: Ids | None, why: str) -> None:
        if reason not in why:
            right(ctx, ids, why)

    return lambda patch: patch.setattr(NodeContext, "freeze", freeze)


def assert_noticed(fault: Fault, patch: pytest.MonkeyPatch) -> None:
    """The contract fails with the fault on some model on which it holds without.

    It fails by a wrong number, or by a model that does not run. The consistency rules are left out: they have a test of
    their own.
    """
    check = KINDS[fault.kind][1]
    for seed, model in tried(fault):
        with patch.context() as planted:
            for place in ("exactness", "onnxprune.pipeline"):
                planted.setattr(f"{place}.assert_consistent", lambda *args, **kwargs: None)
            fault.plant(planted)
            caught = _fails(check, model, seed)
        if caught and not _fails(check, model, seed):
            return
    pytest.fail(f"{fault.name} went unnoticed on {TRIED} models")


def _fails(check: Check, model: ModelProto, seed: int) -> bool:
    """Whether a contract fails on a model, for whatever reason: one that does not run always does."""
    try:
        check(model, seed)
    except Exception:
        return True
    return False


# ---- contracts ------------------------------------------------------------------------------------------------------


def exact(model: ModelProto, seed: int) -> None:
    """Pruned equals masked reference, for a random choice of channels."""
    assert_exact(model, SHARES[seed % 2], [seed])


def lossless(model: ModelProto, seed: int) -> None:
    """Without what is dead, the model computes the same."""
    assert_same_outputs(model, onnxprune.prune(model, check=False).model, feeds(model, seed))


# ---- models ---------------------------------------------------------------------------------------------------------


def zeroed(seed: int) -> ModelProto:
    """A usual model of which much is zero."""
    return with_zeros(random_model(seed), seed)


def at_zero_points(seed: int) -> ModelProto:
    """A quantised model: some filters hold their zero point alone, or zeros, and their biases are zero."""
    model, rng = random_quantised_model(seed), np.random.default_rng(seed)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QLinearConv" and all(node.input[k] in held for k in (3, 5)):
            weight, point = (numpy_helper.to_array(held[node.input[k]]) for k in (3, 5))
            gone, ones = rng.random(len(weight)) < 0.5, (1,) * (weight.ndim - 1)
            filled = point.reshape(-1, *ones) * rng.integers(2)
            _store(held[node.input[3]], np.where(gone.reshape(-1, *ones), filled, weight))
            if len(node.input) > 8 and node.input[8] in held:
                _store(held[node.input[8]], np.where(gone, 0, numpy_helper.to_array(held[node.input[8]])))
    return model


def _store(tensor: onnx.TensorProto, values: Array) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(numpy_helper.to_array(tensor).dtype), tensor.name))


KINDS: dict[str, tuple[Callable[[int], ModelProto], Check]] = {
    "usual": (random_model, exact),
    "unusual": (unusual_model, exact),
    "bodies": (model_with_bodies, exact),
    "quantised": (random_quantised_model, exact),
    "zeroed": (zeroed, lossless),
    "at zero points": (at_zero_points, lossless),
}
"""Name → models by seed, and the contract that they have to keep."""

_made = cache(lambda kind, seed: KINDS[kind][0](seed))


def tried(fault: Fault) -> Iterator[tuple[int, ModelProto]]:
    """Seeds and models that have the operator of the fault."""
    found = 0
    for seed in range(100 * TRIED):
        model: ModelProto = _made(fault.kind, seed)
        if not fault.op or fault.op in _operators([model.graph]):
            yield seed, model
            found += 1
            if found == TRIED:
                return


def _operators(graphs: Sequence[GraphProto]) -> set[str]:
    """Of graphs and their bodies."""
    nodes = [node for graph in graphs for node in graph.node]
    inside = [body for node in nodes for body in subgraphs(node)]
    names = {f"{node.domain}.{node.op_type}".lstrip(".") for node in nodes}
    return names | _operators(inside) if inside else names
