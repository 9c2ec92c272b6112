"""What has to agree in attention in one node: heads, their widths, and the vectors that go with them."""

from __future__ import annotations

from onnxprune.consistency.site import Site

__all__ = ["attention", "group_query_attention", "multi_head_attention", "packed_attention", "rotary"]


def attention(site: Site) -> None:
    """Q and K have equally wide heads, K and V equally many, which divide those of Q; a mask is for one or for all.

    https://onnx.ai/onnx/operators/onnx__Attention.html
    """
    if any(site.shape(k) is None for k in range(3)):
        return
    heads = site.size(0, 1) if site.rank(0) == 4 else site.integer("q_num_heads", 0) or None
    if site.rank(3) == 4:
        site.expect(3, site.size(3, 1) in (1, None, heads) or heads is None, f"size {site.size(3, 1)} along axis 1",
                    f"1 or {heads} (heads of Q)")  # fmt: skip
    if site.rank(0) == 4:
        site.expect_size(1, 3, site.size(0, 3), "head width of Q")
        site.expect_size(2, 1, site.size(1, 1), "heads of K")
        site.expect_multiple(0, 1, site.size(1, 1) or 0, "heads of K")
        return
    shared = site.integer("kv_num_heads", 0)
    if heads is None or heads < 1 or shared < 1:
        return
    site.expect_multiple(0, 2, heads, "q_num_heads")
    site.expect_multiple(2, 2, shared, "kv_num_heads")
    site.expect(0, heads % shared == 0, f"{heads} heads", f"a multiple of kv_num_heads = {shared}")
    width = site.size(0, 2)
    site.expect_size(1, 2, None if width is None else width // heads * shared, "kv_num_heads as wide as those of Q")


def packed_attention(site: Site) -> None:
    """weights [input, q + k + v], bias as long, each part a multiple of num_heads: com.microsoft.Attention."""
    heads, parts, wide = site.integer("num_heads", 1), site.integers("qkv_hidden_sizes"), site.size(1, 1)
    site.expect_size(1, 0, site.size(0, 2), "width of the input")
    site.expect_shape(2, [wide], "one bias a column of the weights")
    if not parts or wide is None or site.integer("do_rotary", 0):
        site.expect_multiple(1, 1, 3 * heads, "three times num_heads")
        return
    site.expect(1, sum(parts) == wide, f"{wide} columns", f"{sum(parts)} (qkv_hidden_sizes {parts})")
    site.expect(1, all(n % heads == 0 for n in parts), f"qkv_hidden_sizes {parts}", f"multiples of num_heads = {heads}")
    site.expect(1, parts[0] == parts[1], f"qkv_hidden_sizes {parts}", "queries as wide as keys")


def multi_head_attention(site: Site) -> None:
    """query [.., D], key [.., D], value [.., V], bias [2·D + V]: com.microsoft.MultiHeadAttention."""
    heads = site.integer("num_heads", 1)
    if site.rank(0) == 5:
        site.expect_size(0, 2, heads, "num_heads")
        return
    if site.rank(0) != 3:
        return
    width, made = site.size(0, 2), site.size(2, 2)
    site.expect_multiple(0, 2, heads, "num_heads")
    if site.rank(1) == 3:
        site.expect_size(1, 2, width, "width of the query")
        if site.rank(2) == 3:
            site.expect_multiple(2, 2, heads, "num_heads")
            site.expect_shape(3, [None if width is None or made is None else 2 * width + made], "query, key and value")
    elif site.rank(1) == 4:
        site.expect_size(1, 1, heads, "num_heads")


def group_query_attention(site: Site) -> None:
    """query [.., H·d], key and value [.., G·d], or all three in one; caches of cosines and sines [.., ≤ d/2]:
    com.microsoft.GroupQueryAttention."""
    heads, shared = site.integer("num_heads", 0), site.integer("kv_num_heads", 0)
    if heads < 1 or shared < 1 or site.rank(0) != 3:
        return
    site.expect(0, heads % shared == 0, f"{heads} heads", f"a multiple of kv_num_heads = {shared}")
    count = heads if site.has(1) else heads + 2 * shared
    site.expect_multiple(0, 2, count, "heads")
    whole = site.size(0, 2)
    if whole is None:
        return
    width = whole // count
    for k in (1, 2):
        site.expect_size(k, 2, shared * width, "kv_num_heads as wide as those of the query")
    for k in (3, 4):
        if site.rank(k) == 4:
            site.expect_size(k, 1, shared, "kv_num_heads")
            site.expect_size(k, 3, width, "head width")
    for k in (7, 8):
        turned = 2 * (site.size(k, 1) or 0)
        site.expect(k, turned <= width, f"{turned // 2} cosines or sines", f"at most half a head of width {width}")


def rotary(site: Site) -> None:
    """Both caches have the same shape, half as wide as what is turned: rotary_embedding_dim, or a whole head.

    https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html
    """
    first = 2 if site.node.domain == "com.microsoft" else 1
    cosines = site.shape(first)
    if cosines is None:
        return
    site.expect_shape(first + 1, cosines, "as the cosines")
    heads, whole = site.integer("num_heads", 0), site.size(0, -1)
    if whole is None or (site.rank(0) == 3 and not heads):
        return
    width = whole // heads if site.rank(0) == 3 else whole
    turned = site.integer("rotary_embedding_dim", 0) or width
    site.expect(0, turned <= width, f"heads of width {width}", f"at least {turned} (rotary_embedding_dim)")
    site.expect_size(first, -1, turned // 2, "half of what is turned of a head")
