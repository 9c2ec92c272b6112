"""Faults planted where usual random models seldom come: attention, recurrent layers, normalisations that make up for
what left, quantised numbers, bodies, and the constants that dead channels carry.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from exactness import Array
from planted import Fault, Plant, assert_noticed, unfrozen, unresized

from onnxprune.bodies import BEGIN, END, number
from onnxprune.channels import Axes, ChannelMap, NodeContext
from onnxprune.editing import NodeEditor
from onnxprune.graph import Edge
from onnxprune.ops import attention, control, einsum, layer_norm, recurrent, rotary
from onnxprune.ops.table import RULES
from onnxprune.passes import constants, fold, norms, rewrite
from onnxprune.weights import weight_values

# ---- attention, recurrent layers ------------------------------------------------------------------------------------


def ignored(module: object, name: str) -> Plant:
    """A step that does nothing."""
    return lambda patch: patch.setattr(module, name, lambda *args, **kwargs: None)


def keys_taken_for_values(patch: pytest.MonkeyPatch) -> None:
    right = attention._attend
    patch.setattr(attention, "_attend", lambda ctx, q, k, v, way: right(ctx, q, v, k, way))


def bias_backwards(patch: pytest.MonkeyPatch) -> None:
    """The bias [q | k | v] taken for [v | k | q]."""
    right = attention._biased

    def wrong(ctx: NodeContext, index: int, parts: Any) -> Any:
        return right(ctx, index, parts[::-1])[::-1]

    patch.setattr(attention, "_biased", wrong)


def gates_interleaved(patch: pytest.MonkeyPatch) -> None:
    """Rows of a recurrent weight taken for unit by unit, not gate by gate."""
    patch.setattr(recurrent, "np", SimpleNamespace(**{**vars(np), "tile": np.repeat}))


# ---- normalisations -------------------------------------------------------------------------------------------------


def epsilon_kept(patch: pytest.MonkeyPatch) -> None:
    """γ makes up for the channels that left, ε does not."""

    def resize(edit: NodeEditor) -> None:
        before = edit.node.attrs["epsilon"]
        layer_norm.resize_rms_normalization(edit)
        edit.node.attrs["epsilon"] = before

    patch.setitem(RULES, "RMSNormalization", replace(RULES["RMSNormalization"], resize=resize))


# ---- quantised ------------------------------------------------------------------------------------------------------


def whole(kind: type[np.generic]) -> Plant:
    """Vectors of this type (scales, zero points, biases) are left as they are."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = rewrite.take_kept

        def wrong(values: Array, axes: Axes, keep: Any) -> Array:
            return values if values.ndim == 1 and values.dtype == kind else right(values, axes, keep)

        patch.setattr(rewrite, "take_kept", wrong)

    return plant


def weights_without_their_point(patch: pytest.MonkeyPatch) -> None:
    """A quantised weight of zeros taken for nothing, whatever its zero point."""
    patch.setattr(norms, "real_values", lambda graph, index, k: weight_values(graph, graph.nodes[index].input[k]))


# ---- bodies ---------------------------------------------------------------------------------------------------------


def not_coupled(patch: pytest.MonkeyPatch) -> None:
    """What branches, or iterations, make is not the same channels."""
    patch.setattr(control, "_same", lambda ctx, operands: ctx.axes(operands[0]))


def captured_whole(patch: pytest.MonkeyPatch) -> None:
    """Constants that bodies read are not sliced."""
    right = ChannelMap.constant_uses

    def wrong(channel_map: ChannelMap) -> dict[str, list[Edge]]:
        depth = np.cumsum([(n.domain == BEGIN) - (n.domain == END) for n in channel_map.graph.nodes])
        return {name: edges for name, edges in right(channel_map).items() if not any(depth[i] for i, _ in edges)}

    patch.setattr(ChannelMap, "constant_uses", wrong)


RESTORING = importlib.import_module("onnxprune.bodies.restore")  # its package has a function of the same name


def along_the_first_axis(patch: pytest.MonkeyPatch) -> None:
    """Slices of a Scan are taken for slices along the first axis."""
    patch.setattr(control, "number", lambda node, name: 0 if name == "axis" else number(node, name))


def outputs_of_a_branch_reversed(patch: pytest.MonkeyPatch) -> None:
    """The second body of a node is put back with its outputs in another order."""
    right = RESTORING._made

    def wrong(results: Any, i: int) -> Any:
        made = right(results, i)
        return made[::-1] if i == 1 else made

    patch.setattr(RESTORING, "_made", wrong)


