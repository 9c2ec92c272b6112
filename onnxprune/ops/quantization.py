"""Quantised numbers channel by channel: QuantizeLinear, DequantizeLinear, and arithmetic between quantised tensors.

real = (q − zero point)·scale. Scales and zero points that run along an axis belong to its channels; a removed channel
is zero where q is the zero point.
"""

from __future__ import annotations

from math import prod

import numpy as np

from onnxprune.channels import Axes, Ids, NodeContext, Opaque
from onnxprune.editing import NodeEditor
from onnxprune.ops.cutting import joined
from onnxprune.ops.elementwise import choice, product, same, sum_
from onnxprune.ops.reduction import pool, softmax_of
from onnxprune.quantised import axis_of, quantised

__all__ = ["linear", "linear_add", "linear_concat", "linear_leaky_relu", "linear_multiply", "linear_pool",
           "linear_sigmoid", "linear_softmax", "linear_where", "parameters", "resize_linear_concat"]  # fmt: skip


def linear(ctx: NodeContext) -> list[Axes]:
    """https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html; per tensor, per axis or in blocks."""
    axes = list(ctx.axes(0))
    scale = ctx.shape(1)
    if prod(scale) > 1:
        axis = axis_of(ctx.node, 0) % len(axes)
        block = ctx.integer("block_size", 0)
        for k in (1, 2):
            if ctx.has(k) and block:
                _couple_blocks(ctx, k, axes, axis, block)
            elif ctx.has(k):
                axes[axis] = ctx.unify(axes[axis], _vector(ctx, k, ctx.shape(0)[axis]))
    if ctx.zeroed(0):
        ctx.builder.zero.add(ctx.node.output[0])
        if ctx.node.op_type == "QuantizeLinear":
            ctx.quantise_zero(ctx.node.input[2] if ctx.has(2) else "")
    return [tuple(axes)]


def _vector(ctx: NodeContext, k: int, size: int) -> Ids | None:
    """The channels of a scale or zero point, which is a number or a vector."""
    shape = ctx.shape(k)
    wide = [a for a, n in enumerate(shape) if n != 1]
    if len(wide) != 1 or shape[wide[0]] != size:
        raise Opaque("its scales do not run along an axis")
    axes = ctx.axes(k)
    for a, ids in enumerate(axes):
        if a != wide[0]:
            ctx.freeze(ids, "one channel broadcast over many")
    return axes[wide[0]]


def _couple_blocks(ctx: NodeContext, k: int, axes: list[Ids | None], axis: int, block: int) -> None:
    """A scale or zero point for every ``block`` indices of an axis: these leave together."""
    held = ctx.axes(k)
    if len(held) != len(axes):
        raise Opaque("its scales do not run along an axis")
    for a, ids in enumerate(held):
        if a != axis:
            axes[a] = ctx.unify(axes[a], ids)
    size = ctx.shape(0)[axis]
    shared = held[axis]
    axes[axis] = ctx.unify(axes[axis], None if shared is None else np.repeat(shared, block)[:size])


def parameters(ctx: NodeContext, *inputs: int) -> None:
    """Scales and zero points of quantised inputs belong to the channels of the axes they run along.

    An input that is not quantised stands for its own scale, which is that of the result: one number.
    """
    for k in inputs:
        held = quantised(ctx.node, k)
        if held is None and any(prod(ctx.shape(i)) != 1 for i in (k, k + 1) if ctx.has(i)):
            raise Opaque("its result has a scale for every channel")
        for place in () if held is None else (held.scale, held.point):
            if place is not None and ctx.has(place) and prod(ctx.shape(place)) != 1:
                axis = axis_of(ctx.node, k) % len(ctx.shape(k))
                ctx.unify(ctx.axes(k)[axis], _vector(ctx, place, ctx.shape(k)[axis]))


# ---- com.microsoft: quantised operands, each followed by its scale and zero point -----------------------------------


def _requantised(ctx: NodeContext, outputs: list[Axes], scale: int) -> list[Axes]:
    """The result is quantised with the scale at this input and the zero point after it."""
    ctx.quantise_zero(ctx.node.input[scale + 1] if ctx.has(scale + 1) else "")
    return outputs


def linear_add(ctx: NodeContext) -> list[Axes]:
    """QLinearAdd: a, b, y's scale and zero point"""
    parameters(ctx, 0, 3, 6)
    return _requantised(ctx, sum_(ctx, [0, 3]), 6)


def linear_multiply(ctx: NodeContext) -> list[Axes]:
    """QLinearMul: a, b, y's scale and zero point"""
    parameters(ctx, 0, 3, 6)
    return _requantised(ctx, product(ctx, [0, 3]), 6)


def linear_where(ctx: NodeContext) -> list[Axes]:
    """QLinearWhere: condition, a, b, y's scale and zero point"""
    parameters(ctx, 1, 4, 7)
    return _requantised(ctx, choice(ctx, [0, 1, 4]), 7)


def linear_leaky_relu(ctx: NodeContext) -> list[Axes]:
    """QLinearLeakyRelu: x, y's scale and zero point"""
    parameters(ctx, 0, 3)
    return _requantised(ctx, same(ctx, zero_stays=ctx.zeroed(0)), 3)


def linear_sigmoid(ctx: NodeContext) -> list[Axes]:
    """QLinearSigmoid: x, y's scale and zero point; σ(0) is not 0."""
    parameters(ctx, 0, 3)
    return same(ctx, zero_stays=False)


def linear_softmax(ctx: NodeContext) -> list[Axes]:
    """QLinearSoftmax: x, y's scale and zero point; ``opset`` says which Softmax is meant."""
    parameters(ctx, 0, 3)
    return softmax_of(ctx, recent=ctx.integer("opset", 1) >= 13)


def linear_pool(ctx: NodeContext) -> list[Axes]:
    """QLinearAveragePool, QLinearGlobalAveragePool: x, y's scale and zero point"""
    parameters(ctx, 0, 3)
    return _requantised(ctx, pool(ctx, channels_last=bool(ctx.integer("channels_last", 0))), 3)


def linear_concat(ctx: NodeContext) -> list[Axes]:
    """QLinearConcat: y's scale and zero point, then the operands"""
    operands = range(2, len(ctx.node.input), 3)
    parameters(ctx, 0, *operands)
    return _requantised(ctx, joined(ctx, operands), 0)


def resize_linear_concat(edit: NodeEditor) -> None:
    """Operands of which nothing is left are dropped, with their parameters."""
    held = list(edit.node.inputs)
    left = [held[k : k + 3] for k in range(2, len(held), 3) if not edit.emptied(k)]
    if 3 * len(left) + 2 < len(held):
        edit.node.inputs = [*held[:2], *(tensor for operand in left for tensor in operand)]
