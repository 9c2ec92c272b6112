"""Rotary positions in one node: pairs of channels of a head, turned by an angle per token.

y[i] = x[i]·cos − x[j]·sin and y[j] = x[j]·cos + x[i]·sin for the pair (i, j) of a head, which is (i, i + width/2) or,
interleaved, (2i, 2i + 1). Whole heads leave, or the same pairs in every head, with their columns of the caches of
cosines and sines. Which, if heads and width are folded into one axis, is a choice (see ``onnxprune.ops.attention``).

https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html; com.microsoft.RotaryEmbedding has its inputs in another order
"""

from __future__ import annotations

import numpy as np

from onnxprune.channels import Axes, Ids, NodeContext, Opaque
from onnxprune.editing import NodeEditor
from onnxprune.ops.attention import fold_heads
from onnxprune.ops.movement import carry

__all__ = ["resize_rotary", "rotary"]


def rotary(ctx: NodeContext) -> list[Axes]:
    """x [B, heads, L, width] or [B, L, heads·width] and the caches [positions, width/2]"""
    axes = _without_positions(ctx, ctx.axes(0))
    if len(axes) == 4:
        _turned(ctx, axes[3], ctx.shape(0)[3])
        return carry(ctx, axes)
    count = _count(ctx)
    if not count or ctx.shape(0)[-1] % count:
        raise Opaque("its heads are not equally wide")
    way = "width" if count == 1 else ctx.turn(("heads", "heads", "width"))
    heads, positions = fold_heads(ctx, axes[-1], count, way)  # type: ignore[arg-type]
    for ids in (heads, positions):
        if ids is not None:
            ctx.site(ids)
    _turned(ctx, positions, ctx.shape(0)[-1] // count)
    return carry(ctx, axes)


def _without_positions(ctx: NodeContext, axes: Axes) -> Axes:
    """Batch and length stay: the caches, or the positions, have them too."""
    plain = (0, len(axes) - 2)
    for a in plain:
        ctx.freeze(axes[a], "looked up by position")
    return tuple(None if a in plain else ids for a, ids in enumerate(axes))


def _caches(ctx: NodeContext) -> tuple[int, int]:
    return (2, 3) if ctx.node.domain == "com.microsoft" else (1, 2)


def _count(ctx: NodeContext) -> int:
    """The number of heads; com.microsoft leaves it to the caches where it is not given."""
    count, size = ctx.integer("num_heads", 0), ctx.shape(0)[-1]
    return count or size // (2 * ctx.shape(_caches(ctx)[0])[-1])


def _turned(ctx: NodeContext, ids: Ids | None, width: int) -> None:
    """Couple the pairs of a head (ids [width]) and their columns of the caches."""
    turned = ctx.integer("rotary_embedding_dim", 0) or width
    if ids is None or turned != width:
        if ids is not None:
            ctx.freeze(ids[:turned], "turned in pairs, beside others that are not")
        for k in _caches(ctx):
            ctx.freeze_input(k, "as wide as a head")
        return
    pairs = ids.reshape(-1, 2) if ctx.integer("interleaved", 0) else ids.reshape(2, -1).T
    ctx.builder.unify(pairs[:, :1], pairs)
    for k in _caches(ctx):
        *outer, columns = ctx.axes(k)
        for held in outer:
            ctx.freeze(held, "looked up by position")
        ctx.unify(np.ascontiguousarray(pairs[:, 0]), columns)


def resize_rotary(edit: NodeEditor) -> None:
    """The head count, where it is given."""
    count, ids = int(edit.node.attrs.get("num_heads", 0)), edit.axes(0)[-1]
    if count and ids is not None and len(edit.axes(0)) == 3:
        edit.node.attrs["num_heads"] = int(edit.kept(ids).reshape(count, -1).any(axis=1).sum())
