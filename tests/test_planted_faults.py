"""Faults planted in the rules and in the rewriter, each of which the check on random models has to notice.

A check that passes on everything proves nothing. Every fault here is one that was made, or nearly made, when the rules
were written; ``MODELS`` random models at most are tried until the check fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
from exactness import assert_exact
from numpy.typing import NDArray
from random_models import random_model

from onnxprune import channels, editing
from onnxprune.channels import Axes, ChannelMap, Ids, NodeContext
from onnxprune.editing import NodeEditor
from onnxprune.ops import cutting, movement, reshape, shuffle
from onnxprune.ops.table import RULES, Rule
from onnxprune.passes import masked, rewrite

MODELS = 1500
SHARES = 0.5, 0.9  # of the channels that leave

Plant = Callable[[pytest.MonkeyPatch], None]


@cache
def seeded(seed: int) -> onnx.ModelProto:
    return random_model(seed)


def noticed(patch: pytest.MonkeyPatch) -> bool:
    """Whether the check fails on one of the models, by a wrong number or by a model that does not run.

    The consistency rules are left out: they have a test of their own.
    """
    patch.setattr("exactness.assert_consistent", lambda *models: None)
    for seed in range(MODELS):
        try:
            assert_exact(seeded(seed), SHARES[seed % 2], [seed])
        except Exception:
            return True
    return False


# ---- faults of the rewriter -----------------------------------------------------------------------------------------


def unresized(op: str) -> Plant:
    """A node keeps the sizes, positions or counts it spells out."""
    return lambda patch: patch.setitem(RULES, op, Rule(RULES[op].channels))


def first_instead_of_kept(patch: pytest.MonkeyPatch) -> None:
    """As many numbers of a constant as are kept, but not the right ones."""

    def take(values: NDArray[np.generic], axes: Axes, keep: NDArray[np.bool_]) -> NDArray[np.generic]:
        for axis, ids in enumerate(axes):
            if ids is not None:
                values = np.take(values, np.arange(np.count_nonzero(keep[ids])), axis=axis)
        return np.asarray(values, order="C")

    patch.setattr(rewrite, "take_kept", take)


def wrong_axis(patch: pytest.MonkeyPatch) -> None:
    """The axes of a constant in the opposite order."""
    right = rewrite.take_kept
    patch.setattr(rewrite, "take_kept", lambda values, axes, keep: right(values, axes[::-1], keep))


def unsliced_bias(patch: pytest.MonkeyPatch) -> None:
    """Constants of one axis are left as they are."""
    right = rewrite.take_kept
    patch.setattr(
        rewrite, "take_kept", lambda values, axes, keep: values if values.ndim == 1 else right(values, axes, keep)
    )


def slice_one_off(patch: pytest.MonkeyPatch) -> None:
    """Bounds of a Slice one too far."""
    right = cutting._left
    patch.setattr(cutting, "_left", lambda edit, ids, span: np.maximum(right(edit, ids, span) - 1, 0))


def gather_not_renumbered(patch: pytest.MonkeyPatch) -> None:
    """Indices of a Gather as they were, where they still exist."""

    def resize(edit: NodeEditor) -> None:
        axis = int(edit.node.attrs.get("axis", 0))
        ids, chosen = edit.axes(0)[axis], edit.context.integers(1)
        if ids is not None and chosen is not None:
            wanted = np.array(chosen) % len(ids)
            left = wanted[edit.kept(ids)[wanted]]
            edit.replace(1, np.minimum(left, edit.kept_count(ids) - 1).astype(np.int64))

    patch.setitem(RULES, "Gather", replace(RULES["Gather"], resize=resize))


def concat_reversed(patch: pytest.MonkeyPatch) -> None:
    """Operands of a Concat in the opposite order."""

    def resize(edit: NodeEditor) -> None:
        cutting.resize_concat(edit)
        edit.node.inputs = list(edit.node.inputs)[::-1]

    patch.setitem(RULES, "Concat", replace(RULES["Concat"], resize=resize))


def split_sizes_reversed(patch: pytest.MonkeyPatch) -> None:
    right = NodeEditor.replace

    def wrong(edit: NodeEditor, k: int, value: NDArray[np.generic]) -> None:
        right(edit, k, value[::-1] if edit.node.op == "Split" else value)

    patch.setattr(editing.NodeEditor, "replace", wrong)


def shuffle_undone(patch: pytest.MonkeyPatch) -> None:
    """A shuffle of which channels left passes the others in their old order."""
    right = shuffle.find_shuffles

    def wrong(*args: object) -> dict[int, channels.Shuffle]:
        found = right(*args)  # type: ignore[arg-type]
        return {i: replace(s, order=np.arange(len(s.order))) for i, s in found.items()}

    patch.setattr("onnxprune.ops.table.find_shuffles", wrong)


def shapes_not_restored(patch: pytest.MonkeyPatch) -> None:
    """Arithmetic on sizes sees those of the pruned model."""
    patch.setattr(rewrite._Rewriter, "_restore_shape", lambda *args: None)


def computed_target_unchanged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NodeEditor, "shrink", lambda *args: None)


def guessed_batch_spelled_out(patch: pytest.MonkeyPatch) -> None:
    """Computed sizes are overwritten by what they are for the guessed batch."""

    def wrong(edit: NodeEditor, k: int, sizes: dict[int, tuple[int, int]]) -> None:
        shape = edit.context.out_shape()
        edit.replace(k, np.array([sizes[a][0] if a in sizes else n for a, n in enumerate(shape)], np.int64))

    patch.setattr(NodeEditor, "shrink", wrong)


# ---- faults of the masked reference ---------------------------------------------------------------------------------


def bias_not_masked(patch: pytest.MonkeyPatch) -> None:
    """Only weights are set to zero: a removed channel still carries its bias."""
    right = masked._masked_names

    def wrong(channel_map: ChannelMap) -> list[str]:
        return [name for name in right(channel_map) if len(channel_map.graph.constants[name].dims) > 1]

    patch.setattr(masked, "_masked_names", wrong)


def inputs_not_masked(patch: pytest.MonkeyPatch) -> None:
    """Weights are set to zero along the first axis only."""
    right = masked._axes
    patch.setattr(masked, "_axes", lambda channel_map, edge: right(channel_map, edge)[:1])


def zero_point_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A quantised weight is set to 0, not to its zero point."""
    patch.setattr(masked, "zeros", lambda channel_map, edge, shape: np.zeros(shape, np.int8))


