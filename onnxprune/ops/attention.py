"""Attention in one node: queries meet keys, and the channels are heads × width.

Where heads and width are folded into one axis, [B, L, heads·width], a node has one choice (it is a *site*, see
``onnxprune.channels``). The ways, in the order in which they are tried:

- *heads*: a key/value head leaves with all the query heads that read it;
- *queries*: of every key/value head the same query heads leave, so that their ratio stays a whole number;
- *width*: the same positions leave in every head, those of q and k together, those of v by themselves.

Where they are axes of their own, [B, heads, L, width], each loses its own channels. Query head h reads key/value head
h // (query heads / key/value heads), whichever operator it is. Scores are scaled by 1/√width unless told otherwise, so
where q and k get narrower the old scale is spelled out.

https://onnx.ai/onnx/operators/onnx__Attention.html; of the domain com.microsoft, Attention, GroupQueryAttention and
MultiHeadAttention in https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import numpy as np

from onnxprune.channels import Axes, Ids, NodeContext, Opaque
from onnxprune.editing import NodeEditor
from onnxprune.ops.quantization import parameters

__all__ = ["attention", "fold_heads", "group_query_attention", "multi_head_attention", "packed_attention",
           "quantised_attention", "resize_attention", "resize_group_query_attention", "resize_multi_head_attention",
           "resize_packed_attention"]  # fmt: skip

Way = Literal["heads", "queries", "width"]
_QKV = (0, 1, 2)


@dataclass(frozen=True)
class _Part:
    """Queries, keys or values, as ``count`` heads × ``width`` positions: the channels along each, None where plain.

    ``zero``: whether removed channels are exactly zero in the masked reference.
    """

    count: int
    width: int
    heads: Ids | None
    positions: Ids | None
    zero: bool = True

    @property
    def flat(self) -> Ids | None:
        """Both folded into one axis; at most one of them has channels where that is asked for."""
        if self.heads is not None:
            return np.repeat(self.heads, self.width)
        return None if self.positions is None else np.tile(self.positions, self.count)

    @property
    def cache(self) -> Axes:
        """Axes of [B, heads, L, width]."""
        return (None, self.heads, None, self.positions)


def fold_heads(ctx: NodeContext, ids: Ids | None, count: int, way: Way) -> tuple[Ids | None, Ids | None]:
    """The channels of heads (way: heads, queries) or of positions (width) of a folded axis [count·width]."""
    if ids is None:
        return None, None
    table = ids.reshape(count, -1)
    if way == "width":
        ctx.builder.unify(table[:1], table)
        return None, table[0]
    ctx.builder.unify(table[:, :1], table)
    return table[:, 0], None


def _way(ctx: NodeContext, count: int, ratio: int) -> Way:
    """``count`` key/value heads, each read by ``ratio`` query heads. All nodes on the same heads answer alike."""
    whole: Way = "heads" if count > 1 else "queries" if ratio > 1 else "width"
    return ctx.turn((whole, "queries" if ratio > 1 else whole, "width"))


def _folded(ctx: NodeContext, ids: Ids | None, size: int, count: int, way: Way, zero: bool) -> _Part:
    """A part from a folded axis of this size."""
    if not count or size % count:
        raise Opaque("its heads are not equally wide")
    return _Part(count, size // count, *fold_heads(ctx, ids, count, way), zero=zero)


def _apart(ctx: NodeContext, k: int, heads: int, positions: int, zero: bool) -> _Part:
    """A part from an input whose heads and positions lie on these axes."""
    shape, axes = ctx.shape(k), ctx.axes(k)
    for a, ids in enumerate(axes):
        if a not in (heads, positions):
            ctx.freeze(ids, "neither a head nor a position in one")
    return _Part(shape[heads], shape[positions], axes[heads], axes[positions], zero)


def _one_way(ctx: NodeContext, part: _Part, way: Way) -> _Part:
    """A part whose axes lie apart, beside others that are folded: only one of its axes may lose channels."""
    ctx.freeze(part.heads if way == "width" else part.positions, "folded into one axis elsewhere")
    return replace(part, heads=None) if way == "width" else replace(part, positions=None)


def _input(ctx: NodeContext, k: int, count: int, way: Way) -> _Part:
    """A part from an input of three axes (folded) or four."""
    if ctx.is_constant(k):
        ctx.mask_where_possible(k)
    if len(ctx.shape(k)) == 4:
        return _one_way(ctx, _apart(ctx, k, 1, 3, ctx.zeroed(k)), way)
    for ids in ctx.axes(k)[:-1]:
        ctx.freeze(ids, "neither a head nor a position in one")
    return _folded(ctx, ctx.axes(k)[-1], ctx.shape(k)[-1], count, way, ctx.zeroed(k))


# ---- what all have in common ----------------------------------------------------------------------------------------


def _attend(ctx: NodeContext, q: _Part, k: _Part, v: _Part, way: Way) -> tuple[_Part, _Part, _Part]:
    """softmax(q·kᵀ)·v: what it makes, and keys and values as far as they may still lose channels."""
    if k.count != v.count or q.count % k.count:
        raise Opaque("its query heads do not fall evenly on its key/value heads")
    ratio = q.count // k.count
    alone = way == "queries" and ratio > 1  # without their values: what a query of zeros makes is a mean of these
    if alone:
        for part in (k, v):
            ctx.freeze(part.heads, "read by queries of which some leave")
        queries = None if q.heads is None else q.heads.reshape(k.count, ratio)
        if queries is not None:
            ctx.builder.unify(queries[:1], queries)
        shared = None
    else:
        shared = ctx.unify(k.heads, v.heads)
        queries = ctx.unify(None if shared is None else np.repeat(shared, ratio), q.heads)
    if not (q.zero or k.zero):
        for ids in (q.positions, k.positions):
            ctx.freeze(ids, "summed over, though removal does not make it zero")
    met = ctx.unify(q.positions, k.positions)
    made = _Part(q.count, v.width, None if queries is None else q.heads, v.positions, v.zero and not alone)
    ctx.need(v.positions, met)
    for ids in (made.heads, made.positions, met):
        if ids is not None:
            ctx.site(ids)
    return made, replace(k, heads=shared, positions=met), replace(v, heads=shared)


def _costs(ctx: NodeContext, q: _Part, k: _Part, made: _Part, batch: int, queries: int, keys: int) -> None:
    for ids, size in ((k.positions, q.width), (made.positions, made.width)):
        ctx.macs(float(batch * queries * keys), (made.heads, made.count), (ids, size))


def _bias(ctx: NodeContext, k: int, heads: Ids | None) -> None:
    """What is added to the scores or masks them: broadcast to [B, heads, queries, keys]."""
    if not ctx.has(k):
        return
    shape, axes = ctx.shape(k), ctx.axes(k)
    for a, ids in enumerate(axes, 4 - len(shape)):
        if a != 1 or shape[a - 4] == 1:
            ctx.freeze(ids, "added to all scores")
    if len(shape) > 2 and shape[-3] != 1:
        ctx.unify(heads, axes[-3])


def _past(ctx: NodeContext, inputs: tuple[int, int], parts: tuple[_Part, _Part]) -> None:
    """Cached keys and values [B, heads, L, width]."""
    for k, part in zip(inputs, parts, strict=True):
        if ctx.has(k):
            for ids, cached in zip(part.cache, ctx.axes(k), strict=True):
                ctx.unify(ids, cached)


def _outputs(ctx: NodeContext, made: _Part, k: _Part, v: _Part) -> list[Axes]:
    """Y, present keys, present values, scores."""
    if made.zero and v.zero:
        ctx.builder.zero.add(ctx.node.output[0])
    if ctx.is_read(1) or ctx.is_read(2):
        ctx.need(k.positions, v.positions)
        ctx.need(None, made.heads)
    rank = len(ctx.out_shape())
    whole: Axes = made.cache if rank == 4 else (*(None,) * (rank - 1), made.flat)
    return [whole, k.cache, v.cache, (None, made.heads, None, None)][: len(ctx.node.output)]


# ---- the operators --------------------------------------------------------------------------------------------------


def attention(ctx: NodeContext) -> list[Axes]:
    """Q, K, V of [B, heads, L, width] or [B, L, heads·width], mask, past keys, past values → Y, …"""
    if len(ctx.shape(0)) == 4:
        count, ratio = ctx.shape(1)[1], ctx.shape(0)[1] // ctx.shape(1)[1]
        way: Way = ctx.turn(("heads", "queries" if ratio > 1 else "heads"))
        q, k, v = (_apart(ctx, i, 1, 3, ctx.zeroed_if_possible(i)) for i in _QKV)
    else:
        heads, count = ctx.integer("q_num_heads", 0), ctx.integer("kv_num_heads", 0)
        if not count or heads % count:
            raise Opaque("its query heads do not fall evenly on its key/value heads")
        way = _way(ctx, count, heads // count)
        q, k, v = (_input(ctx, i, n, way) for i, n in zip(_QKV, (heads, count, count), strict=True))
    made, k, v = _attend(ctx, q, k, v, way)
    _bias(ctx, 3, made.heads)
    _past(ctx, (4, 5), (k, v))
    _costs(ctx, q, k, made, ctx.shape(0)[0], ctx.shape(0)[-2], ctx.shape(1)[-2])
    return _outputs(ctx, made, k, v)


def multi_head_attention(ctx: NodeContext) -> list[Axes]:
    """com.microsoft: query, key, value, bias, key padding mask, score bias, past keys, past values → output, …

    Query [B, L, heads·width], or packed with key and value as [B, L, heads, 3, width]; key likewise, or packed with
    value as [B, L, heads, 2, width], or [B, heads, L, width].
    """
    if ctx.has(8) or ctx.has(9):
        raise Opaque("its caches are written in place")
    count = ctx.integer("num_heads", 0)
    way = _way(ctx, count, 1)
    q, k, v = _query_key_value(ctx, count, way)
    if ctx.has(3):
        q, k, v = _biased(ctx, 3, (q, k, v))
    made, k, v = _attend(ctx, q, k, v, way)
    _bias(ctx, 5, made.heads)
    _past(ctx, (6, 7), (k, v))
    keys = ctx.shape(1)[2 if len(ctx.shape(1)) == 4 else 1] if ctx.has(1) else ctx.shape(0)[1]
    _costs(ctx, q, k, made, ctx.shape(0)[0], ctx.shape(0)[1], keys)
    return _outputs(ctx, made, k, v)


def _query_key_value(ctx: NodeContext, count: int, way: Way) -> tuple[_Part, _Part, _Part]:
    packed = [k for k in (0, 1) if ctx.has(k) and len(ctx.shape(k)) == 5]
    joint = {k: _one_way(ctx, _apart(ctx, k, 2, 4, ctx.zeroed(k)), way) for k in packed}
    if 0 in joint:
        return joint[0], joint[0], joint[0]
    if 1 in joint:
        return _input(ctx, 0, count, way), joint[1], joint[1]
    if not (ctx.has(1) and ctx.has(2)):
        raise Opaque("its keys or values are not given")
    q, k, v = (_input(ctx, i, count, way) for i in _QKV)
    return q, k, v


def _biased(ctx: NodeContext, index: int, parts: tuple[_Part, _Part, _Part]) -> tuple[_Part, _Part, _Part]:
    """Parts with a bias [q | k | v] added."""
    sizes = [part.count * part.width for part in parts]
    if sum(sizes) != ctx.shape(index)[0]:
        raise Opaque("its bias does not fit its queries, keys and values")
    ids = ctx.axes(index)[0]
    cuts = [None] * 3 if ids is None else np.split(ids, np.cumsum(sizes)[:-1])
    for part, held in zip(parts, cuts, strict=True):
        ctx.unify(part.flat, held)
    zero = ctx.zeroed_if_possible(index)
    q, k, v = (replace(part, zero=part.zero and zero) for part in parts)
    return q, k, v


def group_query_attention(ctx: NodeContext) -> list[Axes]:
    """com.microsoft: query, key, value, past keys, past values, lengths, … → output, …

    Without a key, the query holds [q | k | v]. Only heads leave, as its kernels want a width of whole blocks.
    """
    if any(ctx.has(k) for k in (12, 13)):
        raise Opaque("its caches are quantised")
    heads, count = ctx.integer("num_heads", 0), ctx.integer("kv_num_heads", 0)
    if not count or heads % count:
        raise Opaque("its query heads do not fall evenly on its key/value heads")
    if heads == 1:
        raise Opaque("its only head")
    ratio = heads // count
    way: Way = ctx.turn(("heads" if count > 1 else "queries", "queries" if ratio > 1 else "heads"))
    q, k, v = _packed_parts(ctx, heads, count, way) if not ctx.has(1) else [
        _input(ctx, i, n, way) for i, n in zip(_QKV, (heads, count, count), strict=True)
    ]  # fmt: skip
    made, k, v = _attend(ctx, q, k, v, way)
    for index in (7, 8, 14, 15):
        ctx.freeze_input(index, "as wide as a head")
    _bias(ctx, 10, made.heads)
    if ctx.has(11):
        ctx.unify(made.heads, ctx.axes(11)[0])
    _past(ctx, (3, 4), (k, v))
    _costs(ctx, q, k, made, ctx.shape(0)[0], ctx.shape(0)[1], ctx.shape(0)[1])
    return _outputs(ctx, made, k, v)


def _packed_parts(ctx: NodeContext, heads: int, count: int, way: Way) -> list[_Part]:
    """Queries, keys and values of [B, L, (heads + 2·count)·width]."""
    *outer, ids = ctx.axes(0)
    for held in outer:
        ctx.freeze(held, "neither a head nor a position in one")
    width = ctx.shape(0)[-1] // (heads + 2 * count)
    sizes = [n * width for n in (heads, count, count)]
    cuts = [None] * 3 if ids is None else np.split(ids, np.cumsum(sizes)[:-1])
    zero = ctx.zeroed(0)
    return [_folded(ctx, cut, s, n, way, zero) for cut, s, n in zip(cuts, sizes, (heads, count, count), strict=True)]


def packed_attention(ctx: NodeContext, past: int = 4, scores: int = 5) -> list[Axes]:
    """com.microsoft.Attention: x [B, L, C], W [C, q | k | v], b, mask, past [2, B, heads, L, width], score bias.

    ``past``, ``scores``: where the last two are.

    Whole heads only: what else happens between W and the output has no tensor of its own that could be looked at.
    """
    if not ctx.is_constant(1) or (ctx.has(2) and not ctx.is_constant(2)):
        return ctx.freeze_all("its weight is computed at run time")
    count = ctx.integer("num_heads", 0)
    x, w = ctx.axes(0), ctx.axes(1)
    if count < 2 or w[0] is None or w[1] is None:
        return ctx.freeze_all("its only head, or its weight is computed")
    for ids in x[:-1]:
        ctx.freeze(ids, "neither a head nor a position in one")
    inputs = ctx.unify(x[-1], w[0])
    parts = _thirds(ctx, w[1], count)
    ctx.mask(1)
    if ctx.has(2):
        parts = _biased(ctx, 2, parts)
    made, k, v = _attend(ctx, *parts, "heads")
    _bias(ctx, scores, made.heads)
    if ctx.has(past):
        for ids, cached in zip((None, *k.cache), ctx.axes(past), strict=True):
            ctx.unify(ids, cached)
    ctx.contraction(data=0, weight=1, bias=2 if ctx.has(2) else None, in_axis=0, out_axis=1,
                    inputs=w[0] if inputs is None else inputs, outputs=w[1])  # fmt: skip
    ctx.need(made.flat, inputs)
    tokens, size = prod(ctx.shape(0)[:-1]), ctx.shape(1)
    ctx.macs(float(tokens), (inputs, size[0]), (w[1], size[1]))
    ctx.slices(1.0, (inputs, size[0]), (w[1], size[1]))
    _costs(ctx, parts[0], k, made, ctx.shape(0)[0], ctx.shape(0)[1], ctx.shape(0)[1])
    present: Axes = (None, None, made.heads, None, None)
    return [_outputs(ctx, made, k, v)[0], present][: len(ctx.node.output)]


def quantised_attention(ctx: NodeContext) -> list[Axes]:
    """com.microsoft.QAttention: x, W, b, scales of x and W, mask, zero points of x and W, past"""
    parameters(ctx, 0, 1)
    return packed_attention(ctx, past=8, scores=len(ctx.node.input))


def _thirds(ctx: NodeContext, ids: Ids, count: int) -> tuple[_Part, _Part, _Part]:
    """Queries, keys and values behind the columns of a packed weight."""
    sizes = ctx.integer_list("qkv_hidden_sizes") or [len(ids) // 3] * 3
    if sum(sizes) != len(ids):
        raise Opaque("its weight is not as wide as queries, keys and values")
    cuts = np.split(ids, np.cumsum(sizes)[:-1])
    q, k, v = (_folded(ctx, cut, len(cut), count, "heads", True) for cut in cuts)
    return q, k, v


# ---- what a node spells out -----------------------------------------------------------------------------------------


def _left(edit: NodeEditor, k: int, count: int) -> tuple[int, int, int]:
    """Of input k with folded heads, or with heads and positions apart: heads left, width left, width as it was."""
    shape, axes = edit.context.shape(k), edit.axes(k)
    if len(shape) in (4, 5):
        places = (1, 3) if len(shape) == 4 else (2, 4)
        heads, width = (shape[a] if (ids := axes[a]) is None else edit.kept_count(ids) for a in places)
        return heads, width, shape[places[1]]
    ids = axes[-1]
    if ids is None:
        return count, shape[-1] // count, shape[-1] // count
    kept = edit.kept(ids).reshape(count, -1)
    return int(kept.any(axis=1).sum()), int(kept.any(axis=0).sum()), kept.shape[1]


def _hold_scale(edit: NodeEditor, width: int, was: int) -> None:
    """The default scale is that of the original width."""
    if width != was and not edit.node.attrs.get("scale"):
        edit.node.attrs["scale"] = float(was) ** -0.5


def resize_attention(edit: NodeEditor) -> None:
    """The head counts and the scale."""
    counts = [int(edit.node.attrs.get(name, 0)) for name in ("q_num_heads", "kv_num_heads")]
    heads, width, was = _left(edit, 0, counts[0])
    _hold_scale(edit, width, was)
    if len(edit.context.shape(0)) == 3:
        edit.node.attrs["q_num_heads"] = heads
        edit.node.attrs["kv_num_heads"] = _left(edit, 1, counts[1])[0]


def resize_multi_head_attention(edit: NodeEditor) -> None:
    """The head count and the scale."""
    heads, width, was = _left(edit, 0, int(edit.node.attrs["num_heads"]))
    _hold_scale(edit, width, was)
    edit.node.attrs["num_heads"] = heads


def resize_group_query_attention(edit: NodeEditor) -> None:
    """The head counts."""
    heads, count = (int(edit.node.attrs[name]) for name in ("num_heads", "kv_num_heads"))
    if edit.context.has(1):
        left = _left(edit, 0, heads)[0], _left(edit, 1, count)[0]
    elif (ids := edit.axes(0)[-1]) is not None:
        kept = np.asarray(edit.kept(ids).reshape(heads + 2 * count, -1).any(axis=1))
        left = int(kept[:heads].sum()), int(kept[heads : heads + count].sum())
    else:
        return
    edit.node.attrs["num_heads"], edit.node.attrs["kv_num_heads"] = left


def resize_packed_attention(edit: NodeEditor) -> None:
    """The head count and the sizes of queries, keys and values."""
    count, ids = int(edit.node.attrs["num_heads"]), edit.axes(1)[1]
    assert ids is not None
    sizes = edit.node.attrs.get("qkv_hidden_sizes") or [len(ids) // 3] * 3
    heads = int(edit.kept(ids)[: sizes[0]].reshape(count, -1).any(axis=1).sum())
    edit.node.attrs["num_heads"] = heads
    if "qkv_hidden_sizes" in edit.node.attrs:
        edit.node.attrs["qkv_hidden_sizes"] = [size // count * heads for size in sizes]
