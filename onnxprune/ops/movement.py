"""Movement: operators that carry channels elsewhere without computing anything.

Each rule carries the ids of every axis to where its indices go; the matching ``resize_…`` then corrects the constants
that spell out sizes and positions (Reshape targets, Split sizes, Slice bounds, Gather indices, Pad amounts).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnxprune.channels import Axes, Ids, NodeContext, Opaque
from onnxprune.editing import NodeEditor
from onnxprune.graph import attribute

__all__ = ["concat", "constant_of_shape", "depth_to_space", "expand", "flatten", "gather", "pad", "reshape",
           "resize_concat", "resize_constant_of_shape", "resize_expand", "resize_gather", "resize_pad",
           "resize_reshape", "resize_slice", "resize_split", "resize_squeeze", "slice_", "space_to_depth", "split",
           "squeeze", "tile", "transpose", "unsqueeze"]  # fmt: skip


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
    if all(ids is None for ids in axes):
        return tuple(result)
    blocks = list(_blocks(before, after))
    shapes = ctx.builder.shapes
    again = shapes.second(ctx.node.input[0]), shapes.second(ctx.node.output[0])
    if prod(again[0]) == prod(again[1]) and list(_blocks(*again)) != blocks:
        raise Opaque("what it joins depends on the sizes of open dimensions")
    for old, new in blocks:
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
        if a != carrier:
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
    named = _squeezed(ctx)
    if named is None and not all(ctx.is_fixed(0, a) for a in range(len(shape))):
        raise Opaque("drops every axis that turns out to have one index")
    gone = {a for a, size in enumerate(shape) if size == 1} if named is None else {a % len(shape) for a in named}
    for a in gone:
        ctx.freeze(axes[a], "its axis is dropped")
    return _carry(ctx, tuple(ids for a, ids in enumerate(axes) if a not in gone))


def _squeezed(ctx: NodeContext) -> list[int] | None:
    """The axes a Squeeze names: an attribute before opset 13, then an input; None where it takes all of size 1."""
    named = ctx.integer_list("axes") or ctx.integers(1)
    if named is None and ctx.has(1):
        raise Opaque("its axes are computed at run time")
    return named or None


def resize_squeeze(edit: NodeEditor) -> None:
    """An axis of which one channel is left is not to be dropped too, so the axes are named."""
    if _squeezed(edit.context) is not None:
        return
    axes = [a for a, size in enumerate(edit.context.shape(0)) if size == 1]
    if edit.opset < 13:
        edit.node.attrs["axes"] = axes
    else:
        edit.replace(1, np.array(axes, np.int64))


def unsqueeze(ctx: NodeContext) -> list[Axes]:
    """Add axes of size 1, https://onnx.ai/onnx/operators/onnx__Unsqueeze.html"""
    rank = len(ctx.out_shape())
    named = ctx.integer_list("axes") or ctx.integers(1)
    if named is None:
        raise Opaque("its axes are computed at run time")
    added, held = {a % rank for a in named}, iter(ctx.axes(0))
    return _carry(ctx, tuple(None if a in added else next(held) for a in range(rank)))


def resize_reshape(edit: NodeEditor) -> None:
    """The target of a Reshape follows the channels that remain: an attribute before opset 5, then an input."""
    held = edit.node.attrs.get("shape")
    target = edit.context.integers(1) if held is None else [int(d) for d in held]
    if target is None:
        edit.shrink(1, edit.shrunk())
        return
    changed = [_target(edit, axis, size) for axis, size in enumerate(target)]
    if held is not None:
        edit.node.attrs["shape"] = changed
    elif changed != target:
        edit.replace(1, np.array(changed, np.int64))


def _target(edit: NodeEditor, axis: int, size: int) -> int:
    """One entry of a Reshape's target. −1 follows by itself; 0 does if the same is left of the input's axis."""
    ids = edit.out_axes(0)[axis]
    left = edit.context.out_shape()[axis] if ids is None else edit.kept_count(ids)
    if size == 0 and not edit.node.attrs.get("allowzero", 0):
        source = edit.axes(0)[axis]
        follows = edit.context.shape(0)[axis] if source is None else edit.kept_count(source)
        return 0 if follows == left else left
    return size if size == -1 or ids is None else left


def resize_expand(edit: NodeEditor) -> None:
    """The shape given to an Expand: right-aligned, and a 1 takes the size of the input."""
    known = edit.context.integers(1)
    length = edit.context.shape(1)[0]
    offset = len(edit.out_axes(0)) - length
    sizes = {a - offset: change for a, change in edit.shrunk().items() if a >= offset}
    if known is None:
        edit.shrink(1, sizes)
    else:
        edit.override(1, {entry: left for entry, (left, _) in sizes.items() if known[entry] != 1})


def resize_constant_of_shape(edit: NodeEditor) -> None:
    """The shape given to a ConstantOfShape."""
    sizes = edit.shrunk()
    if edit.context.integers(0) is None:
        edit.shrink(0, sizes)
    else:
        edit.override(0, {entry: left for entry, (left, _) in sizes.items()})


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
    if all(ctx.zeroed(k) or all(ids is None for ids in axes) for k, axes in enumerate(operands)):
        ctx.builder.zero.add(ctx.node.output[0])
    return [tuple(result)]


