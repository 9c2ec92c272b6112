"""Contractions of quantised numbers, and quantisation by the range of what is computed.

The arithmetic is that of Conv, MatMul and Gemm on q − zero point, so their rules are used. A weight is zero where q is
the zero point; what lies beyond the edge of an image is the zero point of the image. Scales and zero points that run
along an axis belong to its channels.
"""

from __future__ import annotations

import numpy as np

from onnxprune.channels import Axes, Ids, NodeContext, Opaque
from onnxprune.editing import NodeEditor
from onnxprune.ops.contraction import Slots, conv, gemm, matmul
from onnxprune.ops.elementwise import add_vector
from onnxprune.ops.quantization import parameters

__all__ = ["dynamic_linear", "dynamic_matmul", "integer_conv", "integer_matmul", "linear_conv", "linear_gemm",
           "linear_matmul", "matmul_to_float", "packed_matmul", "resize_packed_matmul"]  # fmt: skip


def linear_conv(ctx: NodeContext) -> list[Axes]:
    """x, its scale and zero point, W and its, y's, bias; https://onnx.ai/onnx/operators/onnx__QLinearConv.html"""
    parameters(ctx, 0, 3, 6)
    last = bool(ctx.node.domain == "com.microsoft" and ctx.integer("channels_last", 0))
    outputs = conv(ctx, Slots(0, 3, 8), channels_last=last)
    ctx.quantise_zero(ctx.node.input[7])
    return outputs


def integer_conv(ctx: NodeContext) -> list[Axes]:
    """x, W, their zero points → int32; https://onnx.ai/onnx/operators/onnx__ConvInteger.html"""
    parameters(ctx, 0, 1)
    return conv(ctx, Slots(0, 1, 4))


def linear_matmul(ctx: NodeContext) -> list[Axes]:
    """a and b, each with its scale and zero point, y's; https://onnx.ai/onnx/operators/onnx__QLinearMatMul.html"""
    parameters(ctx, 0, 3, 6)
    outputs = matmul(ctx, (0, 3))
    ctx.quantise_zero(ctx.node.input[7])
    return outputs


def integer_matmul(ctx: NodeContext) -> list[Axes]:
    """a, b, their zero points → int32; https://onnx.ai/onnx/operators/onnx__MatMulInteger.html"""
    parameters(ctx, 0, 1)
    return matmul(ctx)


def linear_gemm(ctx: NodeContext) -> list[Axes]:
    """com.microsoft.QGemm: a and b, each with its scale and zero point, bias, y's (without: the result is float)."""
    quantised = ctx.has(8)
    parameters(ctx, 0, 3, *((7,) if quantised else ()))
    outputs = gemm(ctx, Slots(0, 3, 6))
    if quantised:
        ctx.quantise_zero(ctx.node.input[8])
    return outputs


def matmul_to_float(ctx: NodeContext) -> list[Axes]:
    """com.microsoft.MatMulIntegerToFloat: a, b, their scales, their zero points, bias → float"""
    parameters(ctx, 0, 1)
    return _with_bias(ctx, matmul(ctx), 6)


def dynamic_matmul(ctx: NodeContext) -> list[Axes]:
    """com.microsoft.DynamicQuantizeMatMul: a (float), b and its scale and zero point, bias → float"""
    _freeze_unless_zero(ctx)
    parameters(ctx, 1)
    return _with_bias(ctx, matmul(ctx), 4)


def _with_bias(ctx: NodeContext, outputs: list[Axes], k: int) -> list[Axes]:
    """A bias [N] added to what a product made."""
    return add_vector(ctx, outputs[0], k) if ctx.has(k) else outputs


def dynamic_linear(ctx: NodeContext) -> list[Axes]:
    """x → q, and the scale and zero point by the range of x, which always includes 0: channels of zeros do not count.

    https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html
    """
    _freeze_unless_zero(ctx)
    if ctx.zeroed(0):
        point = ctx.node.output[2] if len(ctx.node.output) > 2 else ""
        ctx.builder.rest[ctx.node.output[0]] = point or "?"
    return [ctx.axes(0), (), ()]


def _freeze_unless_zero(ctx: NodeContext) -> None:
    if not ctx.zeroed(0):
        ctx.freeze_input(0, "quantised by its range, though removal does not make it zero")


def packed_matmul(ctx: NodeContext) -> list[Axes]:
    """com.microsoft.MatMulNBits: a […, K], B [N, blocks, bytes], scales and zero points of blocks, bias [N] → […, N]

    B packs several numbers in a byte, and blocks of K share a scale, so that the inputs stay. An output is zero where
    its scales are, which the masked reference makes so.
    """
    outputs = ctx.axes(1)[0]
    if outputs is None or not all(ctx.is_constant(k) for k in range(1, len(ctx.node.input)) if ctx.has(k)):
        return ctx.freeze_all("its weight is computed at run time")
    data, size = ctx.axes(0), len(outputs)
    ctx.freeze(data[-1], "weights packed in blocks")
    ctx.freeze_input(4, "weights packed in blocks")
    for k in (1, 2, 3):
        _rows_of(ctx, k, outputs)
    ctx.mask(2)
    inputs = np.zeros(ctx.shape(0)[-1], np.int32)
    ctx.contraction(data=0, weight=1, bias=5 if ctx.has(5) else None, in_axis=1, out_axis=0, inputs=inputs,
                    outputs=outputs)  # fmt: skip
    ctx.macs(float(len(inputs)), (outputs, size), *zip(data[:-1], ctx.shape(0)[:-1], strict=True))
    ctx.slices(float(len(inputs)), (outputs, size))
    if all(ids is None for ids in data[:-1]):
        ctx.builder.zero.add(ctx.node.output[0])
    result = (*data[:-1], outputs)
    return add_vector(ctx, result, 5) if ctx.has(5) else [result]


def _rows_of(ctx: NodeContext, k: int, outputs: Ids) -> None:
    """Numbers of the blocks of every output: [outputs, …], or all in a row."""
    if not ctx.has(k):
        return
    first, *others = ctx.axes(k)
    for ids in others:
        ctx.freeze(ids, "weights packed in blocks")
    if ctx.shape(k)[0] % len(outputs):
        raise Opaque("its scales are not those of its outputs")
    ctx.unify(first, np.repeat(outputs, ctx.shape(k)[0] // len(outputs)))


def resize_packed_matmul(edit: NodeEditor) -> None:
    """N follows the outputs that remain."""
    outputs = edit.axes(1)[0]
    if outputs is not None and edit.changed(outputs):
        edit.node.attrs["N"] = edit.kept_count(outputs)
