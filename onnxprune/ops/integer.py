"""Contractions of quantised numbers, and quantisation by the range of what is computed.

The arithmetic is that of Conv, MatMul and Gemm on q − zero point, so their rules are used. A weight is zero where q is
the zero point; what lies beyond the edge of an image is the zero point of the image. Scales and zero points that run
along an axis belong to its channels.
"""

from __future__ import annotations

from onnxprune.channels import Axes, NodeContext
from onnxprune.ops.contraction import Slots, conv, gemm, matmul
from onnxprune.ops.elementwise import add_vector
from onnxprune.ops.quantization import parameters

__all__ = ["dynamic_linear", "dynamic_matmul", "integer_conv", "integer_matmul", "linear_conv", "linear_gemm",
           "linear_matmul", "matmul_to_float"]  # fmt: skip


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
