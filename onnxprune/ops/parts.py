"""Parts of tensors: what a node has to read for a part of what it makes.

A *part* is some indices of one axis, in a given order. For most operators a part of the output is the same operator on
parts of the inputs, because they treat the indices of that axis apart from each other: element-wise operators, pools,
padding along other axes, reductions over others. The table says how; where it says nothing, the whole has to be there.

    y = f(x), f apart along the axis:            y[:, I] = f(x[:, I])
    y = Concat(x₀, x₁) along the axis:           y[:, I] = Concat(x₀[:, I₀], x₁[:, I₁])
    y = Slice, Split, Gather along the axis:     y[:, I] = x[:, J],  J = what they take, at I
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import NodeContext, Opaque
from onnxprune.graph import attribute
from onnxprune.ops.cutting import Bounds, amounts_of, is_whole

__all__ = ["Again", "IntArray", "Joined", "parts_for"]

IntArray = NDArray[np.int64]
Place = tuple[int, IntArray]
"""(axis, indices)"""


@dataclass(frozen=True)
class Again:
    """The same node on parts of its inputs. ``parts``: input → its part (others stay whole); ``attributes`` and
    ``constants`` (input → value): what else changes."""

    parts: Mapping[int, Place]
    attributes: Mapping[str, object] = field(default_factory=dict)
    constants: Mapping[int, NDArray[np.generic]] = field(default_factory=dict)


@dataclass(frozen=True)
class Joined:
    """Parts of inputs one after another: (input, axis, indices). The node itself is not needed."""

    parts: tuple[tuple[int, int, IntArray], ...]


Found = Again | Joined | None
_REFUSALS = (Opaque, ArithmeticError, AssertionError, IndexError, KeyError, TypeError, ValueError)
"""A shape that is not known, or a node that breaks its own schema."""
Rule = Callable[[NodeContext, int, int, IntArray], Found]


def parts_for(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    """What a node has to read for these indices of an axis of an output; None where it has to read everything.

    An index that is the only one of its axis may be wanted several times, but an operand of size 1 would be taken for
    one that broadcasts: then only joints are seen through.
    """
    name = ctx.node.op_type if ctx.node.domain in ("", "ai.onnx") else f"{ctx.node.domain}.{ctx.node.op_type}"
    rule = _RULES.get(name)
    if rule is None or ctx.builder.graph.opset < 7:
        return None
    try:
        found = rule(ctx, output, axis, indices)
        single = isinstance(found, Again) and ctx.out_shape(output)[axis] == 1
        return None if single else found
    except _REFUSALS:
        return None


# ---- element-wise ----------------------------------------------------------------------------------------------------


def _same(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    """f(x); further inputs are parameters of the whole."""
    return None if output else Again({0: (axis, indices)})


def _broadcast(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    """f(a, b, …): operands that have the axis give the same part, those of size 1 stay."""
    rank, found = len(ctx.out_shape()), {}
    for k in range(len(ctx.node.input)):
        own = axis - rank + len(ctx.shape(k)) if ctx.has(k) else -1
        if own >= 0 and ctx.shape(k)[own] != 1:
            if not ctx.is_fixed(k, own):
                return None
            found[k] = (own, indices)
    return Again(found)


def _normalised(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    """Batch and instance normalisation: a number a channel in every further input."""
    if axis != 1 or output or ctx.integer("training_mode", 0):
        return None
    return Again({0: (1, indices), **{k: (0, indices) for k in range(1, len(ctx.node.input))}})


def _quantised(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    """Q/DQ: scale and zero point for all, or one for each index of an axis."""
    if ctx.integer("block_size", 0) or len(ctx.shape(1)) > 1:
        return None
    along = ctx.axis("axis", 1, len(ctx.shape(0)))
    if prod(ctx.shape(1)) == 1 and ctx.shape(0)[along] != 1:
        return Again({0: (axis, indices)})
    places = (axis, *(0 for _ in ctx.node.input[1:])) if along == axis else (axis,)
    return Again({k: (place, indices) for k, place in enumerate(places) if ctx.has(k)})


# ---- joining and cutting ---------------------------------------------------------------------------------------------


def _concat(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    count = len(ctx.node.input)
    if ctx.axis("axis", 1, len(ctx.out_shape())) != axis:
        return Again({k: (axis, indices) for k in range(count)})
    if not all(ctx.is_fixed(k, axis) for k in range(count)):
        return None
    ends = np.cumsum([ctx.shape(k)[axis] for k in range(count)])
    owner = np.searchsorted(ends, indices, side="right")
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    runs = zip(owner[starts].tolist(), np.split(indices, starts[1:]), strict=True)
    return Joined(tuple((k, axis, run - (ends[k - 1] if k else 0)) for k, run in runs))


def _split(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    if ctx.axis("axis", 0, len(ctx.shape(0))) != axis:
        return Again({0: (axis, indices)})
    if not ctx.is_fixed(0, axis):
        return None
    return Joined(((0, axis, indices + sum(ctx.out_shape(k)[axis] for k in range(output))),))


def _slice(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    cut = Bounds.of(ctx)
    if cut is None:
        return None
    if axis not in cut.axes:
        return Again({0: (axis, indices)})
    span, size = cut.span(axis, ctx.shape(0)[axis]), ctx.shape(0)[axis]
    others = all(a == axis or is_whole(ctx, cut, a) for a in cut.axes)
    if span is None or not others or not ctx.is_fixed(0, axis):
        return None
    return Joined(((0, axis, np.arange(size)[span][indices]),))


def _gather(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    along, rank = ctx.axis("axis", 0, len(ctx.shape(0))), len(ctx.shape(1))
    if along <= axis < along + rank:
        chosen = ctx.integers(1)
        if rank != 1 or chosen is None or not ctx.is_fixed(0, along):
            return None
        return Joined(((0, along, np.array(chosen)[indices] % ctx.shape(0)[along]),))
    return Again({0: (axis if axis < along else axis - rank + 1, indices)})


def _pad(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    found = amounts_of(ctx)
    return None if found is None or any(found.get(axis, (0, 0))) else Again({0: (axis, indices)})


def _tile(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    repeats = ctx.integers(1)
    return None if repeats is None or repeats[axis] != 1 else Again({0: (axis, indices)})


# ---- other shapes ----------------------------------------------------------------------------------------------------


def _transpose(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    rank = len(ctx.shape(0))
    perm = ctx.integer_list("perm") or list(range(rank))[::-1]
    return Again({0: (perm[axis], indices)})


def _reshape(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    """An axis that stays, that is merged with those behind it, or that is split; the target is spelled out anew."""
    place = _before_reshape(ctx, axis, indices)
    if place is None or ctx.node.op_type == "Flatten":
        return None if place is None else Again({0: place})
    if ctx.node.op_type in ("Squeeze", "Unsqueeze"):
        named = ctx.integer_list("axes") or ctx.integers(1)
        return None if named is None or (ctx.has(1) and ctx.integers(1) is None) else Again({0: place})
    target = ctx.integers(1)
    if target is None or ctx.integer("allowzero", 0):
        return None
    for a, size in enumerate(target):
        if a == axis and size != -1:
            target[a] = len(indices)
        elif size == 0 and a == place[0]:  # copied from the axis that is no longer whole
            if not ctx.out_is_fixed(a):
                return None
            target[a] = ctx.out_shape()[a]
    return Again({0: place}, constants={1: np.array(target, np.int64)})


def _before_reshape(ctx: NodeContext, axis: int, indices: IntArray) -> Place | None:
    """The part of what goes into a Reshape that becomes these indices of an axis behind it."""
    before, after = _shared_axes(ctx, axis)
    sizes_in, sizes_out = [ctx.shape(0)[a] for a in before], [ctx.out_shape()[a] for a in after]
    fixed = all(ctx.is_fixed(0, a) for a in before) and all(ctx.out_is_fixed(a) for a in after)
    if not fixed or not before or not after or after[0] != axis or (len(before) > 1 and len(after) > 1):
        return None
    block = prod(sizes_in[1:]) if len(before) > 1 else prod(sizes_out[1:])
    if len(before) == 1:
        return before[0], (indices[:, None] * block + np.arange(block)).ravel()
    if len(indices) % block:
        return None
    starts = indices.reshape(-1, block)[:, 0]
    whole = np.array_equal(indices, (starts[:, None] + np.arange(block)).ravel()) and not np.any(starts % block)
    return (before[0], starts // block) if whole else None


def _shared_axes(ctx: NodeContext, axis: int) -> tuple[list[int], list[int]]:
    """The axes before and behind a Reshape that hold the same indices as this one behind it, without those of size 1.

    They lie between two places at which equally much is before and behind, whatever is fed.
    """
    graph, shapes = ctx.builder.graph, ctx.builder.shapes
    names = graph.nodes[ctx.index].input[0], graph.nodes[ctx.index].output[0]
    first = [np.cumprod([1, *shapes.of[name]]).tolist() for name in names]
    second = [np.cumprod([1, *shapes.second(name)]).tolist() for name in names]
    before, after = ([*zip(a, b, strict=True)] for a, b in zip(first, second, strict=True))
    common = [pair for pair in after if pair in before]
    low = max((after.index(pair) for pair in common if after.index(pair) <= axis), default=0)
    high = min((_last(after, pair) for pair in common if _last(after, pair) > axis), default=len(after) - 1)
    inside = range(before.index(after[low]), _last(before, after[high])), range(low, high)
    held = [[a for a in part if shapes.of[name][a] != 1] for part, name in zip(inside, names, strict=True)]
    return held[0], held[1]


def _last(pairs: list[tuple[int, int]], pair: tuple[int, int]) -> int:
    return len(pairs) - 1 - pairs[::-1].index(pair)


def _depth_to_space(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    """Channel c of the output is made of b² channels: k·C + c, or c·b² + k."""
    square, wide = ctx.integer("blocksize", 1) ** 2, ctx.out_shape()[1]
    if axis != 1:
        return None
    if attribute(ctx.node, "mode") == "CRD":
        return Again({0: (1, (indices[:, None] * square + np.arange(square)).ravel())})
    return Again({0: (1, (np.arange(square)[:, None] * wide + indices).ravel())})


# ---- over space, and over other axes ---------------------------------------------------------------------------------


def _pool(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    return None if axis > 1 or output or ctx.is_read(1) else Again({0: (axis, indices)})


def _resize(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    """An axis that is not resized; a target size is spelled out anew."""
    rank = len(ctx.shape(0))
    if axis > 1 or attribute(ctx.node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return None
    if attribute(ctx.node, "keep_aspect_ratio_policy") not in (None, "stretch"):
        return None
    if ctx.shape(0)[axis] != ctx.out_shape()[axis] or not ctx.is_fixed(0, axis):
        return None
    if ctx.node.op_type == "Upsample" or not ctx.has(3):
        return Again({0: (axis, indices)})
    sizes, named = ctx.integers(3), ctx.integer_list("axes") or range(rank)
    if sizes is None:
        return None
    target = [len(indices) if a % rank == axis else size for a, size in zip(named, sizes, strict=True)]
    return Again({0: (axis, indices)}, constants={3: np.array(target, np.int64)})


def _reduce(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    """Sums, means, maxima over other axes."""
    rank = len(ctx.shape(0))
    named = ctx.integer_list("axes") or ctx.integers(1)
    if ctx.has(1) and named is None:
        return None
    over = {a % rank for a in named} if named else set(range(rank))
    left = range(rank) if ctx.integer("keepdims", 1) else [a for a in range(rank) if a not in over]
    return None if left[axis] in over else Again({0: (left[axis], indices)})


def _softmax(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    """Over one axis; before opset 13 over all from one on."""
    rank = len(ctx.shape(0))
    modern = ctx.builder.graph.opset >= 13
    over = ctx.axis("axis", -1 if modern else 1, rank)
    return None if axis == over or (axis > over and not modern) else Again({0: (axis, indices)})


def _layer_normalization(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    """Over all axes from one on."""
    return None if output or axis >= ctx.axis("axis", -1, len(ctx.shape(0))) else Again({0: (axis, indices)})


def _grouped(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
    """A convolution in groups, of which whole ones are wanted (depthwise: single channels)."""
    count = ctx.integer("group", 1)
    made, read = ctx.out_shape()[1] // count, ctx.shape(0)[1] // count
    if axis != 1 or count == 1 or len(indices) % made:
        return None
    groups = indices.reshape(-1, made)[:, 0] // made
    if not np.array_equal(indices, (groups[:, None] * made + np.arange(made)).ravel()):
        return None
    inputs = (groups[:, None] * read + np.arange(read)).ravel()
    own = {k: (0, indices) for k in (1, 2) if ctx.has(k)}
    return Again({0: (1, inputs), **own}, {"group": len(groups)})


def _rows(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_RULES: dict[str, Rule] = {
    **_rows("Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp "
            "Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round "
            "Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu "
            "com.microsoft.QuickGelu", _same),
    **_rows("Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where "
            "Xor", _broadcast),
    **_rows("BatchNormalization InstanceNormalization", _normalised),
    **_rows("DequantizeLinear QuantizeLinear", _quantised),
    **_rows("Concat", _concat),
    **_rows("Split", _split),
    **_rows("Slice", _slice),
    **_rows("Gather", _gather),
    **_rows("Pad", _pad),
    **_rows("Tile", _tile),
    **_rows("Transpose", _transpose),
    **_rows("Flatten Reshape Squeeze Unsqueeze", _reshape),
    **_rows("DepthToSpace", _depth_to_space),
    **_rows("AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool", _pool),
    **_rows("Resize Upsample", _resize),
    **_rows("ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
            "ReduceSumSquare", _reduce),
    **_rows("Hardmax LogSoftmax Softmax", _softmax),
    **_rows("LayerNormalization", _layer_normalization),
    **_rows("Conv", _grouped),
}  # fmt: skip
