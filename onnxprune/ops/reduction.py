"""Operators that work per channel over space, and operators that compute across the indices of an axis.

The former carry channels through. The latter are consumers. Where removed channels are zero in the masked reference,

- a sum is exact without them, and so is a maximum of what is never negative;
- a mean over k of C channels is k/C of the mean over the k that stay: (1/C)·Σ x = (k/C)·(1/k)·Σ x.

Other maxima and normalisations are not, so their channels stay (or, where the user allows it, a normalisation is
computed over fewer channels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
from onnx import TensorProto

from onnxprune.channels import FIXED_SIZE, Axes, Ids, NodeContext, Opaque
from onnxprune.editing import NodeEditor
from onnxprune.graph import attribute
from onnxprune.ops.sign import Sign, sign

__all__ = [
    "group_normalization",
    "instance_normalization",
    "log_reduce",
    "lp_normalization",
    "max_pool",
    "max_reduce",
    "mean_reduce",
    "pool",
    "reduce",
    "reduce_channels",
    "resample",
    "resize_group_normalization",
    "resize_mean",
    "resize_resample",
    "softmax",
    "softmax_of",
    "sum_reduce",
    "take_axis",
]  # fmt: skip


def _pass(ctx: NodeContext, axes: Axes, zero_stays: bool) -> list[Axes]:
    if zero_stays:
        ctx.builder.zero.add(ctx.node.output[0])
    return [axes, *ctx.plain_outputs()[1:]]


def pool(ctx: NodeContext, *, channels_last: bool = False) -> list[Axes]:
    """Pools: every channel of axis 1 (or of the last) for itself, over the other axes but the first."""
    axes = ctx.axes(0)
    own = (0, len(axes) - 1 if channels_last else 1)
    for a, ids in enumerate(axes):
        if a not in own:
            ctx.freeze(ids, "pooled over")
    carried = tuple(ids if a in own else None for a, ids in enumerate(axes))
    return [carried for _ in _pass(ctx, carried, ctx.zeroed(0))]


def max_pool(ctx: NodeContext) -> list[Axes]:
    """MaxPool; its second output counts through all channels. https://onnx.ai/onnx/operators/onnx__MaxPool.html"""
    if ctx.is_read(1):
        for ids in ctx.axes(0)[:2]:
            ctx.freeze(ids, "its indices count through all channels")
    ctx.rests(0, ctx.node.output[0])
    return pool(ctx)


def resample(ctx: NodeContext) -> list[Axes]:
    """Resize, Upsample, Crop: axes whose size changes are resampled; the others pass.

    https://onnx.ai/onnx/operators/onnx__Resize.html
    """
    axes = list(ctx.axes(0))
    cropped = attribute(ctx.node, "coordinate_transformation_mode") == "tf_crop_and_resize"
    if attribute(ctx.node, "keep_aspect_ratio_policy") not in (None, "stretch"):
        raise Opaque("one scale follows from the sizes of several axes")
    for a, (size, wide) in enumerate(zip(ctx.shape(0), ctx.out_shape(), strict=True)):
        if size != wide or cropped:
            ctx.freeze(axes[a], "resampled along the channels")
            axes[a] = None
    return _pass(ctx, tuple(axes), ctx.zeroed(0) and not cropped)


def resize_resample(edit: NodeEditor) -> None:
    """The sizes of a Resize, if it is told sizes and not scales; since opset 18 perhaps of some axes only."""
    if len(edit.node.inputs) < 4 or edit.node.inputs[3].is_empty():
        return
    rank = len(edit.axes(0))
    named = [a % rank for a in edit.node.attrs.get("axes", range(rank))]
    sizes = {named.index(a): change for a, change in edit.shrunk().items() if a in named}
    if sizes and edit.context.integers(3) is not None:
        edit.override(3, {entry: left for entry, (left, _) in sizes.items()})
    elif sizes:
        edit.shrink(3, sizes)


_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)

# ---- reductions -----------------------------------------------------------------------------------------------------


def _reduced_axes(ctx: NodeContext, rank: int) -> set[int]:
    named = ctx.integer_list("axes")
    if named is None and ctx.has(1):
        named = ctx.integers(1)
        if named is None:
            raise Opaque("its axes are computed at run time")
    if not named:
        return set() if ctx.integer("noop_with_empty_axes", 0) else set(range(rank))
    return {a % rank for a in named}


