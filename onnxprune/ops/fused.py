"""Fused operators of the domain com.microsoft that exported and pre-optimised models carry.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from onnxprune.channels import Axes, NodeContext
from onnxprune.graph import attribute
from onnxprune.ops.contraction import conv, gemm, matmul
from onnxprune.ops.elementwise import add

__all__ = ["bias_gelu", "fused_conv", "fused_gemm", "fused_matmul"]

_ZERO_KEEPING = frozenset({"", "Relu", "LeakyRelu", "Tanh", "HardSwish"})


def _forget_zero(ctx: NodeContext, kept: bool) -> None:
    if not kept:
        ctx.builder.zero.discard(ctx.node.output[0])


def fused_conv(ctx: NodeContext) -> list[Axes]:
    """activation(Conv(x, W, b) + z)"""
    activation = attribute(ctx.node, "activation") or ""
    outputs = conv(ctx)
    if ctx.has(3):
        outputs = [tuple(ctx.unify(a, b) for a, b in zip(outputs[0], ctx.axes(3), strict=True))]
        _forget_zero(ctx, ctx.zeroed(3))  # a sum is zero where both are
    _forget_zero(ctx, activation in _ZERO_KEEPING)
    return outputs


def fused_gemm(ctx: NodeContext) -> list[Axes]:
    """activation(Gemm(a, b, c))"""
    outputs = gemm(ctx)
    _forget_zero(ctx, (attribute(ctx.node, "activation") or "") in _ZERO_KEEPING)
    return outputs


def fused_matmul(ctx: NodeContext) -> list[Axes]:
    """α·a'·b', transposed on request."""
    if any(ctx.integer(name, 0) for name in ("transBatchA", "transBatchB")):
        return ctx.freeze_all("a FusedMatMul that transposes batches is not understood")
    return matmul(ctx, flips=(bool(ctx.integer("transA", 0)), bool(ctx.integer("transB", 0))))


def bias_gelu(ctx: NodeContext) -> list[Axes]:
    """GELU(a + b)"""
    return add(ctx)
