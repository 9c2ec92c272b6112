"""Contractions: operators that consume channels and make new ones through a weight. They own the edges.

A convolution with ``groups`` > 1 is a site (see ``onnxprune.channels``): either whole convolution groups leave
together (depthwise: channel by channel), or the same positions leave in every group, so that all stay equally wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TypeVar

import numpy as np

from onnxprune.channels import Axes, Ids, NodeContext, Opaque, check_length
from onnxprune.editing import NodeEditor

__all__ = ["FLOAT", "Slots", "conv", "conv_transpose", "gemm", "matmul", "resize_groups"]

_T = TypeVar("_T")
_COMPUTED = "its weight is computed at run time"


@dataclass(frozen=True)
class Slots:
    """Which inputs of a node are its operands."""

    data: int
    weight: int
    bias: int


FLOAT = Slots(0, 1, 2)


def conv(ctx: NodeContext, slots: Slots = FLOAT, *, channels_last: bool = False) -> list[Axes]:
    """x [N, C, …], W [M, C/g, k…], b [M] → y [N, M, …]; https://onnx.ai/onnx/operators/onnx__Conv.html

    ``channels_last``: x and y are [N, …, C] and [N, …, M]; W is as it always is.
    """
    if not _stored(ctx, [slots.weight, slots.bias]):
        return ctx.freeze_all(_COMPUTED)
    x, w = ctx.axes(slots.data), ctx.axes(slots.weight)
    x = (x[0], x[-1], *x[1:-1]) if channels_last else x
    _freeze_spatial(ctx, x, w)
    count, shape = ctx.integer("group", 1), ctx.shape(slots.weight)
    if ctx.shape(slots.data)[-1 if channels_last else 1] != shape[1] * count:
        raise Opaque("its weight reads another number of channels than there are")
    if count == 1:
        inputs, outputs = ctx.unify(x[1], w[1]), w[0]
        macs: tuple[float, list[tuple[Ids | None, int]]] = (1.0, [(w[0], shape[0]), (w[1], shape[1])])
    else:
        inputs = x[1]
        outputs, macs = _grouped(ctx, x[1], w, count, shape[1])
    if inputs is None and w[1] is not None:
        check_length(len(w[1]) * count)
        inputs = np.tile(w[1], count)
    y = ctx.out_shape()
    positions = prod(y[1:-1] if channels_last else y[2:]) * prod(shape[2:])
    outputs = _finish(ctx, slots, x, inputs, outputs, macs, positions, (1, 0), count)
    spatial = (None,) * (len(y) - 2)
    return [(x[0], *spatial, outputs) if channels_last else (x[0], outputs, *spatial)]


def conv_transpose(ctx: NodeContext) -> list[Axes]:
    """x [N, C, …], W [C, M/g, k…], b [M] → y [N, M, …]; https://onnx.ai/onnx/operators/onnx__ConvTranspose.html"""
    if not _stored(ctx, [1, 2]):
        return ctx.freeze_all(_COMPUTED)
    x, w = ctx.axes(0), ctx.axes(1)
    _freeze_spatial(ctx, x, w)
    count = ctx.integer("group", 1)
    inputs = ctx.unify(x[1], w[0])
    size_in, size_out = ctx.shape(1)[0], ctx.shape(1)[1]
    if ctx.shape(0)[1] != size_in:
        raise Opaque("its weight reads another number of channels than there are")
    if count == 1 or w[0] is None or w[1] is None:
        outputs = w[1] if count == 1 else None
        macs: tuple[float, list[tuple[Ids | None, int]]] = (1.0, [(w[0], size_in), (w[1], size_out)])
        if count > 1:
            _freeze_axes(ctx, w, "a grouped transposed convolution of computed weights")
    else:
        by_group = w[0].reshape(count, -1)
        outputs = ctx.builder.fresh(count * size_out)  # leave with the inputs, and are other channels
        made = outputs.reshape(count, size_out)
        if ctx.choose([0, 1], [count, min(by_group.shape[1], size_out)]) == 0:
            ctx.builder.unify(by_group[:, :1], by_group)
            ctx.builder.unify(by_group[:, :1], made)
            ctx.freeze(w[1], "position within a convolution group")
            macs = (float(by_group.shape[1] * size_out), [(by_group[:, 0], count)])
        else:
            ctx.builder.unify(by_group[:1], by_group)
            ctx.builder.unify(w[1], made)
            macs = (float(count), [(by_group[0], by_group.shape[1]), (w[1], size_out)])
        ctx.site(outputs)
    positions = prod(ctx.shape(0)[2:]) * prod(ctx.shape(1)[2:])
    outputs = _finish(ctx, FLOAT, x, inputs if inputs is not None else w[0], outputs, macs, positions, (0, 1), count)
    return [(x[0], outputs, *(None,) * (len(ctx.out_shape()) - 2))]