def _without(axes: Axes, gone: set[int], keep: bool) -> Axes:
    left: list[Ids | None] = []
    for a, ids in enumerate(axes):
        if a not in gone:
            left.append(ids)
        elif keep:
            left.append(None)
    return tuple(left)


def reduce(ctx: NodeContext) -> list[Axes]:
    """ReduceMin, ReduceProd, …: reduced channels are frozen (a mean may be renormalised on request)."""
    axes = ctx.axes(0)
    gone = _reduced_axes(ctx, len(axes))
    renorm = ctx.builder.allow_renorm and ctx.node.op_type == "ReduceMean"
    reduce_channels(ctx, [axes[a] for a in sorted(gone)], renorm, f"{ctx.node.op_type} over the channels")
    return _pass(ctx, _without(axes, gone, bool(ctx.integer("keepdims", 1))), ctx.zeroed(0))


def log_reduce(ctx: NodeContext) -> list[Axes]:
    """ReduceLogSum, ReduceLogSumExp: like ``reduce``, but the result is not zero where all inputs are."""
    zero = ctx.zeroed(0)
    outputs = reduce(ctx)
    ctx.builder.zero.discard(ctx.node.output[0])
    if ctx.node.op_type == "ReduceLogSum" and (zero or sign(ctx, 0) < Sign.POSITIVE):
        for ids in ctx.axes(0):
            ctx.freeze(ids, "may be infinite where a channel is removed")
    return outputs


def reduce_channels(ctx: NodeContext, held: Sequence[Ids | None], renorm: bool, reason: str) -> None:
    """Freeze the channels that are computed across, or remember that this may be done over fewer of them."""
    found = [ids for ids in held if ids is not None]
    for ids in found:
        if renorm:
            ctx.need(None, ids)
        else:
            ctx.freeze(ids, reason)
    if renorm and found:
        ctx.builder.renormalised.append((ctx.node.name or ctx.node.output[0], np.concatenate(found)))


def sum_reduce(ctx: NodeContext) -> list[Axes]:
    """ReduceSum, ReduceL1, ReduceL2, ReduceSumSquare: exact without channels that are zero."""
    return _without_zeros(ctx) if ctx.zeroed(0) else reduce(ctx)


def max_reduce(ctx: NodeContext) -> list[Axes]:
    """ReduceMax: exact without channels that are zero, where no channel is ever below zero."""
    return _without_zeros(ctx) if ctx.zeroed(0) and sign(ctx, 0) >= Sign.NOT_NEGATIVE else reduce(ctx)


def mean_reduce(ctx: NodeContext) -> list[Axes]:
    """ReduceMean: exact without channels that are zero, once scaled (``resize_mean``); whole numbers are rounded.

    A mean that is subtracted from what it is the mean of belongs to a layer normalisation: if that may be computed over
    fewer channels, both its means are.
    """
    exact = ctx.zeroed(0) and ctx.builder.shapes.types.get(ctx.node.input[0]) in _FLOATS
    exact = exact and not (ctx.builder.allow_renorm and _centres(ctx))
    return _without_zeros(ctx) if exact else reduce(ctx)


def _centres(ctx: NodeContext) -> bool:
    """Whether the result is subtracted from the input."""
    graph = ctx.builder.graph
    readers = [graph.nodes[index] for index, _ in graph.consumers.get(ctx.node.output[0], [])]
    return any(node.op_type == "Sub" and node.input[0] == ctx.node.input[0] for node in readers)


def _without_zeros(ctx: NodeContext) -> list[Axes]:
    axes = ctx.axes(0)
    gone = _reduced_axes(ctx, len(axes))
    for a in gone:
        ctx.need(None, axes[a])
    return _pass(ctx, _without(axes, gone, bool(ctx.integer("keepdims", 1))), True)


def resize_mean(edit: NodeEditor) -> None:
    """A mean over the k channels that are left of C is scaled by k/C; one over fewer channels on request is not."""
    axes = edit.axes(0)
    gone = [ids for a in _reduced_axes(edit.context, len(axes)) if (ids := axes[a]) is not None and edit.changed(ids)]
    if gone and not edit.is_renormalised:
        edit.scale_after(prod(edit.kept_count(ids) / len(ids) for ids in gone))