def declared_as_before(patch: pytest.MonkeyPatch) -> None:
    """What goes in and out of bodies is declared in the sizes it had."""
    patch.setattr(RESTORING._Restorer, "_declaration", lambda self, value, name: value)


# ---- constants that dead channels carry -----------------------------------------------------------------------------


def borders_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A constant goes into a bias though there is padding, where it is missing at the borders."""
    for module in (constants, fold):
        patch.setattr(module, "is_padded", lambda node: False)


def factors_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A constant goes into the bias of a Gemm without its α."""
    patch.setattr(fold, "attribute", lambda node, name: None)


def constants_are_zero(patch: pytest.MonkeyPatch) -> None:
    """f(0) taken for 0, whatever f is."""
    right = constants._run
    patch.setattr(constants, "_run", lambda *args: None if (found := right(*args)) is None else np.zeros_like(found))


def anything_beyond_the_edge(patch: pytest.MonkeyPatch) -> None:
    """What a Pad puts at the edge is taken for what is inside."""
    patch.setattr(constants, "_at_the_edge", lambda channel_map, node, passed: passed)


MS = "com.microsoft."
FAULTS = (
    *(Fault(f"heads of {op} not counted", op, unresized(op), "unusual") for op in (
        "Attention", f"{MS}Attention", f"{MS}MultiHeadAttention", f"{MS}GroupQueryAttention", f"{MS}RotaryEmbedding")),
    Fault("keys taken for values", f"{MS}MultiHeadAttention", keys_taken_for_values, "unusual"),
    Fault("bias of queries taken for that of values", f"{MS}MultiHeadAttention", bias_backwards, "unusual"),
    Fault("scale of the narrower head", "Attention", ignored(attention, "_hold_scale"), "unusual"),
    Fault("mask of every head whole", "Attention", ignored(attention, "_bias"), "unusual"),
    Fault("pairs of a rotation not coupled", "RotaryEmbedding", ignored(rotary, "_turned"), "unusual"),
    *(Fault(f"units of {op} not counted", op, unresized(op), "unusual") for op in ("GRU", "LSTM", "RNN")),
    Fault("gates interleaved", "LSTM", gates_interleaved, "unusual"),
    Fault("one direction of two", "LSTM", unfrozen("direction of a recurrent layer"), "unusual"),
    Fault("states not coupled", "LSTM", ignored(recurrent, "_states"), "unusual"),
    Fault("summed letters not masked", "Einsum", ignored(einsum, "_prepare_sum"), "unusual"),
    *(Fault(f"{op} does not make up for what left", op, unresized(op), "unusual") for op in (
        "RMSNormalization", f"{MS}SkipSimplifiedLayerNormalization", "ReduceMean")),
    Fault("gain does not make up for what left", "RMSNormalization", ignored(NodeEditor, "scale"), "unusual"),
    Fault("epsilon does not make up for what left", "RMSNormalization", epsilon_kept, "unusual"),
    Fault("scales not sliced", "QLinearConv", whole(np.float32), "quantised"),
    Fault("zero points not sliced", "QLinearConv", whole(np.int8), "quantised"),
    Fault("biases of integers not sliced", "QLinearConv", whole(np.int32), "quantised"),
    *(Fault(f"{op} not resized", op, unresized(op), "quantised") for op in (
        "QLinearConv", "ConvInteger", f"{MS}QLinearConcat")),
    Fault("weights without their zero point", "QLinearConv", weights_without_their_point, "at zero points"),
    Fault("branches not coupled", "If", not_coupled, "bodies"),
    Fault("state not coupled", "Loop", not_coupled, "bodies"),
    Fault("Scan along the first axis", "Scan", along_the_first_axis, "bodies"),
    Fault("outputs of a branch reversed", "If", outputs_of_a_branch_reversed, "bodies"),
    Fault("bodies declared as before", "If", declared_as_before, "bodies"),
    Fault("captured constants not sliced", "If", captured_whole, "bodies"),
    Fault("constants dropped at borders", "Conv", borders_forgotten, "zeroed"),
    Fault("constants dropped", "Conv", ignored(fold._Weights, "add_bias"), "zeroed"),
    Fault("factors of a Gemm forgotten", "Gemm", factors_forgotten, "zeroed"),
    Fault("constants are zero", "Sigmoid", constants_are_zero, "zeroed"),
    Fault("padding taken for the inside", "Pad", anything_beyond_the_edge, "zeroed"),
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_noticed(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_noticed(fault, monkeypatch)