def _stored(ctx: NodeContext, inputs: list[int]) -> bool:
    return all(ctx.is_constant(k) for k in inputs if ctx.has(k))


def _freeze_axes(ctx: NodeContext, axes: Axes, reason: str) -> None:
    for ids in axes:
        ctx.freeze(ids, reason)


def _freeze_spatial(ctx: NodeContext, x: Axes, w: Axes) -> None:
    for name in ("strides", "dilations"):
        if len(ctx.integer_list(name) or w[2:]) != len(w) - 2:
            raise Opaque(f"its {name} do not fit its kernel")
    _freeze_axes(ctx, x[2:], "convolved over")
    _freeze_axes(ctx, w[2:], "spatial extent of a kernel")


def _grouped(ctx: NodeContext, x: Ids | None, w: Axes, count: int, width: int
             ) -> tuple[Ids | None, tuple[float, list[tuple[Ids | None, int]]]]:  # fmt: skip
    """Channels of a grouped convolution: whole groups, or the same positions in every group."""
    if w[0] is None or w[1] is None:
        for ids in (x, *w[:2]):
            ctx.freeze(ids, "a grouped convolution of computed weights")
        return None, (1.0, [])
    by_group = w[0].reshape(count, -1)
    positions = min(width, by_group.shape[1])
    whole = x is not None and (positions == 1 or ctx.choose([0, 1], [count, positions]) == 0)
    if whole and x is not None:
        ctx.builder.unify(by_group[:, :1], by_group)
        ctx.builder.unify(by_group[:, :1], x.reshape(count, width))
        ctx.freeze(w[1], "position within a convolution group")
        macs: list[tuple[Ids | None, int]] = [(by_group[:, 0], count)]
        coefficient = width * by_group.shape[1]
    else:
        ctx.builder.unify(by_group[:1], by_group)
        ctx.unify(x, None if x is None else np.tile(w[1], count))
        if x is None:
            ctx.freeze(w[1], "reads an input of fixed size")
        macs = [(w[1], width), (by_group[0], by_group.shape[1])]
        coefficient = count
    if positions > 1:
        ctx.site(w[0])
    return w[0], (float(coefficient), macs)


def _finish(ctx: NodeContext, slots: Slots, x: Axes, inputs: Ids | None, outputs: Ids | None,
            macs: tuple[float, list[tuple[Ids | None, int]]], positions: int, axes: tuple[int, int], count: int
            ) -> Ids | None:  # fmt: skip
    """What all convolutions share: bias, masks, edges, cost. Returns the channels of the output."""
    ctx.mask(slots.weight)
    bias = slots.bias if ctx.has(slots.bias) else None
    zero = bias is None
    if bias is not None:
        outputs = ctx.unify(outputs, ctx.axes(bias)[0])
        zero = ctx.mask_where_possible(bias)
    if inputs is not None and outputs is not None:
        ctx.contraction(data=slots.data, weight=slots.weight, bias=bias, in_axis=axes[0], out_axis=axes[1],
                        inputs=inputs, outputs=outputs, groups=count)  # fmt: skip
    ctx.need(outputs, inputs)
    ctx.macs(macs[0] * positions, *macs[1], (x[0], ctx.shape(slots.data)[0]))
    ctx.slices(macs[0], *macs[1])
    if zero and (x[0] is None or (bias is None and ctx.zeroed(slots.data))):
        ctx.builder.zero.add(ctx.node.output[0])
    return outputs


