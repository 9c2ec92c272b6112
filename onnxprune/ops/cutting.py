"""Joining and cutting along an axis: Concat, Split, Slice, Gather, Pad.

Each rule cuts or joins the ids as the operator does the elements; the matching ``resize_…`` then corrects the sizes,
bounds, indices and amounts for the channels that remain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import FIXED_SIZE, Axes, Ids, NodeContext, Opaque, check_length
from onnxprune.editing import NodeEditor
from onnxprune.graph import attribute
from onnxprune.ops.movement import carry

__all__ = ["Bounds", "amounts_of", "concat", "gather", "is_whole", "joined", "pad", "resize_concat", "resize_gather",
           "resize_pad", "resize_slice", "resize_split", "slice_", "split"]  # fmt: skip


def concat(ctx: NodeContext) -> list[Axes]:
    """Operands one after another along an axis, https://onnx.ai/onnx/operators/onnx__Concat.html"""
    rest = {ctx.builder.rest.get(name) for name in ctx.node.input}
    if len(rest) == 1:
        ctx.rests(0, ctx.node.output[0])
    return joined(ctx, range(len(ctx.node.input)))


def joined(ctx: NodeContext, inputs: Sequence[int]) -> list[Axes]:
    """These inputs one after another."""
    rank = len(ctx.out_shape())
    axis = ctx.axis("axis", 1, rank)
    operands = {k: ctx.axes(k) for k in inputs}
    result: list[Ids | None] = []
    for a in range(rank):
        parts = {k: axes[a] for k, axes in operands.items()}
        if a == axis:
            result.append(_joined(ctx, parts, axis))
        elif any(ids is None for ids in parts.values()):
            for ids in parts.values():
                ctx.freeze(ids, FIXED_SIZE)
            result.append(None)
        else:
            first, *others = parts.values()
            for ids in others:
                ctx.unify(first, ids)
            result.append(first)
    if all(ctx.zeroed(k) or all(ids is None for ids in axes) for k, axes in operands.items()):
        ctx.builder.zero.add(ctx.node.output[0])
    return [tuple(result)]


def _joined(ctx: NodeContext, parts: Mapping[int, Ids | None], axis: int) -> Ids | None:
    """Ids along the axis of a Concat; a plain operand, or a stored one beside computed ones, contributes indices that
    never leave. Where all are stored, the result is itself a constant (a recurrent layer's gates in another order)."""
    stored = {k: ctx.is_constant(k) for k in parts}
    alike = all(stored.values())
    held = {k: ids if alike or not stored[k] else None for k, ids in parts.items()}
    for k, ids in parts.items():
        if stored[k] and not alike:
            ctx.freeze(ids, "a constant joined to computed channels")
    if all(ids is None for ids in held.values()):
        return None
    sizes = {k: ctx.shape(k)[axis] for k in parts}
    check_length(sum(sizes.values()))
    return np.concatenate([np.zeros(sizes[k], np.int32) if ids is None else ids for k, ids in held.items()])


def resize_concat(edit: NodeEditor) -> None:
    """Operands of which nothing is left are dropped."""
    left = [tensor for k, tensor in enumerate(edit.node.inputs) if not edit.emptied(k)]
    if len(left) < len(edit.node.inputs):
        edit.node.inputs = left


def split(ctx: NodeContext) -> list[Axes]:
    """An axis cut into parts, https://onnx.ai/onnx/operators/onnx__Split.html"""
    axes = ctx.axes(0)
    axis = ctx.axis("axis", 0, len(axes))
    sizes = [ctx.out_shape(k)[axis] for k in range(len(ctx.node.output))]
    ids = axes[axis]
    if sum(sizes) != ctx.shape(0)[axis]:
        raise Opaque("its parts do not add up")
    if ids is not None and not ctx.is_fixed(0, axis):
        raise Opaque("cuts an axis whose size depends on open dimensions")
    parts: list[Ids | None] = [None] * len(sizes)
    if ids is not None:
        parts = list(np.split(ids, np.cumsum(sizes)[:-1]))
    carried = [(*axes[:axis], part, *axes[axis + 1 :]) for part in parts]
    carry(ctx, axes)
    return carried


def resize_split(edit: NodeEditor) -> None:
    """The sizes of the parts follow; a part of which nothing is left is no longer an output."""
    rank = len(edit.axes(0))
    axis = int(edit.node.attrs.get("axis", 0)) % rank
    ids = edit.axes(0)[axis]
    if ids is None or not edit.changed(ids):
        return
    parts = [edit.out_axes(k)[axis] for k in range(len(edit.node.outputs))]
    left = [0 if part is None else edit.kept_count(part) for part in parts]
    stays = [size > 0 or part is None or not len(part) for part, size in zip(parts, left, strict=True)]
    edit.node.outputs = [tensor for tensor, kept in zip(list(edit.node.outputs), stays, strict=True) if kept]
    sizes = [size for size, kept in zip(left, stays, strict=True) if kept]
    edit.node.attrs.pop("num_outputs", None)
    if edit.opset < 13:
        edit.node.attrs["split"] = sizes
    else:
        edit.replace(1, np.array(sizes, np.int64))


