"""Faults planted in the rules and in the rewriter, each of which the check on random models has to notice.

A check that passes on everything proves nothing. Every fault here is one that was made, or nearly made, when the rules
were written.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from planted import Fault, Plant, assert_noticed, unfrozen, unresized

from onnxprune import channels, editing
from onnxprune.channels import Axes, ChannelMap, Ids, NodeContext
from onnxprune.editing import NodeEditor
from onnxprune.ops import cutting, movement, reshape, shuffle
from onnxprune.ops.table import RULES, Rule
from onnxprune.passes import masked, rewrite

# ---- faults of the rewriter -----------------------------------------------------------------------------------------


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


def concat_one_off(patch: pytest.MonkeyPatch) -> None:
    """Every operand of a Concat one channel further on."""
    right = cutting._joined

    def wrong(*args: object) -> Ids | None:
        ids = right(*args)  # type: ignore[arg-type]
        return None if ids is None else np.roll(ids, 1)

    patch.setattr(cutting, "_joined", wrong)


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
    right = masked._cuts

    def wrong(channel_map: ChannelMap, keep: NDArray[np.bool_]) -> Any:
        found = right(channel_map, keep)
        return {name: cuts for name, cuts in found.items() if len(channel_map.graph.constants[name].dims) > 1}

    patch.setattr(masked, "_cuts", wrong)


def inputs_not_masked(patch: pytest.MonkeyPatch) -> None:
    """Weights are set to zero along the first axis only."""
    right = masked._cuts

    def wrong(channel_map: ChannelMap, keep: NDArray[np.bool_]) -> Any:
        return {n: [cut for cut in cuts if cut.axis == 0] for n, cuts in right(channel_map, keep).items()}

    patch.setattr(masked, "_cuts", wrong)


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


FAULTS = (
    *(Fault(f"{op} not resized", op, unresized(op)) for op in (
        "Concat", "Conv", "Expand", "Gather", "GroupNormalization", "Pad", "Reshape", "Resize",
        "Slice", "Split", "Squeeze")),
    Fault("ConvTranspose not resized", "ConvTranspose", unresized("ConvTranspose"), "unusual"),
    Fault("another part of a constant", "", first_instead_of_kept),
    Fault("wrong axis", "", wrong_axis),
    Fault("bias not sliced", "", unsliced_bias),
    Fault("Slice one off", "Slice", slice_one_off),
    Fault("Gather not renumbered", "Gather", gather_not_renumbered),
    Fault("Concat one off", "Concat", concat_one_off),
    Fault("Concat reversed", "Concat", concat_reversed),
    Fault("Split sizes reversed", "Split", split_sizes_reversed),
    Fault("shuffle undone", "Reshape", shuffle_undone),
    Fault("shapes not restored", "Shape", shapes_not_restored),
    Fault("computed target unchanged", "Shape", computed_target_unchanged),
    Fault("guessed batch spelled out", "Shape", guessed_batch_spelled_out),
    Fault("bias not masked", "", bias_not_masked),
    Fault("inputs not masked", "", inputs_not_masked),
    Fault("zero point forgotten", "DequantizeLinear", zero_point_forgotten),
    *(Fault(f"{op} keeps zero", op, zero_stays(op)) for op in ("Sigmoid", "Cos", "Clip")),
    Fault("Exp keeps zero", "Exp", zero_stays("Exp"), "unusual"),
    Fault("Add keeps zero", "Concat", zero_stays("Add")),
    Fault("unfrozen: one channel broadcast over many", "", unfrozen("one channel broadcast over many")),
    Fault("unfrozen: over the channels", "", unfrozen("over the channels")),
    Fault("unfrozen: not zero once removed", "Slice", unfrozen("though removal does not make it zero")),
    Fault("unfrozen: padded along", "Pad", unfrozen("padded along")),
    Fault("unfrozen: convolved over", "Conv", unfrozen("convolved over")),
    Fault("unfrozen: picked one by one", "Gather", unfrozen("picked one by one")),
    Fault("unfrozen: coupled with a fixed size", "", unfrozen("coupled with an axis of fixed size")),
    Fault("sharing forgotten", "", sharing_forgotten),
    Fault("heads not rectangular", "Reshape", heads_not_rectangular),
    Fault("CRD taken for DCR", "DepthToSpace", crd_taken_for_dcr),
    Fault("branch uncoupled", "Add", branch_uncoupled),
    Fault("needs forgotten", "", needs_forgotten),
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_noticed(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_noticed(fault, monkeypatch)
