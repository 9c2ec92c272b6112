"""Sampling an image at other places: every channel for itself, at places that all channels share.

What is sampled of zeros is zero. The places (grids, regions, offsets) keep their sizes.
"""

from __future__ import annotations

import numpy as np

from onnxprune.channels import Axes, NodeContext, Opaque
from onnxprune.ops.contraction import Slots, conv
from onnxprune.ops.movement import carry

__all__ = ["col2im", "crop_or_pad", "deform_conv", "grid_sample", "max_unpool", "region_pool"]


def _freeze_others(ctx: NodeContext, first: int, reason: str) -> None:
    """Freeze all inputs from ``first`` on."""
    for k in range(first, len(ctx.node.input)):
        ctx.freeze_input(k, reason)


def grid_sample(ctx: NodeContext) -> list[Axes]:
    """x [N, C, …], grid [N, …] → [N, C, …]; https://onnx.ai/onnx/operators/onnx__GridSample.html"""
    return _sampled(ctx, "sampled over")


def region_pool(ctx: NodeContext) -> list[Axes]:
    """x [N, C, H, W], regions → [regions, C, h, w]

    https://onnx.ai/onnx/operators/onnx__RoiAlign.html, …MaxRoiPool.html
    """
    return _sampled(ctx, "pooled by regions")


def _sampled(ctx: NodeContext, reason: str) -> list[Axes]:
    axes = ctx.axes(0)
    for a, ids in enumerate(axes):
        if a != 1:
            ctx.freeze(ids, reason)
    _freeze_others(ctx, 1, reason)
    return carry(ctx, tuple(axes[1] if a == 1 else None for a in range(len(ctx.out_shape()))))


def max_unpool(ctx: NodeContext) -> list[Axes]:
    """https://onnx.ai/onnx/operators/onnx__MaxUnpool.html"""
    return ctx.freeze_all("its indices count through all channels")


def deform_conv(ctx: NodeContext) -> list[Axes]:
    """x, W, offsets, b, mask; https://onnx.ai/onnx/operators/onnx__DeformConv.html"""
    for k in (2, 4):
        ctx.freeze_input(k, "places to sample at")
    if ctx.integer("offset_group", 1) > 1:
        ctx.freeze(ctx.axes(0)[1], "channels share offsets in groups")
    return conv(ctx, Slots(0, 1, 3))


def col2im(ctx: NodeContext) -> list[Axes]:
    """[N, C·k, L] → [N, C, …]: the k rows behind one output channel leave together.

    https://onnx.ai/onnx/operators/onnx__Col2Im.html
    """
    axes = ctx.axes(0)
    ctx.freeze(axes[2], "moved between columns and space")
    _freeze_others(ctx, 1, "sizes of an image and its blocks")
    ids = axes[1]
    if ids is not None:
        lines = ids.reshape(ctx.out_shape()[1], -1)
        ctx.builder.unify(lines[:, :1], lines)
        ids = np.ascontiguousarray(lines[:, 0])
    return carry(ctx, (axes[0], ids, *(None,) * (len(ctx.out_shape()) - 2)))


def crop_or_pad(ctx: NodeContext) -> list[Axes]:
    """Axes brought to given sizes; the others pass. https://onnx.ai/onnx/operators/onnx__CenterCropPad.html"""
    axes = ctx.axes(0)
    if len(ctx.out_shape()) != len(axes):
        raise Opaque("its sizes are computed at run time")
    named = ctx.integer_list("axes")
    cut = set(range(len(axes))) if named is None else {a % len(axes) for a in named}
    for a in cut:
        ctx.freeze(axes[a], "cropped or padded along the channels")
    return carry(ctx, tuple(None if a in cut else ids for a, ids in enumerate(axes)))