def resize_groups(edit: NodeEditor) -> None:
    """The group count is the number of convolution groups that still have an input channel."""
    count = int(edit.node.attrs.get("group", 1))
    inputs = edit.axes(0)[-1 if edit.node.attrs.get("channels_last", 0) else 1]
    if count > 1 and inputs is not None:
        edit.node.attrs["group"] = int(edit.kept(inputs).reshape(count, -1).any(axis=1).sum())


def matmul(ctx: NodeContext, operands: tuple[int, int] = (0, 1),
           flips: tuple[bool, bool] = (False, False)) -> list[Axes]:  # fmt: skip
    """a […, I, K] · b […, K, J] → y […, I, J]; https://onnx.ai/onnx/operators/onnx__MatMul.html

    ``operands``: the inputs that are a and b. ``flips``: whether each comes with its last two axes swapped.
    """
    if any(len(ctx.shape(k)) < 2 for k in operands):
        return ctx.freeze_all("a product with a vector")
    a_shape, b_shape = (_flipped(ctx.shape(k), flip) for k, flip in zip(operands, flips, strict=True))
    a, b = (_flipped(ctx.axes(k), flip) for k, flip in zip(operands, flips, strict=True))
    side = next((i for i in (1, 0) if ctx.is_constant(operands[i])), None)
    contracted = _contracted(ctx, operands, a[-1], b[-2], side)
    batch = _batch(ctx, a, b, a_shape, b_shape)
    rows, columns = a[-2], b[-1]
    _edges(ctx, operands, flips, side, a, b)
    ctx.need(columns if side == 1 else rows if side == 0 else None, contracted)
    out = ctx.out_shape()
    ctx.macs(1.0, (contracted, a_shape[-1]), (rows, a_shape[-2]), (columns, b_shape[-1]),
             *zip(batch, out[:-2], strict=True))  # fmt: skip
    if side is not None:
        free = (columns, b_shape[-1]) if side == 1 else (rows, a_shape[-2])
        ctx.slices(1.0, (contracted, a_shape[-1]), free)
    zero = [i == side or ctx.zeroed(k) for i, k in enumerate(operands)]
    if (rows is None or zero[0]) and (columns is None or zero[1]) and _zero_in_batch(batch, zero, a_shape, b_shape):
        ctx.builder.zero.add(ctx.node.output[0])
    return [(*batch, rows, columns)]


