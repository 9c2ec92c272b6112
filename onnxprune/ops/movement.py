"""Movement: operators that carry channels elsewhere without computing anything.

Each rule carries the ids of every axis to where its indices go; the matching ``resize_…`` then corrects the constants
that spell out sizes and positions (Reshape targets, Split sizes, Slice bounds, Gather indices, Pad amounts).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from onnxprune.channels import Axes, Ids, NodeContext, Opaque
from onnxprune.editing import NodeEditor

__all__ = ["concat", "constant_of_shape", "depth_to_space", "expand", "flatten", "gather", "pad", "reshape", "resize_concat",
           "resize_gather", "resize_pad", "resize_shape_input", "resize_slice", "resize_split", "slice_", "space_to_depth",
           "split", "squeeze", "tile", "transpose", "unsqueeze"]  # fmt: skip


def _carry(ctx: NodeContext, axes: Axes, k: int = 0) -> list[Axes]:
    """One output with these axes; zero stays zero."""
    if ctx.zeroed(k):
        ctx.builder.zero.update(name for name in ctx.node.output if name)
    return [axes]


def transpose(ctx: NodeContext) -> list[Axes]:
    """Axes in another order, https://onnx.ai/onnx/operators/onnx__Transpose.html"""
    axes = ctx.axes(0)
    order = ctx.integer_list("perm") or range(len(axes))[::-1]
    return _carry(ctx, tuple(axes[i] for i in order))


# ---- Reshape and its relatives --------------------------------------------------------------------------------------


def reshape(ctx: NodeContext) -> list[Axes]:
    """The same elements under other sizes, https://onnx.ai/onnx/operators/onnx__Reshape.html"""
    return _carry(ctx, _reshaped(ctx, ctx.shape(0), ctx.out_shape(), ctx.axes(0)))


flatten = reshape


def _reshaped(ctx: NodeContext, before: Sequence[int], after: Sequence[int], axes: Axes) -> Axes:
    result: list[Ids | None] = [None] * len(after)
    for old, new in _blocks(before, after):
        for axis, ids in zip(new, _block(ctx, old, new, before, after, axes), strict=True):
            result[axis] = ids
    return tuple(result)


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Split both shapes into the smallest runs of axes with equal products: the parts of a Reshape that do not mix."""
    if prod(before) != prod(after) or 0 in before:
        raise Opaque("the sizes guessed for the open dimensions do not fit this Reshape")
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = list(range(i, min(i + 1, len(before)))), list(range(j, min(j + 1, len(after))))
        i, j = i + len(old), j + len(new)
        while prod(before[a] for a in old) != prod(after[a] for a in new):
            if prod(before[a] for a in old) < prod(after[a] for a in new):
                old.append(i)
                i += 1
            else:
                new.append(j)
                j += 1
        yield old, new


def _block(ctx: NodeContext, old: list[int], new: list[int], before: Sequence[int], after: Sequence[int],
           axes: Axes) -> list[Ids | None]:  # fmt: skip
    """Channels of one independent run of axes."""
    labelled = [a for a in old if axes[a] is not None]
    if not labelled:
        return [None] * len(new)
    if not new:
        for a in labelled:
            ctx.freeze(axes[a], "its axis is dropped")
        return []
    carrier = max(labelled, key=lambda a: before[a])
    for a in labelled:
        if a != carrier and before[a] == 1 or a != carrier:
            ctx.freeze(axes[a], "merged with another channel axis")
    ids = axes[carrier]
    assert ids is not None
    wide = [a for a in new if after[a] != 1]
    if before[carrier] == prod(before[a] for a in old) and len(wide) == 1:
        return [ids if a == wide[0] else None for a in new]
    joint = np.broadcast_to(
        ids.reshape([-1 if a == carrier else 1 for a in old]), [before[a] for a in old]
    ).reshape([after[a] for a in new])  # fmt: skip
    return _collapse(ctx, joint)


def _collapse(ctx: NodeContext, joint: Ids) -> list[Ids | None]:
    """Channels that vary along several axes must stay rectangular: one axis keeps them, the others couple them."""
    varying = [a for a in range(joint.ndim) if joint.shape[a] > 1 and not _constant_along(joint, a)]
    if not varying:
        position = int(np.argmax(joint.shape)) if joint.size > 1 else 0
        return [joint.ravel()[: joint.shape[a]] if a == position else None for a in range(joint.ndim)]
    axis = varying[0] if len(varying) == 1 else ctx.choose(varying, joint.shape)
    lines = np.moveaxis(joint, axis, 0).reshape(joint.shape[axis], -1)
    if len(varying) > 1:
        ctx.builder.unify(lines[:, :1], lines)
        ctx.site(lines[:, 0])
    return [np.ascontiguousarray(lines[:, 0]) if a == axis else None for a in range(joint.ndim)]


def _constant_along(joint: Ids, axis: int) -> bool:
    return bool(np.all(joint == np.take(joint, [0], axis=axis)))


def squeeze(ctx: NodeContext) -> list[Axes]:
    """Drop axes of size 1, https://onnx.ai/onnx/operators/onnx__Squeeze.html"""
    axes, shape = ctx.axes(0), ctx.shape(0)
    named = ctx.integer_list("axes") or (ctx.integers(1) if ctx.has(1) else None)
    gone = {a % len(shape) for a in named} if named else {a for a, size in enumerate(shape) if size == 1}
    for a in gone:
        ctx.freeze(axes[a], "its axis is dropped")
    return _carry(ctx, tuple(ids for a, ids in enumerate(axes) if a not in gone))