def _joined(ctx: NodeContext, parts: list[Ids | None], axis: int) -> Ids | None:
    """Ids along the axis of a Concat; a plain or stored operand contributes indices that never leave."""
    held = [None if ctx.is_constant(k) else ids for k, ids in enumerate(parts)]
    for k, ids in enumerate(parts):
        if ctx.is_constant(k):
            ctx.freeze(ids, "a constant joined to computed channels")
    if all(ids is None for ids in held):
        return None
    sizes = [ctx.shape(k)[axis] for k in range(len(parts))]
    return np.concatenate([np.zeros(n, np.int32) if ids is None else ids for ids, n in zip(held, sizes, strict=True)])


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
    cut = _Cut.of(ctx)
    for a, ids in enumerate(axes):
        if ids is None or _is_whole(ctx, cut, a):
            continue
        span = None if cut is None else cut.span(a, shape[a])
        if span is None or not ctx.is_fixed(0, a):
            ctx.freeze(ids, "cut at bounds computed at run time")
            axes[a] = None
        else:
            axes[a] = ids[span]
    return _carry(ctx, tuple(axes))


def _is_whole(ctx: NodeContext, cut: _Cut | None, axis: int) -> bool:
    """Whether all indices of an axis pass in their order, whatever the bounds say."""
    if cut is None:
        return False
    of, second = ctx.builder.shapes.of, ctx.builder.shapes.second
    same = all(held(ctx.node.input[0])[axis] == held(ctx.node.output[0])[axis] for held in (of.__getitem__, second))
    return axis not in cut.axes or (same and cut.steps[cut.axes.index(axis)] > 0)


@dataclass(frozen=True)
class _Cut:
    """What a Slice takes: of the axes ``axes``, bounds (None where they are computed at run time) and steps."""

    starts: list[int] | None
    ends: list[int] | None
    axes: list[int]
    steps: list[int]

    @staticmethod
    def of(ctx: NodeContext) -> _Cut | None:
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
        return _Cut(starts, ends, [a % rank for a in (axes or range(count))], steps or [1] * count)

    def span(self, axis: int, size: int) -> slice | None:
        """The bounds of one axis as a Python slice: an end before the first element stays before it."""
        if self.starts is None or self.ends is None or axis not in self.axes:
            return None
        entry = self.axes.index(axis)
        start, end, step = self.starts[entry], self.ends[entry], self.steps[entry]
        return slice(start, None if step < 0 and end < -size else end, step)


def resize_slice(edit: NodeEditor) -> None:
    """Bounds move with the channels before them; a stepped range becomes a Gather of the indices that remain."""
    cut = _Cut.of(edit.context)
    if cut is None:
        return
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    steps: dict[int, int] = {}
    for a, ids in enumerate(edit.axes(0)):
        if ids is None or not edit.changed(ids) or a not in cut.axes or _is_whole(edit.context, cut, a):
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
    shape = edit.context.shape(1)
    edit.replace(1, left.astype(np.int64).reshape(-1 if len(shape) == 1 else shape))


def pad(ctx: NodeContext) -> list[Axes]:
    """Indices added at both ends of an axis, https://onnx.ai/onnx/operators/onnx__Pad.html"""
    axes = list(ctx.axes(0))
    amounts = _amounts(ctx)
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


def _amounts(ctx: NodeContext) -> dict[int, tuple[int, int]] | None:
    """Axis → (before, after); None where they are computed at run time."""
    pads, named = _pads(ctx), _padded_axes(ctx)
    if pads is None or named is None:
        return None
    return {a: (pads[i], pads[i + len(named)]) for i, a in enumerate(named)}


def resize_pad(edit: NodeEditor) -> None:
    """Padded channels that are removed are no longer padded."""
    amounts, named = _amounts(edit.context), _padded_axes(edit.context)
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


# ---- repeating and rearranging --------------------------------------------------------------------------------------


def expand(ctx: NodeContext) -> list[Axes]:
    """Axes of size 1 repeated to a given shape, https://onnx.ai/onnx/operators/onnx__Expand.html"""
    shape, out = ctx.shape(0), ctx.out_shape()
    axes: list[Ids | None] = [None] * (len(out) - len(shape))
    for ids, size, wide in zip(ctx.axes(0), shape, out[len(axes) :], strict=True):
        alone = size == 1 and ctx.is_constant(0)  # a class token: an axis of a constant that holds nothing to prune
        if size != wide or alone:
            ctx.freeze(ids, "one channel broadcast over many")
        axes.append(ids if size == wide and not alone else None)
    return _carry(ctx, tuple(axes))


def tile(ctx: NodeContext) -> list[Axes]:
    """Axes repeated as a whole, https://onnx.ai/onnx/operators/onnx__Tile.html"""
    axes = [
        None if ids is None else np.tile(ids, wide // size)
        for ids, size, wide in zip(ctx.axes(0), ctx.shape(0), ctx.out_shape(), strict=True)
    ]
    return _carry(ctx, tuple(axes))


def constant_of_shape(ctx: NodeContext) -> list[Axes]:
    """A tensor filled with one number: its axes are new channels.

    https://onnx.ai/onnx/operators/onnx__ConstantOfShape.html
    """
    value = attribute(ctx.node, "value")
    if not isinstance(value, TensorProto) or not np.any(numpy_helper.to_array(value)):
        ctx.builder.zero.add(ctx.node.output[0])
    sizes = enumerate(ctx.out_shape())
    return [tuple(ctx.builder.fresh(size) if ctx.out_is_fixed(a) else None for a, size in sizes)]


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