def take_axis(default: int, *, keeps_axis: bool) -> Callable[[NodeContext], list[Axes]]:
    """ArgMax, TopK, CumSum, LpNormalization, LRN: compute across one axis, pass the others."""

    def rule(ctx: NodeContext) -> list[Axes]:
        axes = ctx.axes(0)
        axis = ctx.axis("axis", default, len(axes))
        ctx.freeze(axes[axis], f"{ctx.node.op_type} over the channels")
        kept = keeps_axis or bool(ctx.integer("keepdims", 1))
        result = tuple(None if a == axis else ids for a, ids in enumerate(axes) if kept or a != axis)
        return [result for _ in ctx.node.output]

    return rule


def softmax(ctx: NodeContext) -> list[Axes]:
    """Softmax, LogSoftmax, Hardmax: over one axis; before opset 13 over all axes from ``axis`` on.

    https://onnx.ai/onnx/operators/onnx__Softmax.html
    """
    return softmax_of(ctx, recent=ctx.builder.graph.opset >= 13)


def softmax_of(ctx: NodeContext, *, recent: bool) -> list[Axes]:
    """Softmax as of opset 13 (``recent``) or as before."""
    axes = ctx.axes(0)
    axis = ctx.axis("axis", -1 if recent else 1, len(axes))
    across = {axis} if recent else set(range(axis, len(axes)))
    for a in across:
        ctx.freeze(axes[a], f"{ctx.node.op_type} over the channels")
    return [tuple(None if a in across else ids for a, ids in enumerate(axes))]


# ---- normalisations -------------------------------------------------------------------------------------------------


def instance_normalization(ctx: NodeContext) -> list[Axes]:
    """Every channel of axis 1 over space, then γ·x + β; https://onnx.ai/onnx/operators/onnx__InstanceNormalization.html"""
    axes = list(ctx.axes(0))
    for a in range(2, len(axes)):
        ctx.freeze(axes[a], "normalised over the channels")
        axes[a] = None
    for k in (1, 2):
        axes[1] = ctx.unify(axes[1], ctx.axes(k)[0])
    zeros = [ctx.mask_where_possible(k) for k in (1, 2)]
    return _pass(ctx, tuple(axes), axes[0] is None and all(zeros))


def lp_normalization(ctx: NodeContext) -> list[Axes]:
    """x over its norm along an axis: exact without channels that are zero.

    https://onnx.ai/onnx/operators/onnx__LpNormalization.html
    """
    if not ctx.zeroed(0):
        return take_axis(-1, keeps_axis=True)(ctx)
    axes = ctx.axes(0)
    ctx.need(None, axes[ctx.axis("axis", -1, len(axes))])
    return _pass(ctx, axes, True)


def group_normalization(ctx: NodeContext) -> list[Axes]:
    """Channels normalised together leave together; https://onnx.ai/onnx/operators/onnx__GroupNormalization.html"""
    axes, count = ctx.axes(0), ctx.integer("num_groups", 1)
    for ids in axes[2:]:
        ctx.freeze(ids, "normalised over the channels")
    if axes[1] is None:
        ctx.freeze_all(FIXED_SIZE)
        return ctx.plain_outputs()
    lines = axes[1].reshape(count, -1)
    ctx.builder.unify(lines[:, :1], lines)
    for k in (1, 2):
        ctx.unify(axes[1] if ctx.shape(k)[0] == axes[1].size else lines[:, 0], ctx.axes(k)[0])
    zeros = [ctx.mask_where_possible(k) for k in (1, 2)]
    return _pass(ctx, (*axes[:2], *(None,) * (len(axes) - 2)), axes[0] is None and all(zeros))


def resize_group_normalization(edit: NodeEditor) -> None:
    """The number of groups follows the channels that remain."""
    ids = edit.axes(0)[1]
    if ids is not None and edit.changed(ids):
        count = int(edit.node.attrs["num_groups"])
        edit.node.attrs["num_groups"] = int(edit.kept(ids).reshape(count, -1).any(axis=1).sum())