def _zero_in_batch(batch: Axes, zero: list[bool], a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether some operand is zero at removed channels of each leading axis, and has that axis."""
    operands = list(zip(zero, (a, b), strict=True))
    return all(
        ids is None or any(z and -axis <= len(shape) and shape[axis] != 1 for z, shape in operands)
        for axis, ids in zip(range(-len(batch) - 2, -2), batch, strict=True)
    )


def _contracted(ctx: NodeContext, operands: tuple[int, int], a: Ids | None, b: Ids | None,
                side: int | None) -> Ids | None:  # fmt: skip
    """The channels summed over. Two activations may only lose channels that are zero in one of them."""
    if side is not None:
        ctx.mask(operands[side])
    elif not any(ctx.zeroed(k) for k in operands):
        for ids in (a, b):
            ctx.freeze(ids, "summed over, though removal does not make it zero")
    return ctx.unify(a, b)


def _batch(ctx: NodeContext, a: Axes, b: Axes, a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> Axes:
    """Leading axes broadcast against each other."""
    rank = max(len(a), len(b)) - 2
    batch: list[Ids | None] = []
    for axis in range(-rank - 2, -2):
        held = [(axes[axis], shape[axis]) for axes, shape in ((a, a_shape), (b, b_shape)) if -axis <= len(shape)]
        size = max(n for _, n in held)
        for ids, n in held:
            if n != size:
                ctx.freeze(ids, "one channel broadcast over many")
        full = [ids for ids, n in held if n == size]
        batch.append(ctx.unify(full[0], full[1]) if len(full) == 2 else full[0])
    return tuple(batch)


def _flipped(axes: tuple[_T, ...], flip: bool) -> tuple[_T, ...]:
    return (*axes[:-2], axes[-1], axes[-2]) if flip else axes


def _edges(ctx: NodeContext, operands: tuple[int, int], flips: tuple[bool, bool], side: int | None, a: Axes,
           b: Axes) -> None:  # fmt: skip
    """``side``: which of the operands is the weight."""
    if side is None:
        return
    axes = (a, b)[side]
    contracted, free = (-2, -1) if side == 1 else (-1, -2)
    inputs, outputs = axes[contracted], axes[free]
    if flips[side]:
        contracted, free = free, contracted
    if inputs is not None and outputs is not None:
        rank = len(axes)
        ctx.contraction(data=operands[1 - side], weight=operands[side], bias=None, in_axis=rank + contracted,
                        out_axis=rank + free, inputs=inputs, outputs=outputs)  # fmt: skip


def gemm(ctx: NodeContext, slots: Slots = FLOAT) -> list[Axes]:
    """y = α·A'·B' + β·C with A' [I, K], B' [K, J]; https://onnx.ai/onnx/operators/onnx__Gemm.html"""
    if not _stored(ctx, [slots.weight, slots.bias]):
        return ctx.freeze_all(_COMPUTED)
    flip_a, flip_b = bool(ctx.integer("transA", 0)), bool(ctx.integer("transB", 0))
    rows, data = ctx.axes(slots.data)[:: -1 if flip_a else 1]
    in_axis, out_axis = (1, 0) if flip_b else (0, 1)
    b = ctx.axes(slots.weight)
    inputs = ctx.unify(data, b[in_axis])
    outputs = b[out_axis]
    ctx.mask(slots.weight)
    zero = rows is None
    if ctx.has(slots.bias):
        rows, outputs, masked = _gemm_bias(ctx, slots.bias, rows, outputs)
        zero = zero and masked
    if b[in_axis] is not None and outputs is not None:
        kept = inputs if inputs is not None else b[in_axis]
        assert kept is not None
        ctx.contraction(data=slots.data, weight=slots.weight, bias=slots.bias if ctx.has(slots.bias) else None,
                        in_axis=in_axis, out_axis=out_axis, inputs=kept, outputs=outputs)  # fmt: skip
    ctx.need(outputs, inputs)
    ctx.macs(1.0, (rows, ctx.out_shape()[0]), (outputs, ctx.out_shape()[1]),
             (inputs, ctx.shape(slots.weight)[in_axis]))  # fmt: skip
    ctx.slices(1.0, (inputs, ctx.shape(slots.weight)[in_axis]), (outputs, ctx.shape(slots.weight)[out_axis]))
    if zero:
        ctx.builder.zero.add(ctx.node.output[0])
    return [(rows, outputs)]


def _gemm_bias(ctx: NodeContext, k: int, rows: Ids | None,
               outputs: Ids | None) -> tuple[Ids | None, Ids | None, bool]:  # fmt: skip
    """C broadcasts to [I, J]: the axes that result, and whether it is zero at outputs that are removed."""
    shape, axes = ctx.shape(k), ctx.axes(k)
    result = [rows, outputs]
    for axis in range(-len(shape), 0):
        if shape[axis] == ctx.out_shape()[axis]:
            result[axis] = ctx.unify(result[axis], axes[axis])
        else:
            ctx.freeze(axes[axis], "one channel broadcast over many")
    spans = bool(shape) and shape[-1] == ctx.out_shape()[1]
    return result[0], result[1], spans and ctx.mask_where_possible(k)
