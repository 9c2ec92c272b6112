"""Control flow laid out flat (see ``onnxprune.bodies``): what goes into a body and what comes out of it.

A state of a loop is the same channels before, in and after every iteration, and both branches of an If make the same
channels. Whatever has channels on one side only is left alone.

https://onnx.ai/onnx/operators/onnx__If.html, …Loop.html, …Scan.html
"""

from __future__ import annotations

from onnxprune.bodies import number
from onnxprune.channels import Axes, NodeContext, Opaque

__all__ = ["branches", "from_loop", "into_loop"]


def branches(ctx: NodeContext) -> list[Axes]:
    """condition, then, else → the one or the other; where only one is ever taken, what the other makes is no matter"""
    taken = ctx.builder.shapes.taken.get(number(ctx.node, "owner"))
    if taken:
        _leaves_body(ctx, taken)
        if not ctx.is_constant(3 - taken) and ctx.node.input[3 - taken] in ctx.builder.shapes.of:
            for ids in ctx.axes(3 - taken):
                ctx.need(None, ids)
        return [_same(ctx, [taken])]
    for k in (1, 2):
        _leaves_body(ctx, k)
    return [_same(ctx, [1, 2])]


def into_loop(ctx: NodeContext) -> list[Axes]:
    """the initial value of a state, or a tensor that is cut into slices → input of a body"""
    if not ctx.node.input:
        return ctx.plain_outputs()  # iteration, condition
    axes = ctx.axes(0)
    for ids in axes:
        ctx.need(None, ids)
    if ctx.is_constant(0):
        ctx.mask_where_possible(0)
    if number(ctx.node, "state"):
        return [axes]
    at = number(ctx.node, "axis") % len(axes)
    ctx.freeze(axes[at], "cut into slices by Scan")
    if ctx.zeroed(0):
        ctx.builder.zero.add(ctx.node.output[0])
    return [(*axes[:at], *axes[at + 1 :])]


def from_loop(ctx: NodeContext) -> list[Axes]:
    """…, initial value of a state, its last value → its final value; or …, slices → all of them stacked"""
    last = len(ctx.node.input) - 1
    _leaves_body(ctx, last)
    if number(ctx.node, "state"):
        return [_same(ctx, [last - 1, last])]
    axes = _same(ctx, [last])
    at = (number(ctx.node, "axis") if ctx.node.op_type == "Scan" else 0) % (len(axes) + 1)
    return [(*axes[:at], None, *axes[at:])]


def _same(ctx: NodeContext, operands: list[int]) -> Axes:
    """Tensors of one shape of which one is the output: the same channels."""
    if any(ctx.shape(k) != ctx.shape(operands[0]) for k in operands):
        raise Opaque("its outputs have no fixed shape")
    axes = [list(ctx.axes(k)) for k in operands]
    result = axes[0]
    for other in axes[1:]:
        result = [ctx.unify(a, b) for a, b in zip(result, other, strict=True)]
    if all([ctx.zeroed_if_possible(k) for k in operands]):  # each is asked
        ctx.builder.zero.add(ctx.node.output[0])
    return tuple(result)


def _leaves_body(ctx: NodeContext, k: int) -> None:
    """A constant that a body returns has to lie in the body, so other readers may not ask for another one."""
    graph, name = ctx.builder.graph, ctx.node.input[k]
    if name in graph.constants and len(graph.consumers[name]) > 1:
        for ids in ctx.axes(k):
            ctx.freeze(ids, "a constant that leaves a body and is read elsewhere too")
