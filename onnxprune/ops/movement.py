"""Movement: operators that carry channels elsewhere without computing anything, and spell out no sizes.

The ids of every axis go where its indices go. Reshape and its relatives are in ``reshape``; what joins and cuts along
an axis is in ``cutting``.
"""

from __future__ import annotations

import numpy as np

from onnxprune.channels import Axes, NodeContext, check_length
from onnxprune.graph import attribute

__all__ = ["carry", "depth_to_space", "space_to_depth", "tile", "transpose"]


def carry(ctx: NodeContext, axes: Axes, k: int = 0) -> list[Axes]:
    """One output with these axes; every output is zero where input k is."""
    if ctx.zeroed(k):
        ctx.builder.zero.update(name for name in ctx.node.output if name)
    ctx.rests(k, *ctx.node.output)
    return [axes]


def transpose(ctx: NodeContext) -> list[Axes]:
    """Axes in another order, https://onnx.ai/onnx/operators/onnx__Transpose.html"""
    axes = ctx.axes(0)
    order = ctx.integer_list("perm") or range(len(axes))[::-1]
    return carry(ctx, tuple(axes[i] for i in order))


def tile(ctx: NodeContext) -> list[Axes]:
    """Axes repeated as a whole, https://onnx.ai/onnx/operators/onnx__Tile.html"""
    for wide in ctx.out_shape():
        check_length(wide)
    axes = [
        None if ids is None else np.tile(ids, wide // size)
        for ids, size, wide in zip(ctx.axes(0), ctx.shape(0), ctx.out_shape(), strict=True)
    ]
    return carry(ctx, tuple(axes))


def depth_to_space(ctx: NodeContext) -> list[Axes]:
    """[N, C·b², H, W] → [N, C, H·b, W·b]; the b² channels behind one output channel are coupled.

    https://onnx.ai/onnx/operators/onnx__DepthToSpace.html
    """
    axes, block = ctx.axes(0), ctx.integer("blocksize", 1)
    _plain_beyond_channels(ctx, axes)
    if axes[1] is None:
        return carry(ctx, axes)
    last = attribute(ctx.node, "mode") == "CRD"
    lines = axes[1].reshape((-1, block * block)) if last else axes[1].reshape((block * block, -1)).T
    ctx.builder.unify(lines[:, :1], lines)
    return carry(ctx, (axes[0], np.ascontiguousarray(lines[:, 0]), None, None))


def space_to_depth(ctx: NodeContext) -> list[Axes]:
    """[N, C, H, W] → [N, b²·C, H/b, W/b]: all channels b² times, or (CRD) each of them.

    https://onnx.ai/onnx/operators/onnx__SpaceToDepth.html
    """
    axes, block = ctx.axes(0), ctx.integer("blocksize", 1)
    _plain_beyond_channels(ctx, axes)
    check_length(ctx.out_shape()[1])
    spread = np.repeat if attribute(ctx.node, "mode") == "CRD" else np.tile
    repeated = None if axes[1] is None else spread(axes[1], block * block)
    return carry(ctx, (axes[0], repeated, None, None))


def _plain_beyond_channels(ctx: NodeContext, axes: Axes) -> None:
    for ids in axes[2:]:
        ctx.freeze(ids, "moved between space and depth")
