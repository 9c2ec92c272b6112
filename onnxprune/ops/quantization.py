"""Quantisation as QuantizeLinear / DequantizeLinear pairs: real = (q − zero point)·scale.

Per-channel scales and zero points belong to the channels of the axis they run along. A removed channel is 'zero' when
q is the zero point.
"""

from __future__ import annotations

from onnxprune.channels import Axes, NodeContext

__all__ = ["linear"]


def linear(ctx: NodeContext) -> list[Axes]:
    """https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html; per tensor or per axis."""
    axes = list(ctx.axes(0))
    scale = ctx.shape(1)
    if len(scale) > 1 or ctx.integer("block_size", 0):
        return ctx.freeze_all("quantised in blocks")
    if scale and (scale[0] > 1 or len(axes) == 1):
        axis = ctx.axis("axis", 1, len(axes))
        if scale[0] != ctx.shape(0)[axis]:
            return ctx.freeze_all("its scales do not run along an axis")
        for k in (1, 2):
            if ctx.has(k):
                axes[axis] = ctx.unify(axes[axis], ctx.axes(k)[0])
    if ctx.zeroed(0):
        ctx.builder.zero.add(ctx.node.output[0])
    return [tuple(axes)]