def unsqueeze(ctx: NodeContext) -> list[Axes]:
    """Add axes of size 1, https://onnx.ai/onnx/operators/onnx__Unsqueeze.html"""
    rank = len(ctx.out_shape())
    named = ctx.integer_list("axes") or ctx.integers(1)
    if named is None:
        raise Opaque("its axes are computed at run time")
    added, held = {a % rank for a in named}, iter(ctx.axes(0))
    return _carry(ctx, tuple(None if a in added else next(held) for a in range(rank)))


def resize_shape_input(edit: NodeEditor) -> None:
    """Reshape, Expand, Resize, ConstantOfShape: the sizes given as an input follow the channels that remain."""
    k = {"ConstantOfShape": 0, "Resize": 3}.get(edit.node.op, 1)
    sizes = {a: edit.kept_count(ids) for a, ids in enumerate(edit.out_axes(0)) if ids is not None and edit.changed(ids)}
    if not sizes:
        return
    if "shape" in edit.node.attrs:  # Reshape before opset 5
        edit.node.attrs["shape"] = [sizes.get(a, d) for a, d in enumerate(edit.node.attrs["shape"])]
    elif k < len(edit.node.inputs) and not edit.node.inputs[k].is_empty():
        edit.override(k, sizes, keep=(-1, 0) if edit.node.op == "Reshape" else (1,) if edit.node.op == "Expand" else ())


# ---- joining and cutting --------------------------------------------------------------------------------------------


def concat(ctx: NodeContext) -> list[Axes]:
    """Operands one after another along an axis, https://onnx.ai/onnx/operators/onnx__Concat.html"""
    rank = len(ctx.out_shape())
    axis = ctx.axis("axis", 1, rank)
    operands = [ctx.axes(k) for k in range(len(ctx.node.input))]
    result: list[Ids | None] = []
    for a in range(rank):
        parts = [axes[a] for axes in operands]
        if a == axis:
            result.append(_joined(ctx, parts, axis))
        elif any(ids is None for ids in parts):
            for ids in parts:
                ctx.freeze(ids, "coupled with an axis of fixed size")
            result.append(None)
        else:
            for ids in parts[1:]:
                ctx.unify(parts[0], ids)
            result.append(parts[0])
    if all(ctx.zeroed(k) or operands[k][axis] is None for k in range(len(operands))):
        ctx.builder.zero.add(ctx.node.output[0])
    return [tuple(result)]


