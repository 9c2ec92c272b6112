"""Contractions: operators that consume channels and make new ones through a weight. They own the edges.

A convolution with ``groups`` > 1 is a site (see ``onnxprune.channels``): either whole convolution groups leave
together (depthwise: channel by channel), or the same positions leave in every group, so that all stay equally wide.
"""

from __future__ import annotations

from math import prod

import numpy as np

from onnxprune.channels import Axes, Ids, NodeContext
from onnxprune.editing import NodeEditor

__all__ = ["conv", "conv_transpose", "gemm", "matmul", "resize_groups"]

_COMPUTED = "its weight is computed at run time"


def conv(ctx: NodeContext) -> list[Axes]:
    """x [N, C, …], W [M, C/g, k…], b [M] → y [N, M, …]; https://onnx.ai/onnx/operators/onnx__Conv.html"""
    if not _stored(ctx, [1, 2]):
        return ctx.freeze_all(_COMPUTED)
    x, w = _spatial_frozen(ctx)
    count = ctx.integer("group", 1)
    if count == 1:
        inputs, outputs = ctx.unify(x[1], w[1]), w[0]
        macs: tuple[float, list[tuple[Ids | None, int]]] = (1.0, [(w[0], ctx.shape(1)[0]), (w[1], ctx.shape(1)[1])])
    else:
        inputs = x[1]
        outputs, macs = _grouped(ctx, x[1], w, count)
    if inputs is None and w[1] is not None:
        inputs = np.tile(w[1], count)
    return _finish(ctx, x, inputs, outputs, macs, (1, 0), count)


def conv_transpose(ctx: NodeContext) -> list[Axes]:
    """x [N, C, …], W [C, M/g, k…], b [M] → y [N, M, …]; https://onnx.ai/onnx/operators/onnx__ConvTranspose.html"""
    if not _stored(ctx, [1, 2]):
        return ctx.freeze_all(_COMPUTED)
    x, w = _spatial_frozen(ctx)
    count = ctx.integer("group", 1)
    inputs = ctx.unify(x[1], w[0])
    size_in, size_out = ctx.shape(1)[0], ctx.shape(1)[1]
    if count == 1 or w[0] is None or w[1] is None:
        outputs = w[1] if count == 1 else None
        macs: tuple[float, list[tuple[Ids | None, int]]] = (1.0, [(w[0], size_in), (w[1], size_out)])
        if count > 1:
            _freeze_axes(ctx, w, "a grouped transposed convolution of computed weights")
    else:
        by_group = w[0].reshape(count, -1)
        if ctx.choose([0, 1], [count, min(by_group.shape[1], size_out)]) == 0:
            ctx.builder.unify(by_group[:, :1], by_group)
            ctx.freeze(w[1], "position within a convolution group")
            outputs = np.repeat(by_group[:, 0], size_out)
            macs = (float(by_group.shape[1] * size_out), [(by_group[:, 0], count)])
        else:
            ctx.builder.unify(by_group[:1], by_group)
            outputs = np.tile(w[1], count)
            macs = (float(count), [(by_group[0], by_group.shape[1]), (w[1], size_out)])
        ctx.site(outputs)
    return _finish(ctx, x, inputs if inputs is not None else w[0], outputs, macs, (0, 1), count)


def _stored(ctx: NodeContext, inputs: list[int]) -> bool:
    return all(ctx.is_constant(k) for k in inputs if ctx.has(k))


def _freeze_axes(ctx: NodeContext, axes: Axes, reason: str) -> None:
    for ids in axes:
        ctx.freeze(ids, reason)


def _spatial_frozen(ctx: NodeContext) -> tuple[Axes, Axes]:
    """Axes of data and weight, with the spatial ones frozen."""
    x, w = ctx.axes(0), ctx.axes(1)
    _freeze_axes(ctx, x[2:], "convolved over")
    _freeze_axes(ctx, w[2:], "spatial extent of a kernel")
    return x, w


def _grouped(ctx: NodeContext, x: Ids | None, w: Axes, count: int
             ) -> tuple[Ids | None, tuple[float, list[tuple[Ids | None, int]]]]:  # fmt: skip
    """Channels of a grouped convolution: whole groups, or the same positions in every group."""
    width = ctx.shape(1)[1]
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


def _finish(ctx: NodeContext, x: Axes, inputs: Ids | None, outputs: Ids | None,
            macs: tuple[float, list[tuple[Ids | None, int]]], axes: tuple[int, int], count: int
            ) -> list[Axes]:  # fmt: skip
    """What all convolutions share: bias, masks, edges, cost, axes of the output."""
    ctx.mask(1)
    bias = 2 if ctx.has(2) else None
    zero = bias is None
    if bias is not None:
        outputs = ctx.unify(outputs, ctx.axes(bias)[0])
        zero = ctx.mask_where_possible(bias)
    if inputs is not None and outputs is not None:
        ctx.contraction(data=0, weight=1, bias=bias, in_axis=axes[0], out_axis=axes[1],
                        inputs=inputs, outputs=outputs, groups=count)  # fmt: skip
    ctx.need(outputs, inputs)
    transposed = axes == (0, 1)
    positions = prod((ctx.shape(0) if transposed else ctx.out_shape())[2:]) * prod(ctx.shape(1)[2:])
    ctx.macs(macs[0] * positions, *macs[1], (x[0], ctx.shape(0)[0]))
    ctx.slices(macs[0], *macs[1])
    if zero and (x[0] is None or (bias is None and ctx.zeroed(0))):
        ctx.builder.zero.add(ctx.node.output[0])
    return [(x[0], outputs, *(None,) * (len(ctx.out_shape()) - 2))]


