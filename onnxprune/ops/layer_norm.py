"""Normalisations over the channels of each token: LayerNormalization, RMSNormalization and their fused relatives.

A root mean square over k of C channels is another number than over all, but where the channels that leave are zero it
is known which, and γ and ε can make up for it:

    √(Σx²/C + ε) = √(k/C) · √(Σx²/k + ε·C/k)      so      γ' = γ·√(C/k)   and   ε' = ε·C/k

A mean that is subtracted makes zeros what is not zero, so a LayerNormalization keeps its channels (or, where the user
allows it, is computed over fewer).

https://onnx.ai/onnx/operators/onnx__LayerNormalization.html, …RMSNormalization.html; of the domain com.microsoft,
EmbedLayerNormalization and Skip…: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from onnxprune.channels import Axes, Ids, NodeContext, Opaque
from onnxprune.editing import NodeEditor
from onnxprune.ops.reduction import reduce_channels

__all__ = ["embed_layer_normalization", "layer_normalization", "resize_rms_normalization", "rms_normalization"]

_REASON = "normalised over the channels"
_SUM = 3  # the output of a Skip… that holds what was normalised
_EPSILON = {"SkipSimplifiedLayerNormalization": 1e-12}


def layer_normalization(ctx: NodeContext) -> list[Axes]:
    """x (, skip), γ, β (, bias) → y, mean, 1/deviation, sum"""
    axes, axis = _summed(ctx), _first(ctx)
    reduce_channels(ctx, axes[axis:], ctx.builder.allow_renorm, _REASON)
    masked = [_parameter(ctx, axes, k) for k in range(_summands(ctx), len(ctx.node.input)) if ctx.has(k)]
    if all(masked) and all(ids is None for ids in axes[:axis]):
        ctx.builder.zero.add(ctx.node.output[0])
    return _outputs(ctx, axes, axis)


def rms_normalization(ctx: NodeContext) -> list[Axes]:
    """x (, skip), γ (, bias) → y, mean, 1/deviation, sum"""
    axes, axis, first = _summed(ctx), _first(ctx), _summands(ctx)
    _parameter(ctx, axes, first)
    zero = all(ctx.zeroed(k) for k in range(first))
    for k in range(first + 1, len(ctx.node.input)):
        if ctx.has(k):
            zero = _parameter(ctx, axes, k) and zero
    if not zero:
        reduce_channels(ctx, axes[axis:], ctx.builder.allow_renorm, _REASON)
        return _outputs(ctx, axes, axis)
    for ids in axes[axis:]:
        ctx.need(None, ids)
    ctx.builder.zero.update(name for k, name in enumerate(ctx.node.output) if name and k in (0, _SUM))
    return _outputs(ctx, axes, axis)


def embed_layer_normalization(ctx: NodeContext) -> list[Axes]:
    """word ids, segment ids, tables of words, positions and segments, γ, β, mask → y, mask index, sum of embeddings"""
    hidden: Ids | None = None
    for n, k in enumerate(k for k in (2, 3, 4, 5, 6) if ctx.has(k)):
        *rows, ids = ctx.axes(k)
        for held in rows:
            ctx.freeze(held, "looked up by an index computed at run time")
        hidden = ids if n == 0 else ctx.unify(hidden, ids)
        ctx.mask_where_possible(k)
    reduce_channels(ctx, [hidden], ctx.builder.allow_renorm, _REASON)
    whole: Axes = (None, None, hidden)
    return [whole if k != 1 else (None,) for k in range(len(ctx.node.output))]


def _summands(ctx: NodeContext) -> int:
    """How many inputs are added up before they are normalised (the bias apart, which comes last)."""
    return 2 if ctx.node.op_type.startswith("Skip") else 1


def _first(ctx: NodeContext) -> int:
    """The first axis that is normalised over."""
    return ctx.axis("axis", -1, len(ctx.shape(0)))


def _summed(ctx: NodeContext) -> list[Ids | None]:
    """Axes of what is normalised; a skip of fewer axes is aligned at the right."""
    axes, shape = list(ctx.axes(0)), ctx.shape(0)
    for k in range(1, _summands(ctx)):
        other = ctx.shape(k)
        for a, ids in enumerate(ctx.axes(k), len(axes) - len(other)):
            if other[a - len(axes)] == shape[a]:
                axes[a] = ctx.unify(axes[a], ids)
            else:
                ctx.freeze(ids, "one channel broadcast over many")
        if ctx.is_constant(k):
            ctx.mask_where_possible(k)
    return axes


def _parameter(ctx: NodeContext, axes: list[Ids | None], k: int) -> bool:
    """γ, β or a bias, aligned at the right; whether it is zero at channels that are removed."""
    shape = ctx.shape(k)
    for a, ids in zip(range(-len(shape), 0), ctx.axes(k), strict=True):
        if shape[a] != ctx.shape(0)[a]:
            raise Opaque("its parameters are not as wide as its input")
        axes[a] = ctx.unify(axes[a], ids)
    return ctx.mask_where_possible(k)


def _outputs(ctx: NodeContext, axes: Sequence[Ids | None], axis: int) -> list[Axes]:
    statistics: Axes = (*axes[:axis], *(None,) * (len(axes) - axis))
    whole = (0, _SUM) if _summands(ctx) == 2 else (0,)
    return [tuple(axes) if k in whole else statistics for k in range(len(ctx.node.output))]


def resize_rms_normalization(edit: NodeEditor) -> None:
    """γ and ε make up for the channels that left, unless it is computed over fewer on request."""
    context = edit.context
    axes, share = edit.axes(0)[_first(context) :], 1.0
    for ids in axes:
        share *= 1.0 if ids is None else edit.kept_count(ids) / len(ids)
    if share == 1 or edit.is_renormalised:
        return
    epsilon = float(edit.node.attrs.get("epsilon", _EPSILON.get(context.node.op_type, 1e-5)))
    edit.node.attrs["epsilon"] = epsilon / share
    edit.scale(_summands(context), 1 / sqrt(share))