def _joined(ctx: NodeContext, parts: list[Ids | None], axis: int) -> Ids | None:
    """Ids along the axis of a Concat; a plain or stored operand contributes indices that never leave."""
    pieces: list[Ids] = []
    for k, ids in enumerate(parts):
        if ids is not None and ctx.is_constant(k):
            ctx.freeze(ids, "a constant joined to computed channels")
        pieces.append(np.zeros(ctx.shape(k)[axis], np.int32) if ids is None else ids)
    return None if all(ids is None for ids in parts) else np.concatenate(pieces)


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
    parts: list[Ids | None] = [None] * len(sizes)
    if ids is not None:
        parts = list(np.split(ids, np.cumsum(sizes)[:-1]))
    carried = [(*axes[:axis], part, *axes[axis + 1 :]) for part in parts]
    _carry(ctx, axes)
    return carried


def resize_split(edit: NodeEditor) -> None:
    """The sizes of the parts follow; a part of which nothing is left is no longer an output."""
    rank = len(edit.axes(0))
    axis = int(edit.node.attrs.get("axis", 0)) % rank
    ids = edit.axes(0)[axis]
    if ids is None or not edit.changed(ids):
        return
    parts = [edit.out_axes(k)[axis] for k in range(len(edit.node.outputs))]
    sizes = [0 if part is None else edit.kept_count(part) for part in parts]
    edit.node.outputs = [t for t, size in zip(list(edit.node.outputs), sizes, strict=True) if size]
    sizes = [size for size in sizes if size]
    edit.node.attrs.pop("num_outputs", None)
    if edit.opset < 13:
        edit.node.attrs["split"] = sizes
    else:
        edit.replace(1, np.array(sizes, np.int64))


def slice_(ctx: NodeContext) -> list[Axes]:
    """A range of indices along some axes, https://onnx.ai/onnx/operators/onnx__Slice.html"""
    axes, shape = list(ctx.axes(0)), ctx.shape(0)
    ranges = _ranges(ctx, shape)
    for a, ids in enumerate(axes):
        if ids is None or (ranges is not None and a not in ranges):
            continue
        if ranges is None or ranges[a] is None:
            if ctx.out_shape()[a] == shape[a]:
                continue  # the whole axis, whatever the bounds say
            ctx.freeze(ids, "cut at bounds computed at run time")
            axes[a] = None
        else:
            axes[a] = ids[ranges[a]]
    return _carry(ctx, tuple(axes))


def _ranges(ctx: NodeContext, shape: Sequence[int]) -> dict[int, slice | None] | None:
    """Axis → range of indices; None for a range (or for all) that is not known."""
    if ctx.integer_list("starts") is not None:
        starts, ends = ctx.integer_list("starts"), ctx.integer_list("ends")
        axes, steps = ctx.integer_list("axes"), None
    else:
        starts, ends = ctx.integers(1), ctx.integers(2)
        axes = ctx.integers(3) if ctx.has(3) else None
        steps = ctx.integers(4) if ctx.has(4) else None
        if ctx.has(3) and axes is None or ctx.has(4) and steps is None:
            return None
    count = len(starts or ends or ())
    axes = [a % len(shape) for a in (axes if axes is not None else range(count))]
    if starts is None or ends is None:
        return dict.fromkeys(axes) if axes else None
    steps = steps or [1] * count
    return {a: _bounds(s, e, step, shape[a]) for a, s, e, step in zip(axes, starts, ends, steps, strict=True)}


def _bounds(start: int, end: int, step: int, size: int) -> slice:
    """ONNX's bounds as a Python slice: an end before the first element stays before it."""
    if step < 0 and end < -size:
        return slice(start, None, step)
    return slice(start, end, step)


