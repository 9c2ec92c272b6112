"""Operators that pick, put or accumulate along some axes, at places computed or stored; the other axes pass.

The axes that are picked along keep their channels. Along the others, channels at equal positions are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxprune.channels import Axes, Ids, NodeContext, Opaque
from onnxprune.ops.movement import carry

__all__ = ["along_axis", "frozen", "gather_elements", "gather_nd", "reverse_sequence", "scatter_elements",
           "scatter_nd", "trilu"]  # fmt: skip

_PICKED = "picked one by one"


def frozen(reason: str) -> Callable[[NodeContext], list[Axes]]:
    """Operators that no channel can pass, and why."""
    return lambda ctx: ctx.freeze_all(reason)


def _passing(ctx: NodeContext, stuck: set[int], reason: str) -> list[Axes]:
    """All axes of the first input pass, but these."""
    axes = ctx.axes(0)
    for a in stuck:
        ctx.freeze(axes[a], reason)
    return carry(ctx, tuple(None if a in stuck else ids for a, ids in enumerate(axes)))


def along_axis(ctx: NodeContext) -> list[Axes]:
    """CumSum and others: along an axis given as an input; https://onnx.ai/onnx/operators/onnx__CumSum.html"""
    axis = ctx.integers(1)
    if axis is None:
        raise Opaque("its axis is computed at run time")
    return _passing(ctx, {axis[0] % len(ctx.shape(0))}, f"{ctx.node.op_type} over the channels")


def reverse_sequence(ctx: NodeContext) -> list[Axes]:
    """https://onnx.ai/onnx/operators/onnx__ReverseSequence.html"""
    ctx.freeze_input(1, "lengths of sequences")
    return _passing(ctx, {ctx.integer("batch_axis", 1), ctx.integer("time_axis", 0)}, "reversed along the channels")


def trilu(ctx: NodeContext) -> list[Axes]:
    """The last two axes are a matrix; https://onnx.ai/onnx/operators/onnx__Trilu.html"""
    rank = len(ctx.shape(0))
    return _passing(ctx, {rank - 2, rank - 1}, "a triangle of a matrix")


def gather_elements(ctx: NodeContext) -> list[Axes]:
    """data, indices of the same rank; https://onnx.ai/onnx/operators/onnx__GatherElements.html"""
    axis = ctx.axis("axis", 0, len(ctx.shape(0)))
    picked = _aligned(ctx, axis, (1,))
    return carry(ctx, tuple(picked))


def scatter_elements(ctx: NodeContext) -> list[Axes]:
    """data, indices and updates of the same rank; https://onnx.ai/onnx/operators/onnx__ScatterElements.html"""
    axes = list(ctx.axes(0))
    axis = ctx.axis("axis", 0, len(axes))
    put = _aligned(ctx, axis, (1, 2))
    result = [None if a == axis or (ids is not None and put[a] is None) else ids for a, ids in enumerate(axes)]
    for a, ids in enumerate(axes):
        if result[a] is None:
            ctx.freeze(ids, _PICKED)
    if ctx.zeroed(0) and ctx.zeroed(2):
        ctx.builder.zero.add(ctx.node.output[0])
    return [tuple(result)]


def _aligned(ctx: NodeContext, axis: int, others: Sequence[int]) -> list[Ids | None]:
    """Along all axes but one, what is picked or put stands at the positions of the data's first channels."""
    axes = ctx.axes(0)
    for k in (0, *others):
        ctx.freeze(ctx.axes(k)[axis], _PICKED)
    result: list[Ids | None] = []
    for a, ids in enumerate(axes):
        size = ctx.shape(others[0])[a]
        same = ids if ids is None or size == len(ids) else ids[:size]
        for k in others if a != axis else ():
            same = ctx.unify(same, ctx.axes(k)[a])
        result.append(None if a == axis else same)
    return result


def gather_nd(ctx: NodeContext) -> list[Axes]:
    """data, indices [batch…, …, k] → the axes of indices but the last, then those of data that are not picked along.

    https://onnx.ai/onnx/operators/onnx__GatherND.html
    """
    axes, indices = ctx.axes(0), ctx.shape(1)
    ctx.freeze_input(1, _PICKED)
    picked = ctx.integer("batch_dims", 0) + indices[-1]
    for ids in axes[:picked]:
        ctx.freeze(ids, _PICKED)
    return carry(ctx, (*(None,) * (len(indices) - 1), *axes[picked:]))


def scatter_nd(ctx: NodeContext) -> list[Axes]:
    """data, indices [.., k], updates [.., the axes of data after the first k]

    https://onnx.ai/onnx/operators/onnx__ScatterND.html
    """
    axes, indices, updates = list(ctx.axes(0)), ctx.shape(1), ctx.axes(2)
    ctx.freeze_input(1, _PICKED)
    for ids in (*axes[: indices[-1]], *updates[: len(indices) - 1]):
        ctx.freeze(ids, _PICKED)
    for a in range(len(axes)):
        axes[a] = None if a < indices[-1] else ctx.unify(axes[a], updates[len(indices) - 1 + a - indices[-1]])
    if ctx.zeroed(0) and ctx.zeroed(2):
        ctx.builder.zero.add(ctx.node.output[0])
    return [tuple(axes)]