# ---- faults of the rules --------------------------------------------------------------------------------------------


def zero_stays(op: str) -> Plant:
    """f(0) ≠ 0 taken for f(0) = 0."""

    def rule(ctx: NodeContext) -> list[Axes]:
        outputs = RIGHT[op].channels(ctx)
        ctx.builder.zero.add(ctx.node.output[0])
        return outputs

    return lambda patch: patch.setitem(RULES, op, replace(RULES[op], channels=rule))


RIGHT = dict(RULES)


def unfrozen(reason: str) -> Plant:
    """What must stay for this reason may leave."""
    right = NodeContext.freeze

    def freeze(ctx: NodeContext, ids: Ids | None, why: str) -> None:
        if reason not in why:
            right(ctx, ids, why)

    return lambda patch: patch.setattr(NodeContext, "freeze", freeze)


def sharing_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A constant read in two places is not coupled."""
    patch.setattr(channels, "_couple_shared_constants", lambda builder: None)


def heads_not_rectangular(patch: pytest.MonkeyPatch) -> None:
    """A Reshape that splits channels does not couple them along the other axis."""
    right = reshape._collapse

    def wrong(ctx: NodeContext, joint: Ids) -> list[Ids | None]:
        left = len(ctx.builder.left), len(ctx.builder.right)
        found = right(ctx, joint)
        del ctx.builder.left[left[0] :], ctx.builder.right[left[1] :]
        return found

    patch.setattr(reshape, "_collapse", wrong)


def crd_taken_for_dcr(patch: pytest.MonkeyPatch) -> None:
    """The mode of a DepthToSpace is not looked at."""

    def rule(ctx: NodeContext) -> list[Axes]:
        mode = [held for held in ctx.node.attribute if held.name == "mode"]
        old = [held.s for held in mode]
        for held in mode:
            held.s = b"DCR"
        outputs = movement.depth_to_space(ctx)
        for held, value in zip(mode, old, strict=True):
            held.s = value
        return outputs

    patch.setitem(RULES, "DepthToSpace", Rule(rule))


def branch_uncoupled(patch: pytest.MonkeyPatch) -> None:
    """The second operand of an element-wise operator is not coupled to the first."""

    def wrong(ctx: NodeContext) -> list[Axes]:
        return [ctx.axes(0)] if ctx.shape(0) == ctx.shape(1) else RIGHT["Add"].channels(ctx)

    patch.setitem(RULES, "Add", Rule(wrong))


def needs_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A contraction may lose all its inputs."""
    patch.setattr(NodeContext, "need", lambda *args: None)


FAULTS: dict[str, Plant] = {
    **{f"{op} not resized": unresized(op) for op in (
        "Concat", "Conv", "ConvTranspose", "Expand", "Gather", "GroupNormalization", "Pad", "Reshape", "Resize",
        "Slice", "Split", "Squeeze")},
    "another part of a constant": first_instead_of_kept,
    "wrong axis": wrong_axis,
    "bias not sliced": unsliced_bias,
    "Slice one off": slice_one_off,
    "Gather not renumbered": gather_not_renumbered,
    "Concat reversed": concat_reversed,
    "Split sizes reversed": split_sizes_reversed,
    "shuffle undone": shuffle_undone,
    "shapes not restored": shapes_not_restored,
    "computed target unchanged": computed_target_unchanged,
    "guessed batch spelled out": guessed_batch_spelled_out,
    "bias not masked": bias_not_masked,
    "inputs not masked": inputs_not_masked,
    "zero point forgotten": zero_point_forgotten,
    **{f"{op} keeps zero": zero_stays(op) for op in ("Sigmoid", "Exp", "Cos", "Clip", "Add")},
    **{f"unfrozen: {reason}": unfrozen(reason) for reason in (
        "one channel broadcast over many", "over the channels", "though removal does not make it zero", "padded along",
        "convolved over", "picked one by one", "coupled with an axis of fixed size")},
    "sharing forgotten": sharing_forgotten,
    "heads not rectangular": heads_not_rectangular,
    "CRD taken for DCR": crd_taken_for_dcr,
    "branch uncoupled": branch_uncoupled,
    "needs forgotten": needs_forgotten,
}  # fmt: skip


@pytest.mark.parametrize("plant", FAULTS.values(), ids=FAULTS.keys())
def test_fault_is_noticed(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert noticed(monkeypatch)