def resize_slice(edit: NodeEditor) -> None:
    """Bounds move with the channels before them; a stepped range becomes a Gather of the indices that remain."""
    moved = {a: ids for a, ids in enumerate(edit.axes(0)) if ids is not None and edit.changed(ids)}
    ranges = _ranges(edit.context, edit.context.shape(0)) or {}
    for a, ids in moved.items():
        span = ranges.get(a)
        if span is None:
            continue
        positions = np.cumsum(edit.kept(ids)) - 1
        chosen = np.arange(len(ids))[span]
        left = positions[chosen[edit.kept(ids)[chosen]]]
        if span.step is None or span.step == 1:
            _set_bounds(edit, a, int(left[0]), int(left[-1]) + 1) if len(left) else None
        else:
            edit.gather_after(a, left)
            _set_bounds(edit, a, 0, int(np.iinfo(np.int32).max), 1)


def _set_bounds(edit: NodeEditor, axis: int, start: int, end: int, step: int | None = None) -> None:
    rank = len(edit.axes(0))
    if "starts" in edit.node.attrs:
        named = edit.node.attrs.get("axes") or range(len(edit.node.attrs["starts"]))
        entry = [a % rank for a in named].index(axis)
        for name, value in (("starts", start), ("ends", end)):
            edit.node.attrs[name] = [value if i == entry else v for i, v in enumerate(edit.node.attrs[name])]
        return
    listed = edit.context.integers(3) if edit.context.has(3) else None
    starts = edit.context.integers(1)
    count = len(starts if starts is not None else edit.context.integers(2) or ())
    entry = [a % rank for a in (listed if listed is not None else range(count))].index(axis)
    edit.override(1, {entry: start})
    edit.override(2, {entry: end})
    if step is not None:
        edit.override(4, {entry: step})


def gather(ctx: NodeContext) -> list[Axes]:
    """Chosen indices of an axis; an embedding look-up; https://onnx.ai/onnx/operators/onnx__Gather.html"""
    axes = ctx.axes(0)
    axis = ctx.axis("axis", 0, len(axes))
    rank = len(ctx.shape(1))
    picked: list[Ids | None] = [None] * rank
    ids, chosen = axes[axis], ctx.integers(1)
    if ids is not None and (chosen is None or rank != 1):
        which = ids if chosen is None else ids[np.array(chosen)]
        ctx.freeze(which, "looked up by an index computed at run time" if chosen is None else "picked one by one")
    elif ids is not None and chosen is not None:
        picked = [ids[np.array(chosen)]]
    if ctx.is_constant(0):
        ctx.mask(0)
    return _carry(ctx, (*axes[:axis], *picked, *axes[axis + 1 :]))


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
    edit.replace(1, left.astype(np.int64).reshape(-1 if len(edit.context.shape(1)) else ()))


def pad(ctx: NodeContext) -> list[Axes]:
    """Indices added at both ends of an axis, https://onnx.ai/onnx/operators/onnx__Pad.html"""
    axes, shape, out = list(ctx.axes(0)), ctx.shape(0), ctx.out_shape()
    amounts = _pads(ctx)
    named = ctx.integers(3) if ctx.has(3) else None
    for a, ids in enumerate(axes):
        if ids is None or shape[a] == out[a]:
            continue
        mode = ctx.node.attribute
        constant = all(held.name != "mode" or held.s == b"constant" for held in mode)
        if amounts is None or named is not None or not constant or min(amounts[a], amounts[a + len(shape)]) < 0:
            ctx.freeze(ids, "padded along the channels")
            axes[a] = None
        else:
            axes[a] = np.concatenate([ctx.builder.fresh(amounts[a]), ids, ctx.builder.fresh(amounts[a + len(shape)])])
    zero_padding = not ctx.has(2) and all(held.name != "value" or held.f == 0 for held in ctx.node.attribute)
    if ctx.zeroed(0) and (zero_padding or tuple(axes) == ctx.axes(0)):
        ctx.builder.zero.add(ctx.node.output[0])
    return [tuple(axes)]


def _pads(ctx: NodeContext) -> list[int] | None:
    """Amounts [begin…, end…]; an attribute before opset 11 (called ``paddings`` before opset 2)."""
    held = ctx.integer_list("pads")
    return held if held is not None else ctx.integers(1)