def slice_(ctx: NodeContext) -> list[Axes]:
    """A range of indices along some axes, https://onnx.ai/onnx/operators/onnx__Slice.html"""
    axes, shape = list(ctx.axes(0)), ctx.shape(0)
    cut = Bounds.of(ctx)
    for a, ids in enumerate(axes):
        if ids is None or is_whole(ctx, cut, a):
            continue
        span = None if cut is None else cut.span(a, shape[a])
        if span is None or not ctx.is_fixed(0, a):
            ctx.freeze(ids, "cut at bounds computed at run time")
            axes[a] = None
        else:
            axes[a] = ids[span]
    return carry(ctx, tuple(axes))


def is_whole(ctx: NodeContext, cut: Bounds | None, axis: int) -> bool:
    """Whether all indices of an axis pass in their order, whatever the bounds say."""
    if cut is None:
        return False
    of, second = ctx.builder.shapes.of, ctx.builder.shapes.second
    same = all(held(ctx.node.input[0])[axis] == held(ctx.node.output[0])[axis] for held in (of.__getitem__, second))
    return axis not in cut.axes or (same and cut.steps[cut.axes.index(axis)] > 0)


@dataclass(frozen=True)
class Bounds:
    """What a Slice takes: of the axes ``axes``, bounds (None where they are computed at run time) and steps."""

    starts: list[int] | None
    ends: list[int] | None
    axes: list[int]
    steps: list[int]

    @staticmethod
    def of(ctx: NodeContext) -> Bounds | None:
        """Attributes before opset 10, then inputs; None where the axes or steps are computed at run time."""
        starts, ends = (ctx.integer_list(name) or ctx.integers(k) for name, k in (("starts", 1), ("ends", 2)))
        axes = ctx.integer_list("axes") or ctx.integers(3)
        steps = ctx.integers(4)
        if (axes is None and ctx.has(3)) or (steps is None and ctx.has(4)):
            return None
        count = len(starts or ends or axes or steps or ())
        if starts is None and ctx.has(1) and not count:
            count = ctx.shape(1)[0]
        rank = len(ctx.shape(0))
        return Bounds(starts, ends, [a % rank for a in (axes or range(count))], steps or [1] * count)

    def span(self, axis: int, size: int) -> slice | None:
        """The bounds of one axis as a Python slice: an end before the first element stays before it."""
        if self.starts is None or self.ends is None or axis not in self.axes:
            return None
        entry = self.axes.index(axis)
        start, end, step = self.starts[entry], self.ends[entry], self.steps[entry]
        return slice(start, None if step < 0 and end < -size else end, step)


def resize_slice(edit: NodeEditor) -> None:
    """Bounds move with the channels before them; a stepped range becomes a Gather of the indices that remain."""
    cut = Bounds.of(edit.context)
    if cut is None:
        return
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    steps: dict[int, int] = {}
    for a, ids in enumerate(edit.axes(0)):
        if ids is None or not edit.changed(ids) or a not in cut.axes or is_whole(edit.context, cut, a):
            continue
        entry = cut.axes.index(a)
        left = _left(edit, ids, cut.span(a, len(ids)))
        if cut.steps[entry] == 1:
            starts[entry] = int(left[0]) if len(left) else 0
            ends[entry] = starts[entry] + len(left)
        else:
            edit.gather_after(a, left)
            starts[entry], ends[entry], steps[entry] = 0, int(np.iinfo(np.int32).max), 1
    _set_bounds(edit, starts, ends, steps)


def _left(edit: NodeEditor, ids: Ids, span: slice | None) -> NDArray[np.int64]:
    """Where the indices that a range takes, and that remain, are now."""
    chosen = np.arange(len(ids))[span if span is not None else slice(None)]
    kept = edit.kept(ids)
    return (np.cumsum(kept) - 1)[chosen[kept[chosen]]]


def _set_bounds(edit: NodeEditor, starts: dict[int, int], ends: dict[int, int], steps: dict[int, int]) -> None:
    for name, k, entries in (("starts", 1, starts), ("ends", 2, ends), ("steps", 4, steps)):
        if entries and name in edit.node.attrs:
            held = edit.node.attrs[name]
            edit.node.attrs[name] = [entries.get(i, v) for i, v in enumerate(held)]
        elif entries:
            edit.override(k, entries)


