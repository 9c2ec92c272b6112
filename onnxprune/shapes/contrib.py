"""Shapes of what operators of the domain com.microsoft make, for those that token models carry.

ONNX has no schema for them, and ONNX Runtime only tells what it infers for a model it accepts as a whole, at the sizes
that were guessed for open dimensions. Sizes: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import NodeProto

from onnxprune.graph import attribute

__all__ = ["contrib_shapes"]

Shape = tuple[int, ...]
_Inputs = Sequence[Shape | None]
_Rule = Callable[[NodeProto, _Inputs], Sequence[Shape | None]]


def contrib_shapes(node: NodeProto, inputs: _Inputs) -> Sequence[Shape | None]:
    """The shape of each output as far as it follows from those of the inputs (None: not known, or not given)."""
    rule = _RULES.get(node.op_type) if node.domain in ("com.microsoft", *_PLAIN.get(node.op_type, ())) else None
    try:
        return [] if rule is None else rule(node, inputs)
    except (IndexError, TypeError, ValueError, ZeroDivisionError):  # an input is missing, or of unknown shape
        return []


def _known(inputs: _Inputs, k: int) -> Shape:
    found = inputs[k]
    if found is None:
        raise ValueError("not known")
    return found


def _given(inputs: _Inputs, k: int) -> bool:
    return k < len(inputs) and inputs[k] is not None


def _number(node: NodeProto, name: str) -> int:
    value = attribute(node, name)
    return value if isinstance(value, int) else 0


def _same(node: NodeProto, inputs: _Inputs) -> Sequence[Shape | None]:
    return [_known(inputs, 0)]


def _normalised(node: NodeProto, inputs: _Inputs) -> Sequence[Shape | None]:
    """y, two statistics, the sum that was normalised."""
    whole = _known(inputs, 0)
    statistic = (*whole[:-1], 1)
    return [whole, statistic, statistic, whole]


def _embedded(node: NodeProto, inputs: _Inputs) -> Sequence[Shape | None]:
    """word ids [B, L] and their table [words, H]"""
    whole = (*_known(inputs, 0), _known(inputs, 2)[1])
    return [whole, whole[:1], whole]


def _packed_attention(node: NodeProto, inputs: _Inputs) -> Sequence[Shape | None]:
    """x [B, L, C], W [C, q | k | v], past [2, B, heads, L, width], which is the last input of QAttention"""
    batch, length, _ = _known(inputs, 0)
    columns, sizes = _known(inputs, 1)[1], attribute(node, "qkv_hidden_sizes")
    values = int(sizes[2]) if isinstance(sizes, list) else columns // 3
    heads = _number(node, "num_heads")
    place = 8 if node.op_type == "QAttention" else 4
    past = _known(inputs, place)[3] if _given(inputs, place) else 0
    return [(batch, length, values), (2, batch, heads, past + length, values // heads)]


def _multi_head_attention(node: NodeProto, inputs: _Inputs) -> Sequence[Shape | None]:
    """q [B, L, H·D] or [B, L, H, 3, D]; k, v [B, L, H·D], [B, L, H, 2, D] or [B, H, L, D]; past at 6, 7"""
    query, heads = _known(inputs, 0), _number(node, "num_heads")
    keys, values = query, query
    if len(query) != 5:
        keys = _known(inputs, 1)
        values = keys if len(keys) == 5 else _known(inputs, 2)
    width, depth = (s[-1] if len(s) > 3 else s[-1] // heads for s in (keys, values))
    length = keys[2 if len(keys) == 4 else 1] + (_known(inputs, 6)[2] if _given(inputs, 6) else 0)
    cached = [(query[0], heads, length, size) for size in (width, depth)]
    return [(*query[:2], heads * depth), *cached, (query[0], heads, query[1], length)]


def _group_query_attention(node: NodeProto, inputs: _Inputs) -> Sequence[Shape | None]:
    """q [B, L, H·D], or all of [q | k | v]; past [B, heads, L, D] at 3, 4, which may be written in place"""
    query, heads, count = _known(inputs, 0), _number(node, "num_heads"), _number(node, "kv_num_heads")
    width = query[-1] // (heads if _given(inputs, 1) else heads + 2 * count)
    cached = None if _given(inputs, 3) else (query[0], count, query[1], width)
    return [(*query[:2], heads * width), cached, cached]


def _product(node: NodeProto, inputs: _Inputs) -> Sequence[Shape | None]:
    """a·b, each transposed on request"""
    a, b = (list(_known(inputs, k)) for k in (0, 1))
    for side, name in ((a, "A"), (b, "B")):
        if _number(node, f"transBatch{name}"):
            return []
        if _number(node, f"trans{name}"):
            side[-2:] = side[:-3:-1]
    return [(*np.broadcast_shapes(tuple(a[:-2]), tuple(b[:-2])), a[-2], b[-1])]


_PLAIN = dict.fromkeys(("GroupNormalization", "SimplifiedLayerNormalization"), ("", "ai.onnx"))
"""Operators of which ONNX infers no shape either, though they are written in its domain."""

_RULES: dict[str, _Rule] = {
    **dict.fromkeys(["BiasGelu", "FastGelu", "Gelu", "GroupNormalization", "QuickGelu", "RotaryEmbedding"], _same),
    **dict.fromkeys(
        ["SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"], _normalised
    ),
    "Attention": _packed_attention,
    "EmbedLayerNormalization": _embedded,
    "FusedMatMul": _product,
    "GroupQueryAttention": _group_query_attention,
    "MultiHeadAttention": _multi_head_attention,
    "QAttention": _packed_attention,
}
