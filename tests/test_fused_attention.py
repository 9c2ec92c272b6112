"""Attention and rotary positions in one node: heads, query heads of a group, width; scales, caches, masks, packing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import Case, check, floats, ints, tokens
from exactness import assert_exact, model_of

from onnxprune.graph import Graph, attribute
from onnxprune.ops import build_map
from onnxprune.passes.rewrite import rewrite

PROJECT = "".join(f" m{c} = MatMul(a, k{c}) p{c} = Add(m{c}, b{c})" for c in "qkv")


def weights(q: int, k: int, v: int | None = None) -> dict[str, Any]:
    """Projections of 8 channels to queries, keys and values of these sizes, with biases."""
    sizes = {"q": q, "k": k, "v": k if v is None else v}
    return {f"k{c}": (8, n) for c, n in sizes.items()} | {f"b{c}": n for c, n in sizes.items()}


def heads(c: str, count: int) -> str:
    """[B, L, heads·width] → [B, heads, L, width], named t…"""
    return f" r{c} = Reshape(p{c}, h{count}) t{c} = Transpose<perm=[0,2,1,3]>(r{c})"


APART = heads("q", 2) + heads("k", 2) + heads("v", 2)
TOGETHER = " e = Transpose<perm=[0,2,1,3]>(o) z = Reshape(e, j)"
JOIN: dict[str, Any] = {"h2": ints(0, 0, 2, -1), "h4": ints(0, 0, 4, -1), "j": ints(0, 0, -1)}
PAIRS = 8 + 4 + 4

STANDARD = [
    tokens("folded heads", PROJECT + " z = Attention<q_num_heads=4, kv_num_heads=4>(pq, pk, pv)", 8 + 4,
           opset=23, **weights(8, 8)),
    tokens("one head", PROJECT + " z = Attention<q_num_heads=1, kv_num_heads=1, is_causal=1>(pq, pk, pv)", 8 + 8 + 6,
           wide=6, opset=23, **weights(8, 8, 6)),
    tokens("groups of queries", PROJECT + " z = Attention<q_num_heads=4, kv_num_heads=2>(pq, pk, pv)", 8 + 2,
           wide=16, opset=24, **weights(16, 8)),
    tokens("queries of one key", PROJECT + " z = Attention<q_num_heads=4, kv_num_heads=1>(pq, pk, pv)", 8 + 4,
           wide=16, opset=23, **weights(16, 4)),
    tokens("a mean over queries without their values", PROJECT
           + " o = Attention<q_num_heads=4, kv_num_heads=1>(pq, pk, pv) m = ReduceMean(o, last) z = Mul(a, m)",
           8 + 4 + 4, opset=23, last=ints(2), **weights(16, 4)),
    tokens("a mask per head", PROJECT + " z = Attention<q_num_heads=4, kv_num_heads=4>(pq, pk, pv, s)", 8 + 4,
           opset=23, s=(1, 4, 5, 5), **weights(8, 8)),
    tokens("a mask for all heads", PROJECT + " z = Attention<q_num_heads=4, kv_num_heads=4>(pq, pk, pv, s)", 8 + 4,
           opset=23, s=np.tri(5, dtype=bool), **weights(8, 8)),
    tokens("softcap", PROJECT + " z = Attention<q_num_heads=2, kv_num_heads=2, softcap=0.5>(pq, pk, pv)", 8 + 2,
           opset=23, **weights(8, 8)),
    tokens("axes apart", PROJECT + APART + " o = Attention(tq, tk, tv)" + TOGETHER, PAIRS, opset=23,
           **weights(8, 8), **JOIN),
    tokens("axes apart, a scale of its own", PROJECT + APART + " o = Attention<scale=0.5>(tq, tk, tv)" + TOGETHER,
           PAIRS, opset=23, **weights(8, 8), **JOIN),
    tokens("axes apart, values wider", PROJECT + APART + " o = Attention(tq, tk, tv)" + TOGETHER, 8 + 4 + 8,
           wide=16, opset=23, **weights(8, 8, 16), **JOIN),
    tokens("axes apart, more heads than width", PROJECT + heads("q", 4) + heads("k", 4) + heads("v", 4)
           + " o = Attention(tq, tk, tv)" + TOGETHER, 8 + 4, opset=23, **weights(8, 8), **JOIN),
    tokens("axes apart, groups of queries", PROJECT + heads("q", 4) + heads("k", 2) + heads("v", 2)
           + " o = Attention(tq, tk, tv)" + TOGETHER, PAIRS, wide=16, opset=23, **weights(16, 8), **JOIN),
    tokens("keys that no removal makes zero",
           PROJECT + " sq = Sigmoid(pq) sk = Sigmoid(pk) z = Attention<q_num_heads=1, kv_num_heads=1>(sq, sk, pv)",
           8 + 8, reason="summed over, though removal does not make it zero", opset=23, **weights(8, 8)),
]  # fmt: skip

QUANTISED = np.random.default_rng(0).integers(-90, 90, (8, 24), np.int8)
MULTI = "com.microsoft.MultiHeadAttention"
CONTRIBUTED = [
    tokens("MultiHeadAttention", PROJECT + f" z = {MULTI}<num_heads=4>(pq, pk, pv)", 8 + 4, **weights(8, 8)),
    tokens("MultiHeadAttention of one head", PROJECT + f" z = {MULTI}<num_heads=1>(pq, pk, pv)", 8 + 8 + 4, wide=4,
           **weights(8, 8, 4)),
    tokens("MultiHeadAttention with a bias", PROJECT + f" z = {MULTI}<num_heads=4>(mq, mk, mv, s)", 8 + 4, s=24,
           **weights(8, 8)),
    tokens("MultiHeadAttention with a score bias", PROJECT + f' z = {MULTI}<num_heads=4>(pq, pk, pv, "", "", s)', 8 + 4,
           s=(1, 4, 5, 5), **weights(8, 8)),
    tokens("MultiHeadAttention, keys and values apart", PROJECT + heads("k", 4) + heads("v", 4)
           + f" z = {MULTI}<num_heads=4>(pq, tk, tv)", 8 + 4, **weights(8, 8), **JOIN),
    tokens("Attention", "z = com.microsoft.Attention<num_heads=4>(a, s, t)", 8 + 4, s=(8, 24), t=24),
    tokens("Attention of wider values", "z = com.microsoft.Attention<num_heads=2, qkv_hidden_sizes=[8,8,16]>(a, s, t)",
           8 + 2, wide=16, s=(8, 32), t=32),
    tokens("Attention with a score bias", 'z = com.microsoft.Attention<num_heads=2>(a, s, t, "", "", d)', 8 + 2,
           s=(8, 24), t=24, d=(1, 2, 5, 5)),
    tokens("QAttention", "q, c, d = DynamicQuantizeLinear(a) "
           'z = com.microsoft.QAttention<num_heads=4>(q, s, t, c, e, "", d, p)', 8 + 4, s=QUANTISED, t=24,
           e=floats(0.02), p=np.array([3], np.int8)),
    tokens("QAttention, a scale for every column", "q, c, d = DynamicQuantizeLinear(a) "
           'z = com.microsoft.QAttention<num_heads=2, unidirectional=1>(q, s, t, c, e, "", d, p)', 8 + 2, s=QUANTISED,
           t=24, e=np.linspace(0.01, 0.03, 24, dtype=np.float32), p=np.arange(24, dtype=np.int8)),
    tokens("Attention of one head", "z = com.microsoft.Attention<num_heads=1>(a, s, t)", 0, reason="its only head",
           s=(8, 24), t=24),
]  # fmt: skip

GROUPS = "com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>"
LENGTHS: dict[str, Any] = {"n": np.full(2, 4, np.int32), "l": np.array(5, np.int32)}
EMPTY = '"", "", n, l'
ROTARY: dict[str, Any] = {"c": (9, 4), "s": (9, 4)}
POSITIONS = np.array([[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]], np.int64)
OTHERS = [
    tokens("GroupQueryAttention", PROJECT + f" z = {GROUPS}(pq, pk, pv, {EMPTY})", 8 + 2, wide=32, **LENGTHS,
           **weights(32, 16)),
    tokens("GroupQueryAttention, all packed", f"m = MatMul(a, k) z = {GROUPS}(m, '', '', {EMPTY})".replace("''", '""'),
           8 + 2, wide=32, k=(8, 64), **LENGTHS),
    tokens("GroupQueryAttention with rotary positions",
           PROJECT + f" z = {GROUPS[:-1]}, do_rotary=1>(pq, pk, pv, {EMPTY}, c, s)", 8 + 2, wide=64, c=(9, 8), s=(9, 8),
           **LENGTHS, **weights(64, 32)),
    tokens("GroupQueryAttention of one key", PROJECT + f" z = {GROUPS.replace('=2', '=1')}(pq, pk, pv, {EMPTY})", 8 + 4,
           wide=32, **LENGTHS, **weights(32, 8)),
    tokens("rotary positions, folded heads", "q = MatMul(a, k) z = RotaryEmbedding<num_heads=2>(q, c, s, p)", 8 + 2,
           wide=16, opset=23, k=(8, 16), p=POSITIONS, **ROTARY),
    tokens("rotary positions, one head", "q = MatMul(a, k) z = RotaryEmbedding<num_heads=1, interleaved=1>(q, c, s, p)",
           8 + 4, opset=23, k=(8, 8), p=POSITIONS, **ROTARY),
    tokens("rotary positions, axes apart", "pq = MatMul(a, k)" + heads("q", 2)
           + " o = RotaryEmbedding(tq, c, s, p)" + TOGETHER, 8 + 4, wide=16, opset=23, k=(8, 16), p=POSITIONS,
           **ROTARY, **JOIN),
    tokens("rotary positions of half the width", "pq = MatMul(a, k)" + heads("q", 2)
           + " o = RotaryEmbedding<rotary_embedding_dim=8>(tq, c, s, p)" + TOGETHER, 8 + 8, wide=32,
           opset=23, reason="turned in pairs", k=(8, 32), p=POSITIONS, **ROTARY, **JOIN),
    tokens("com.microsoft.RotaryEmbedding, folded heads",
           "q = MatMul(a, k) z = com.microsoft.RotaryEmbedding(q, p, c, s)", 8 + 2, wide=16, k=(8, 16),
           p=POSITIONS, **ROTARY),
    tokens("com.microsoft.RotaryEmbedding, axes apart", "pq = MatMul(a, k)" + heads("q", 2)
           + " o = com.microsoft.RotaryEmbedding(tq, p, c, s)" + TOGETHER, 8 + 4, wide=16, k=(8, 16), p=POSITIONS,
           **ROTARY, **JOIN),
    tokens("rotary positions and attention",
           PROJECT + " uq = RotaryEmbedding<num_heads=4>(pq, c, s, p) uk = RotaryEmbedding<num_heads=2>(pk, c, s, p)"
           " z = Attention<q_num_heads=4, kv_num_heads=2>(uq, uk, pv)", 8 + 2, wide=32, opset=23, p=POSITIONS, **ROTARY,
           **weights(32, 16)),
    tokens("rotary positions and attention of one head",
           PROJECT + " uq = RotaryEmbedding<num_heads=1>(pq, c, s, p) uk = RotaryEmbedding<num_heads=1>(pk, c, s, p)"
           " z = Attention<q_num_heads=1, kv_num_heads=1>(uq, uk, pv)", 8 + 4 + 8, opset=23, p=POSITIONS, **ROTARY,
           **weights(8, 8)),
]  # fmt: skip


CASES = STANDARD + CONTRIBUTED + OTHERS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fused_attention(case: Case) -> None:
    check(case)


CACHED: dict[str, tuple[int, str, str, int, dict[str, Any]]] = {
    "Attention, queries of cached keys": (
        23,
        "(float[2,5,6] x, float[2,2,3,4] pk0, float[2,2,3,4] pv0) "
        "=> (float[2,5,4] y, float[2,2,8,4] k1, float[2,2,8,4] v1)",
        "z, k1, v1 = Attention<q_num_heads=4, kv_num_heads=2>(pq, pk, pv, , pk0, pv0)",
        8 + 2,
        weights(16, 8),
    ),
    "GroupQueryAttention, queries of cached keys": (
        17,
        "(float[1,5,6] x, float[1,2,3,8] pk0, float[1,2,3,8] pv0) "
        "=> (float[1,5,4] y, float[1,2,8,8] k1, float[1,2,8,8] v1)",
        f"z, k1, v1 = {GROUPS}(pq, pk, pv, pk0, pv0, n, l)",
        8 + 2,
        weights(32, 16) | {"n": np.full(1, 7, np.int32), "l": np.array(8, np.int32)},
    ),
    "MultiHeadAttention of cached keys": (
        17,
        "(float[2,5,6] x, float[2,4,3,2] pk0, float[2,4,3,2] pv0) "
        "=> (float[2,5,4] y, float[2,4,8,2] k1, float[2,4,8,2] v1)",
        f'z, k1, v1 = {MULTI}<num_heads=4>(pq, pk, pv, "", "", "", pk0, pv0)',
        8,
        weights(8, 8),
    ),
    "Attention of which the scores are an output": (
        23,
        "(float[2,5,6] x) => (float[2,5,4] y, float[2,2,5,5] s)",
        "z, k1, v1, s = Attention<q_num_heads=2, kv_num_heads=2>(pq, pk, pv)",
        8 + 4 + 4,
        weights(8, 8),
    ),
}


@pytest.mark.parametrize("name", CACHED)
def test_caches_and_scores_that_leave_the_model_pin_their_heads(name: str) -> None:
    opset, ends, body, free, held = CACHED[name]
    wide = held["kq"][1]
    text = f"{ends} {{ x0 = MatMul(x, w) a = Add(x0, b) {PROJECT} {body} y = MatMul(z, u) }}"
    model = model_of(text, opset, **held, w=(6, 8), b=8, u=(wide, 4))
    channel_map = build_map(Graph(model))
    assert len(channel_map.free) == free, channel_map.reasons
    assert any(outcome.removed for outcome in assert_exact(model, channel_map=channel_map))


def test_the_default_scale_is_that_of_the_original_width() -> None:
    model = STANDARD[1].model
    channel_map = build_map(Graph(model))
    for outcome in assert_exact(model, channel_map=channel_map):
        node = next(n for n in outcome.pruned.graph.node if n.op_type == "Attention")
        assert attribute(node, "scale") == np.float32(8**-0.5)


@pytest.mark.parametrize("packed", [3, 2])
def test_packed_keys_and_values_lose_whole_heads(packed: int) -> None:
    """Such a MultiHeadAttention runs on GPUs only; here, sizes are compared."""
    queries = "pq = MatMul(a, kq) " if packed == 2 else ""
    feeds = "pq, rk" if packed == 2 else "rk"
    body = f"{queries} mk = MatMul(a, kk) rk = Reshape(mk, s) z = {MULTI}<num_heads=2>({feeds})"
    held: dict[str, Any] = {"kq": (8, 8)} if packed == 2 else {}
    text = f"(float[2,5,6] x) => (float[2,5,4] y) {{ a = MatMul(x, w) {body} y = MatMul(z, u) }}"
    shape = ints(0, 0, 2, packed, 4)
    model = model_of(text, 17, w=(6, 8), kk=(8, 8 * packed), s=shape, u=(8, 4), **held)
    channel_map = build_map(Graph(model))
    assert len(channel_map.free) == 8 + 2, channel_map.reasons
    keep = np.ones(channel_map.groups, np.bool_)
    heads_left = channel_map.uses[len(model.graph.node) - 1, 1][0]
    assert heads_left is not None
    keep[heads_left[0]] = False
    pruned = Graph(rewrite(channel_map, keep))
    node = next(n for n in pruned.nodes if n.op_type == "MultiHeadAttention")
    assert attribute(node, "num_heads") == 1
    assert {n: t.dims for n, t in pruned.constants.items() if n in ("kk", "u")} == {"kk": [8, 4 * packed], "u": [4, 4]}
    assert pruned.values("s").tolist() == [0, 0, 1, packed, 4]
