"""Reshape and its relatives: the same elements under other sizes, and tensors whose size is given as an input.

Both shapes are split into the smallest runs of axes that do not mix; within a run, channels go where their elements go.
Each ``resize_…`` corrects the sizes that a node spells out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from onnx import TensorProto, numpy_helper

from onnxprune.channels import Axes, Ids, NodeContext, Opaque, check_length
from onnxprune.editing import NodeEditor
from onnxprune.graph import attribute
from onnxprune.ops.movement import carry

__all__ = ["constant_of_shape", "expand", "flatten", "reshape", "resize_constant_of_shape", "resize_expand",
           "resize_reshape", "resize_squeeze", "squeeze", "unsqueeze"]  # fmt: skip


_MOST_MIXED = 1 << 28
"""Elements of the axes that a Reshape mixes, up to which their channels are followed one by one."""


def reshape(ctx: NodeContext) -> list[Axes]:
    """The same elements under other sizes, https://onnx.ai/onnx/operators/onnx__Reshape.html"""
    return carry(ctx, _reshaped(ctx, ctx.shape(0), ctx.out_shape(), ctx.axes(0)))


flatten = reshape


def _reshaped(ctx: NodeContext, before: Sequence[int], after: Sequence[int], axes: Axes) -> Axes:
    result: list[Ids | None] = [None] * len(after)
    if all(ids is None for ids in axes):
        return tuple(result)
    if list(before) == [1] and len(after) > 1:  # the bias of a layer of one channel
        result[1] = axes[0]
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
    check_length(prod(before[a] for a in old), _MOST_MIXED)
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
    return carry(ctx, tuple(ids for a, ids in enumerate(axes) if a not in gone))


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
    return carry(ctx, tuple(None if a in added else next(held) for a in range(rank)))


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


def expand(ctx: NodeContext) -> list[Axes]:
    """Axes of size 1 repeated to a given shape, https://onnx.ai/onnx/operators/onnx__Expand.html

    Copies of a constant (the zeros a recurrent layer begins with), or of what has no channels that could leave (a
    cached key, for each query head that reads it), are channels of their own: any of them may leave.
    """
    shape, out = ctx.shape(0), ctx.out_shape()
    axes: list[Ids | None] = [None] * (len(out) - len(shape))
    for ids, size, wide in zip(ctx.axes(0), shape, out[len(axes) :], strict=True):
        alone = size == 1 and ctx.is_constant(0)  # a class token: an axis of a constant that holds nothing to prune
        if size != wide or alone:
            ctx.freeze(ids, "one channel broadcast over many")
        axes.append(ids if size == wide and not alone else None)
    alike = ctx.is_constant(0) or all(ids is None for ids in ctx.axes(0))
    copied = [a for a in range(len(out)) if alike and _is_copied(ctx, a)]
    carried = carry(ctx, tuple(ctx.builder.fresh(out[a]) if a in copied else ids for a, ids in enumerate(axes)))
    if copied:
        held = ctx.builder.graph.constants.get(ctx.node.input[0])
        zero = held is not None and not np.any(ctx.builder.graph.values(ctx.node.input[0]))
        (ctx.builder.zero.add if zero else ctx.builder.zero.discard)(ctx.node.output[0])
    return carried


def _is_copied(ctx: NodeContext, axis: int) -> bool:
    """Whether an Expand repeats one index along an axis of its output, a number of times that is known."""
    place = axis - len(ctx.out_shape()) + len(ctx.shape(0))
    size = ctx.shape(0)[place] if place >= 0 else 1
    return size == 1 != ctx.out_shape()[axis] and ctx.out_is_fixed(axis)


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


def constant_of_shape(ctx: NodeContext) -> list[Axes]:
    """A tensor filled with one number: its axes are new channels.

    https://onnx.ai/onnx/operators/onnx__ConstantOfShape.html
    """
    value = attribute(ctx.node, "value")
    if not isinstance(value, TensorProto) or not np.any(numpy_helper.to_array(value)):
        ctx.builder.zero.add(ctx.node.output[0])
    sizes = enumerate(ctx.out_shape())
    return [tuple(ctx.builder.fresh(size) if ctx.out_is_fixed(a) else None for a, size in sizes)]


def resize_constant_of_shape(edit: NodeEditor) -> None:
    """The shape given to a ConstantOfShape."""
    sizes = edit.shrunk()
    if edit.context.integers(0) is None:
        edit.shrink(0, sizes)
    else:
        edit.override(0, {entry: left for entry, (left, _) in sizes.items()})