def gather(ctx: NodeContext) -> list[Axes]:
    """Chosen indices of an axis; an embedding look-up; https://onnx.ai/onnx/operators/onnx__Gather.html"""
    axes = ctx.axes(0)
    axis = ctx.axis("axis", 0, len(axes))
    rank = len(ctx.shape(1))
    picked: list[Ids | None] = [None] * rank
    ids, chosen = axes[axis], ctx.integers(1)
    if ids is not None and (chosen is None or not ctx.is_fixed(0, axis)):
        ctx.freeze(ids, "looked up by an index computed at run time")
    elif ids is not None and rank != 1:
        ctx.freeze(ids[np.array(chosen)], "picked one by one")
    elif ids is not None:
        picked = [ids[np.array(chosen)]]
    if ctx.is_constant(0):
        ctx.mask_where_possible(0)
    return carry(ctx, (*axes[:axis], *picked, *axes[axis + 1 :]))


def resize_gather(edit: NodeEditor) -> None:
    """Indices are those of the channels that remain, counted anew."""
    axis = int(edit.node.attrs.get("axis", 0)) % len(edit.axes(0))
    ids = edit.axes(0)[axis]
    chosen = edit.context.integers(1)
    if ids is None or chosen is None or not edit.changed(ids):
        return
    kept = edit.kept(ids)
    wanted = np.array(chosen) % len(ids)
    left = (np.cumsum(kept) - 1)[wanted[kept[wanted]]]
    shape = edit.context.shape(1)
    edit.replace(1, left.astype(np.int64).reshape(-1 if len(shape) == 1 else shape))


def pad(ctx: NodeContext) -> list[Axes]:
    """Indices added at both ends of an axis, https://onnx.ai/onnx/operators/onnx__Pad.html"""
    axes = list(ctx.axes(0))
    amounts = amounts_of(ctx)
    constant = attribute(ctx.node, "mode") in (None, "constant")
    for a, ids in enumerate(axes):
        begin, end = (-1, -1) if amounts is None else amounts.get(a, (0, 0))
        if ids is None or begin == end == 0:
            continue
        if not constant or min(begin, end) < 0 or not ctx.is_fixed(0, a):
            ctx.freeze(ids, "padded along the channels")
            axes[a] = None
        else:
            before, after = ctx.builder.fresh(begin), ctx.builder.fresh(end)
            ctx.need(np.concatenate([before, after]), ids)
            axes[a] = np.concatenate([before, ids, after])
    if ctx.zeroed(0) and (not constant or _pads_with_zero(ctx)):
        ctx.builder.zero.add(ctx.node.output[0])
    return [tuple(axes)]


def _pads_with_zero(ctx: NodeContext) -> bool:
    """The value is an attribute before opset 11, then an input."""
    if ctx.has(2):
        graph, value = ctx.builder.graph, ctx.node.input[2]
        return value in graph.constants and not np.any(graph.values(value))
    return not attribute(ctx.node, "value")


def _pads(ctx: NodeContext) -> list[int] | None:
    """Amounts [begin…, end…]; an attribute before opset 11 (called ``paddings`` before opset 2)."""
    return ctx.integer_list("pads") or ctx.integer_list("paddings") or ctx.integers(1)


def _padded_axes(ctx: NodeContext) -> list[int] | None:
    """The axes that the amounts are for; since opset 18 perhaps not all."""
    rank = len(ctx.shape(0))
    named = ctx.integers(3) if ctx.has(3) else list(range(rank))
    return None if named is None else [a % rank for a in named]


def amounts_of(ctx: NodeContext) -> dict[int, tuple[int, int]] | None:
    """Axis → (before, after); None where they are computed at run time."""
    pads, named = _pads(ctx), _padded_axes(ctx)
    if pads is None or named is None:
        return None
    return {a: (pads[i], pads[i + len(named)]) for i, a in enumerate(named)}


def resize_pad(edit: NodeEditor) -> None:
    """Padded channels that are removed are no longer padded."""
    amounts, named = amounts_of(edit.context), _padded_axes(edit.context)
    if amounts is None or named is None:
        return
    changes: dict[int, int] = {}
    for entry, a in enumerate(named):
        ids = edit.out_axes(0)[a]
        if ids is not None and edit.changed(ids):
            kept = edit.kept(ids)
            changes[entry] = int(kept[: amounts[a][0]].sum())
            changes[entry + len(named)] = int(kept[len(kept) - amounts[a][1] :].sum())
    if changes and "pads" in edit.node.attrs:
        edit.node.attrs["pads"] = [changes.get(i, v) for i, v in enumerate(edit.node.attrs["pads"])]
    elif changes:
        edit.override(1, changes)
