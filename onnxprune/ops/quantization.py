"""Quantisation as QuantizeLinear / DequantizeLinear pairs: real = (q − zero point)·scale.

Per-channel scales and zero points belong to the channels of the axis they run along. A removed channel is 'zero' when
q is the zero point.
"""

from __future__ import annotations

from math import prod

import numpy as np

from onnxprune.channels import Axes, NodeContext

__all__ = ["linear"]


def linear(ctx: NodeContext) -> list[Axes]:
    """https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html; per tensor or per axis."""
    axes = list(ctx.axes(0))
    scale = ctx.shape(1)
    if len(scale) > 1 or ctx.integer("block_size", 0):
        return ctx.freeze_all("quantised in blocks")
    if not ctx.is_constant(1) or (ctx.has(2) and ctx.node.input[2] not in ctx.builder.graph.constants):
        return ctx.freeze_all("its scale or zero point is computed")
    if prod(scale) > 1:
        axis = ctx.axis("axis", 1, len(axes))
        if scale[0] != ctx.shape(0)[axis]:
            return ctx.freeze_all("its scales do not run along an axis")
        for k in (1, 2):
            if ctx.has(k):
                axes[axis] = ctx.unify(axes[axis], ctx.axes(k)[0])
    if ctx.zeroed(0) and _stays_zero(ctx):
        ctx.builder.zero.add(ctx.node.output[0])
    return [tuple(axes)]


def _stays_zero(ctx: NodeContext) -> bool:
    """Whether a zero arrives as a zero: the zero point is 0, or the other half of the pair has the same."""
    graph, point = ctx.builder.graph, ctx.node.input[2] if ctx.has(2) else ""
    if not point or not np.any(graph.values(point)):
        return True
    if ctx.node.op_type == "QuantizeLinear":
        other = [graph.nodes[index] for index, _ in graph.consumers.get(ctx.node.output[0], [])]
    else:
        maker = graph.producer.get(ctx.node.input[0])
        other = [] if maker is None else [graph.nodes[maker]]
    pair = {"QuantizeLinear": "DequantizeLinear", "DequantizeLinear": "QuantizeLinear"}[ctx.node.op_type]
    return bool(other) and all(node.op_type == pair and list(node.input[2:3]) == [point] for node in other)