def resize_groups(edit: NodeEditor) -> None:
    """The group count is the number of convolution groups that still have an input channel."""
    count = int(edit.node.attrs.get("group", 1))
    inputs = edit.axes(0)[1]
    if count > 1 and inputs is not None:
        edit.node.attrs["group"] = int(edit.kept(inputs).reshape(count, -1).any(axis=1).sum())


def matmul(ctx: NodeContext) -> list[Axes]:
    """a […, I, K] · b […, K, J] → y […, I, J]; https://onnx.ai/onnx/operators/onnx__MatMul.html"""
    a_shape, b_shape = ctx.shape(0), ctx.shape(1)
    if len(a_shape) < 2 or len(b_shape) < 2:
        return ctx.freeze_all("a product with a vector")
    a, b = ctx.axes(0), ctx.axes(1)
    weight = next((k for k in (1, 0) if ctx.is_constant(k)), None)
    contracted = _contracted(ctx, a[-1], b[-2], weight)
    batch = _batch(ctx, a, b, a_shape, b_shape)
    rows, columns = a[-2], b[-1]
    _edges(ctx, weight, a, b)
    ctx.need(columns if weight == 1 else rows if weight == 0 else None, contracted)
    out = ctx.out_shape()
    ctx.macs(1.0, (contracted, a_shape[-1]), (rows, a_shape[-2]), (columns, b_shape[-1]),
             *zip(batch, out[:-2], strict=True))  # fmt: skip
    if weight is not None:
        free = (columns, b_shape[-1]) if weight == 1 else (rows, a_shape[-2])
        ctx.slices(1.0, (contracted, a_shape[-1]), free)
    zero = [k == weight or ctx.zeroed(k) for k in (0, 1)]
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


def _contracted(ctx: NodeContext, a: Ids | None, b: Ids | None, weight: int | None) -> Ids | None:
    """The channels summed over. Two activations may only lose channels that are zero in one of them."""
    if weight is not None:
        ctx.mask(weight)
    elif not (ctx.zeroed(0) or ctx.zeroed(1)):
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


def _edges(ctx: NodeContext, weight: int | None, a: Axes, b: Axes) -> None:
    if weight is None:
        return
    axes = (a, b)[weight]
    contracted, free = (-2, -1) if weight == 1 else (-1, -2)
    inputs, outputs = axes[contracted], axes[free]
    if inputs is not None and outputs is not None:
        rank = len(axes)
        ctx.contraction(data=1 - weight, weight=weight, bias=None, in_axis=rank + contracted, out_axis=rank + free,
                        inputs=inputs, outputs=outputs)  # fmt: skip


def gemm(ctx: NodeContext) -> list[Axes]:
    """y = α·A'·B' + β·C with A' [I, K], B' [K, J]; https://onnx.ai/onnx/operators/onnx__Gemm.html"""
    if not ctx.is_constant(1) or (ctx.has(2) and not ctx.is_constant(2)):
        return ctx.freeze_all(_COMPUTED)
    flip_a, flip_b = bool(ctx.integer("transA", 0)), bool(ctx.integer("transB", 0))
    rows, data = ctx.axes(0)[:: -1 if flip_a else 1]
    in_axis, out_axis = (1, 0) if flip_b else (0, 1)
    b = ctx.axes(1)
    inputs = ctx.unify(data, b[in_axis])
    outputs = b[out_axis]
    ctx.mask(1)
    zero = rows is None
    if ctx.has(2):
        rows, outputs, masked = _gemm_bias(ctx, rows, outputs)
        zero = zero and masked
    if b[in_axis] is not None and outputs is not None:
        kept = inputs if inputs is not None else b[in_axis]
        assert kept is not None
        ctx.contraction(data=0, weight=1, bias=2 if ctx.has(2) else None, in_axis=in_axis, out_axis=out_axis,
                        inputs=kept, outputs=outputs)  # fmt: skip
    ctx.need(outputs, inputs)
    ctx.macs(1.0, (rows, ctx.out_shape()[0]), (outputs, ctx.out_shape()[1]),
             (inputs, ctx.shape(1)[in_axis]))  # fmt: skip
    ctx.slices(1.0, (inputs, ctx.shape(1)[in_axis]), (outputs, ctx.shape(1)[out_axis]))
    if zero:
        ctx.builder.zero.add(ctx.node.output[0])
    return [(rows, outputs)]


def _gemm_bias(ctx: NodeContext, rows: Ids | None, outputs: Ids | None) -> tuple[Ids | None, Ids | None, bool]:
    """C broadcasts to [I, J]: the axes that result, and whether it is zero at outputs that are removed."""
    shape, axes = ctx.shape(2), ctx.axes(2)
    result = [rows, outputs]
    for axis in range(-len(shape), 0):
        if shape[axis] == ctx.out_shape()[axis]:
            result[axis] = ctx.unify(result[axis], axes[axis])
        else:
            ctx.freeze(axes[axis], "one channel broadcast over many")
    spans = bool(shape) and shape[-1] == ctx.out_shape()[1]
    return result[0], result[1], spans and ctx.mask_where_possible(2)