def resize_pad(edit: NodeEditor) -> None:
    """Padded channels that are removed are no longer padded."""
    rank = len(edit.axes(0))
    amounts = _pads(edit.context)
    changes: dict[int, int] = {}
    for a, ids in enumerate(edit.out_axes(0)):
        if ids is None or amounts is None or edit.axes(0)[a] is None or not edit.changed(ids):
            continue
        kept = edit.kept(ids)
        changes[a] = int(kept[: amounts[a]].sum())
        changes[a + rank] = int(kept[len(kept) - amounts[a + rank] :].sum())
    if changes and "pads" in edit.node.attrs:
        edit.node.attrs["pads"] = [changes.get(i, v) for i, v in enumerate(edit.node.attrs["pads"])]
    elif changes:
        edit.override(1, changes)


# ---- repeating and rearranging --------------------------------------------------------------------------------------


def expand(ctx: NodeContext) -> list[Axes]:
    """Axes of size 1 repeated to a given shape, https://onnx.ai/onnx/operators/onnx__Expand.html"""
    shape, out = ctx.shape(0), ctx.out_shape()
    axes: list[Ids | None] = [None] * (len(out) - len(shape))
    for ids, size, wide in zip(ctx.axes(0), shape, out[len(axes) :], strict=True):
        if size != wide:
            ctx.freeze(ids, "one channel broadcast over many")
        axes.append(ids if size == wide else None)
    return _carry(ctx, tuple(axes))


def tile(ctx: NodeContext) -> list[Axes]:
    """Axes repeated as a whole, https://onnx.ai/onnx/operators/onnx__Tile.html"""
    axes = [
        None if ids is None else np.tile(ids, wide // size)
        for ids, size, wide in zip(ctx.axes(0), ctx.shape(0), ctx.out_shape(), strict=True)
    ]
    return _carry(ctx, tuple(axes))


def constant_of_shape(ctx: NodeContext) -> list[Axes]:
    """A tensor filled with one number: its axes are new channels, https://onnx.ai/onnx/operators/onnx__ConstantOfShape.html"""
    value = next((held.t for held in ctx.node.attribute if held.name == "value"), None)
    if value is None or not any(value.raw_data) and not any(value.float_data):
        ctx.builder.zero.add(ctx.node.output[0])
    return [tuple(ctx.builder.fresh(size) for size in ctx.out_shape())]


def depth_to_space(ctx: NodeContext) -> list[Axes]:
    """[N, C·b², H, W] → [N, C, H·b, W·b]; the b² channels behind one output channel are coupled.

    https://onnx.ai/onnx/operators/onnx__DepthToSpace.html
    """
    axes, block = ctx.axes(0), ctx.integer("blocksize", 1)
    _plain_beyond_channels(ctx, axes)
    if axes[1] is None:
        return _carry(ctx, axes)
    last = any(held.name == "mode" and held.s == b"CRD" for held in ctx.node.attribute)
    lines = axes[1].reshape((-1, block * block)) if last else axes[1].reshape((block * block, -1)).T
    ctx.builder.unify(lines[:, :1], lines)
    return _carry(ctx, (axes[0], np.ascontiguousarray(lines[:, 0]), None, None))


def space_to_depth(ctx: NodeContext) -> list[Axes]:
    """[N, C, H, W] → [N, b²·C, H/b, W/b], https://onnx.ai/onnx/operators/onnx__SpaceToDepth.html"""
    axes, block = ctx.axes(0), ctx.integer("blocksize", 1)
    _plain_beyond_channels(ctx, axes)
    repeated = None if axes[1] is None else np.tile(axes[1], block * block)
    return _carry(ctx, (axes[0], repeated, None, None))


def _plain_beyond_channels(ctx: NodeContext, axes: Axes) -> None:
    for ids in axes[2:]:
        ctx.freeze(ids, "moved between space and depth")
