"""Steps of a random model for tokens and vectors with what is seldom used: recurrent layers with states, peepholes and
lengths; attention with fewer keys than queries, masks and caches; normalisations over several axes; letters in every
order; reductions over several axes; embeddings; scatters that add.

A step appends nodes and returns the new tensor, several, or None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from generate import Builder, Value
from generate_any import reduced, resized
from generate_rare import CONTRIB, ramp
from generate_tokens import projection
from onnx import TensorProto

__all__ = ["UNUSUAL_ANY", "UNUSUAL_TOKENS", "UNUSUAL_VECTOR"]

Step = Callable[[Builder, Value], "Value | list[Value] | None"]


# ---- recurrent ------------------------------------------------------------------------------------------------------


def recurrent_with_all(b: Builder, x: Value) -> list[Value] | None:
    """A recurrent layer with any of its optional inputs; all its states and the last ones."""
    if b.dtype == np.float64:
        return None
    op, ways, hidden = b.pick(("LSTM", "GRU", "RNN")), b.size(1, 2), b.size(1, 5)
    n, length, size = x.shape
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * hidden
    inputs: list[Value | str] = [b.transpose(x, 1, 0, 2), b.weight((ways, rows, size), size),
                                 b.weight((ways, rows, hidden), hidden)]  # fmt: skip
    inputs.append(b.constant(b.numbers((ways, 2 * rows), 0.5)) if b.chance(2) else "")
    fixed = not b.open_batch
    lengths = np.array([b.size(1, length) for _ in range(n)], np.int32)
    inputs.append(b.constant(lengths) if fixed and b.chance(2) else "")
    inputs.append(_state(b, x, ways, hidden) if b.chance(2) else "")
    if op == "LSTM":
        inputs.append(_state(b, x, ways, hidden) if b.chance(2) else "")
        inputs.append(b.constant(b.numbers((ways, 3 * hidden), 0.5)) if b.chance(2) else "")
    attrs: dict[str, Any] = {"direction": "bidirectional" if ways == 2 else b.pick(("forward", "reverse"))}
    if b.chance(3):
        attrs["clip"] = 0.8
    if op == "GRU":
        attrs["linear_before_reset"] = b.size(0, 1)
    if op == "LSTM" and b.chance(4):
        attrs["input_forget"] = 1
    if b.chance(2):
        names = {"LSTM": ["Sigmoid", "Relu", "Tanh"], "GRU": ["HardSigmoid", "Tanh"], "RNN": ["Sigmoid"]}[op]
        attrs["activations"] = names * ways
    last = [(ways, n, hidden)] * (2 if op == "LSTM" else 1)
    made = b.split(op, inputs, [(length, ways, n, hidden), *last], hidden_size=hidden, **attrs)
    states = b.reshape(b.transpose(made[0], 2, 0, 1, 3), (n, length, ways * hidden))
    return [states, *(b.reshape(b.transpose(v, 1, 0, 2), (n, ways * hidden)) for v in made[1:])]


def _state(b: Builder, x: Value, ways: int, hidden: int) -> Value | str:
    """A state to begin with: stored, or made of the mean of the tokens."""
    n = x.shape[0]
    if not b.open_batch and b.chance(2):
        return b.constant(b.numbers((ways, n, hidden), 0.5))
    mean = reduced(b, x, "ReduceMean", 1, keep=0)
    return b.transpose(b.reshape(projection(b, mean, ways * hidden), (n, ways, hidden)), 1, 0, 2)


# ---- attention ------------------------------------------------------------------------------------------------------


def _apart(b: Builder, x: Value, heads: int, width: int) -> Value:
    n, length, _ = x.shape
    return b.transpose(b.reshape(projection(b, x, heads * width), (n, length, heads, width)), 0, 2, 1, 3)


def grouped_attention(b: Builder, x: Value) -> Value | None:
    """Attention with fewer heads of keys than of queries, values of another width, folded or apart."""
    if b.opset < 23 or b.dtype == np.float64:
        return None
    shared, ratio, width, made = b.size(1, 3), b.size(1, 3), 2 * b.size(1, 3), b.size(1, 4)
    heads = shared * ratio
    n, length, _ = x.shape
    attrs: dict[str, Any] = {"is_causal": b.size(0, 1)}
    attrs |= {"scale": 0.4} if b.chance(2) else {}
    attrs |= {"softcap": 2.0} if b.chance(3) else {}
    mask = [b.constant(b.numbers(b.pick(((length, length), (1, heads, length, length)))))] if b.chance(2) else []
    if b.chance(2):
        parts = [_apart(b, x, h, w) for h, w in ((heads, width), (shared, width), (shared, made))]
        seen = b.node("Attention", [*parts, *mask], (n, heads, length, made), **attrs)
        return b.reshape(b.transpose(seen, 0, 2, 1, 3), (n, length, heads * made))
    parts = [projection(b, x, h * w) for h, w in ((heads, width), (shared, width), (shared, made))]
    return b.node("Attention", [*parts, *mask], (n, length, heads * made), q_num_heads=heads, kv_num_heads=shared,
                  **attrs)  # fmt: skip


def repeated_heads(b: Builder, x: Value) -> Value:
    """Keys and values repeated for several heads of queries, written out by Unsqueeze, Expand and Reshape."""
    shared, ratio, width = b.size(1, 3), b.size(2, 3), b.size(1, 4)
    heads = shared * ratio
    n, length, _ = x.shape
    q, k, v = _apart(b, x, heads, width), _apart(b, x, shared, width), _apart(b, x, shared, width)
    k, v = (_repeated(b, part, ratio) for part in (k, v))
    scores = b.node("MatMul", [q, b.transpose(k, 0, 1, 3, 2)], (n, heads, length, length))
    seen = b.node("MatMul", [b.node("Softmax", [scores], axis=3), v], (n, heads, length, width))
    return projection(b, b.reshape(b.transpose(seen, 0, 2, 1, 3), (n, length, heads * width)), x.shape[2])


def _repeated(b: Builder, x: Value, ratio: int) -> Value:
    n, heads, length, width = x.shape
    deep = b.reshape(x, (n, heads, 1, length, width))
    if b.opset >= 8 and b.chance(2):
        wide = b.node("Expand", [deep, b.ints(1, 1, ratio, 1, 1)], (n, heads, ratio, length, width))
    else:
        wide = b.node("Tile", [deep, b.ints(1, 1, ratio, 1, 1)], (n, heads, ratio, length, width))
    return b.reshape(wide, (n, heads * ratio, length, width))


def fused_attention_with_all(b: Builder, x: Value) -> Value | None:
    """The fused forms with a bias, a mask, a scale, values of another width or the past."""
    if b.dtype == np.float64:
        return None
    n, length, size = x.shape
    heads, width, made = b.size(1, 3), 2 * b.size(1, 3), b.size(1, 3)
    domain: dict[str, Any] = {"domain": CONTRIB, "num_heads": heads}
    if b.chance(2):
        wide = heads * (2 * width + made)
        inputs: list[Value | str] = [x, b.weight((size, wide), size), b.vector(wide)]
        if b.chance(2) and not b.open_batch:
            inputs.append(b.constant(np.ones((n, length), np.int32)))
        sizes = [heads * width, heads * width, heads * made]
        return b.node("Attention", inputs, (n, length, heads * made), qkv_hidden_sizes=sizes,
                      unidirectional=b.size(0, 1), **domain)  # fmt: skip
    q, k, v = (projection(b, x, heads * w) for w in (width, width, made))
    inputs = [q, k, v, b.vector(heads * (2 * width + made)) if b.chance(2) else ""]
    if b.chance(2) and not b.open_batch:
        inputs += ["", b.constant(b.numbers((b.pick((1, n)), b.pick((1, heads)), length, length)))]
    domain |= {"scale": 0.3} if b.chance(3) else {}
    return b.node("MultiHeadAttention", inputs, (n, length, heads * made), **domain)


def grouped_queries(b: Builder, x: Value) -> Value | None:
    """com.microsoft.GroupQueryAttention, its inputs packed or rotated."""
    if b.dtype == np.float64 or b.open_batch:
        return None
    n, length, _ = x.shape
    shared, ratio, width = b.size(1, 2), b.size(1, 3), 16 * b.size(1, 2)
    heads = shared * ratio
    attrs: dict[str, Any] = {"domain": CONTRIB, "num_heads": heads, "kv_num_heads": shared}
    lengths = [b.constant(np.full(n, length - 1, np.int32)), b.constant(np.array(length, np.int32))]
    caches: list[str] = []
    if b.chance(2):
        angle = b.rng.uniform(0, 1, (length, width // 2)).astype(b.dtype)
        caches = [b.constant(f(angle)) for f in (np.cos, np.sin)]
        attrs |= {"do_rotary": 1, "rotary_interleaved": b.size(0, 1)}
    if b.chance(2):
        q: list[Value | str] = [projection(b, x, (heads + 2 * shared) * width), "", ""]
    else:
        q = [projection(b, x, h * width) for h in (heads, shared, shared)]
    attrs |= {"scale": 0.2} if b.chance(3) else {}
    return b.node("GroupQueryAttention", [*q, "", "", *lengths, *caches], (n, length, heads * width), **attrs)


def rotated_part(b: Builder, x: Value) -> Value | None:
    """A rotation of a part of every head, of neighbours or of halves, with the heads apart."""
    if b.opset < 23 or b.dtype == np.float64 or b.open_batch:
        return None
    heads, width = b.size(1, 3), 4 * b.size(1, 2)
    n, length, _ = x.shape
    part = b.pick((0, width // 2))
    angle = b.rng.uniform(0, 1, (n, length, (part or width) // 2)).astype(b.dtype)
    caches = [b.constant(f(angle)) for f in (np.cos, np.sin)]
    y = _apart(b, x, heads, width)
    turned = b.node("RotaryEmbedding", [y, *caches], rotary_embedding_dim=part, interleaved=b.size(0, 1))
    return b.reshape(b.transpose(turned, 0, 2, 1, 3), (n, length, heads * width))


# ---- normalisations -------------------------------------------------------------------------------------------------


def norm_over_several(b: Builder, x: Value) -> Value | None:
    """Over the last axes, without a bias; or its mean and deviation too."""
    if b.opset < 17 or b.dtype == np.float64 or x.rank < 3:
        return None
    op = b.pick(("LayerNormalization", "RMSNormalization")) if b.opset >= 23 else "LayerNormalization"
    axis = b.pick((-1, -2, x.rank - 1))
    scale = b.constant(b.numbers(x.shape[axis:], 0.5))
    if op == "RMSNormalization":
        return b.node(op, [x, scale], axis=axis, epsilon=0.1)
    inner = resized(x.shape, x.rank - 1, 1) if axis != -2 else (*x.shape[:-2], 1, 1)
    made = b.split(op, [x, scale], [x.shape, inner, inner], axis=axis, epsilon=0.1)
    return b.node("Mul", [made[0], made[2]]) if b.chance(3) else made[0]


def norm_by_hand(b: Builder, x: Value) -> Value | None:
    """x / √(mean x² + ε) · γ, with or without the mean taken off first, over the last axis."""
    axis = x.rank - 1
    if b.opset < 8:
        return None
    y = x if b.chance(2) else b.node("Sub", [x, reduced(b, x, "ReduceMean", axis)])
    square = b.node("Pow", [y, b.constant(2.0)]) if b.chance(2) else b.node("Mul", [y, y])
    mean = b.node("Add", [reduced(b, square, "ReduceMean", axis), b.constant(0.1)])
    if b.dtype == np.float32 and b.chance(2):
        normal = b.node("Mul", [y, b.node("Reciprocal", [b.node("Sqrt", [mean])])])
    else:
        normal = b.node("Div", [y, b.node("Sqrt", [mean])])
    return b.node("Mul", [normal, b.vector(x.shape[-1])])


# ---- letters --------------------------------------------------------------------------------------------------------


def letters(b: Builder, x: Value) -> Value | None:
    """Einsum with three operands, dots, letters in any order, a diagonal, a sum, or an outer product."""
    if b.opset < 12 or b.dtype == np.float64:
        return None
    n, length, size = x.shape
    out, inner = b.size(1, 6), b.size(1, 4)
    w, u = b.weight((size, out), size), b.weight((out, inner), out)
    mix = b.weight((length, out), length)
    forms: list[tuple[str, list[Value | str], tuple[int, ...]]] = [
        ("bld,de,ef->blf", [x, w, u], (n, length, inner)),
        ("...d,de->...e", [x, w], (n, length, out)),
        ("bld,de", [x, w], (n, out, length)),  # letters that are not summed over, by the alphabet
        ("bld,le->bed", [x, mix], (n, out, size)),
        ("de,bld->ble", [w, x], (n, length, out)),
        ("bld,ble->bde", [x, b.pick([v for v in b.values if v.rank == 3 and v.shape[:2] == x.shape[:2]] or [x])], ()),
        ("bld,bld->bld", [x, b.pick(b.like(x))], x.shape),
        ("bld,d->bld", [x, b.vector(size)], x.shape),
        ("bld->bdl", [x], (n, size, length)),
        ("bld,me->blde", [x, b.weight((1, 2), 1)], (n, length, size, 2)),
    ]
    equation, operands, shape = b.pick(forms)
    if not shape:
        assert isinstance(operands[1], Value)
        shape = (n, size, operands[1].shape[2])
    return b.node("Einsum", operands, shape, equation=equation)


def summed_letters(b: Builder, x: Value) -> Value | None:
    """Letters that are left out are summed over."""
    if b.opset < 12 or b.dtype == np.float64:
        return None
    equation, shape = b.pick((("bld->bl", x.shape[:2]), ("bld->bd", (x.shape[0], x.shape[2]))))
    return b.node("Tanh", [b.node("Einsum", [x], shape, equation=equation)])


def by_heads(b: Builder, x: Value) -> Value:
    """A product with a weight of its own for every head, [H, d, e]."""
    heads, width, out = b.size(1, 3), b.size(1, 4), b.size(1, 4)
    n, length, _ = x.shape
    weight = b.weight((heads, width, out), width)
    mixed = b.node("MatMul", [_apart(b, x, heads, width), weight], (n, heads, length, out))
    return b.reshape(b.transpose(mixed, 0, 2, 1, 3), (n, length, heads * out))


def into_one(b: Builder, x: Value) -> Value:
    """A product with a vector, which leaves no channel axis; then one of size 1."""
    one = b.node("MatMul", [x, b.vector(x.shape[-1])], x.shape[:-1])
    return b.node("Mul", [x, b.reshape(one, (*x.shape[:-1], 1))])


def embedded(b: Builder, x: Value) -> Value | None:
    """The largest of each token's numbers as an index into a table of vectors."""
    if b.opset < 13 or b.dtype == np.float64:
        return None
    apart = b.node("Add", [b.node("Mul", [b.node("Tanh", [x]), b.constant(1e-3)]), ramp(b, x, x.rank - 1)])
    ids = b.node("ArgMax", [apart], x.shape[:-1], axis=x.rank - 1, keepdims=0)
    width, words = b.size(2, 8), x.shape[-1]
    way = b.size(0, 2)
    if way == 0 and x.rank == 3:
        parts: list[Value | str] = [b.node("Cast", [ids], to=TensorProto.INT32), "", b.weight((words, width), 1),
                                    b.weight((x.shape[1], width), 1), "", b.vector(width), b.vector(width)]  # fmt: skip
        shapes = [(*x.shape[:-1], width), (x.shape[0],)]
        return b.split("EmbedLayerNormalization", parts, shapes, domain=CONTRIB, epsilon=0.1)[0]
    if way == 1:
        values = b.constant(np.array([0.0, 1.0], np.float32))
        depth = b.constant(np.array(words, np.int64))
        return b.node("OneHot", [ids, depth, values], x.shape, axis=-1)
    return b.node("Gather", [b.weight((words, width), 1), ids], (*x.shape[:-1], width), axis=0)


# ---- any rank -------------------------------------------------------------------------------------------------------


def reduced_over_several(b: Builder, x: Value) -> Value | None:
    """A reduction over several axes, all of them, or none; the axes counted from the end; kept or put back."""
    op = b.pick(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceL1", "ReduceSumSquare"))
    if b.dtype == np.float64 and op not in ("ReduceMean", "ReduceSum"):
        return None
    y = b.node("Tanh", [x])
    axes = sorted({b.size(1, x.rank - 1), b.size(1, x.rank - 1)})
    if b.opset >= 18 and b.chance(4):
        return b.node("Add", [x, b.node(op, [y], noop_with_empty_axes=1)])
    if b.opset >= 11 and b.chance(2):
        whole = reduced(b, y, op, *axes)
        node = b.nodes[-1]
        for held in node.attribute:
            if held.name == "axes":
                held.ints[:] = [a - x.rank for a in axes]
        return b.node("Add", [x, whole])
    low = reduced(b, y, op, *axes, keep=0)
    return b.node("Add", [x, b.reshape(low, [1 if a in axes else n for a, n in enumerate(x.shape)])])


def running_sum(b: Builder, x: Value) -> Value | None:
    if b.opset < 11 or b.dtype == np.float64:
        return None
    axis = b.size(1, x.rank - 1)
    return b.node("CumSum", [x, b.constant(np.array(b.pick((axis, axis - x.rank)), np.int64))],
                  exclusive=b.size(0, 1), reverse=b.size(0, 1))  # fmt: skip


def best_few(b: Builder, x: Value) -> Value | None:
    """TopK, of the smallest too, and where they were."""
    if b.opset < 11 or b.dtype == np.float64:
        return None
    axis = b.size(1, x.rank - 1)
    k = b.size(1, x.shape[axis])
    apart = b.node("Add", [b.node("Mul", [b.node("Tanh", [x]), b.constant(1e-3)]), ramp(b, x, axis)])
    shapes = [resized(x.shape, axis, k)] * 2
    attrs = {"axis": b.pick((axis, axis - x.rank)), "largest": b.size(0, 1)}
    values, where = b.split("TopK", [apart, b.ints(k)], shapes, **attrs)
    if b.chance(2):
        return b.node("GatherElements", [x, where], shapes[0], axis=axis)
    return b.node("Mul", [values, b.node("Cast", [where], to=TensorProto.FLOAT)])


def scattered(b: Builder, x: Value) -> Value | None:
    """Scatters that add or multiply, along the channels or beside them; a part of a batch gathered."""
    if b.opset < 18 or b.dtype == np.float64 or b.open_batch:
        return None
    axis = b.size(1, x.rank - 1)
    reduction = b.pick(("add", "mul", "max", "none"))
    way = b.size(0, 2)
    if way == 0:
        index = b.rng.permutation(x.shape[axis])[: b.size(1, x.shape[axis])]
        full = np.broadcast_to(index.reshape([-1 if a == axis else 1 for a in range(x.rank)]),
                               resized(x.shape, axis, len(index))).copy()  # fmt: skip
        updates: Value | str = b.constant(b.numbers(full.shape))
        if b.chance(2):
            shape = resized(x.shape, axis, len(index))
            updates = b.node("Gather", [b.pick(b.like(x)), b.ints(*index.tolist())], shape, axis=axis)
        return b.node("ScatterElements", [x, b.constant(full), updates], axis=axis, reduction=reduction)
    if way == 1:
        rows = np.array([[b.size(0, x.shape[0] - 1)]])
        return b.node("ScatterND", [x, b.constant(rows), b.constant(b.numbers((1, *x.shape[1:])))],
                      reduction=reduction)  # fmt: skip
    picked = b.rng.integers(0, x.shape[1], (x.shape[0], 2, 1))
    return b.node("GatherND", [x, b.constant(picked)], (x.shape[0], 2, *x.shape[2:]), batch_dims=1)


def parted(b: Builder, x: Value) -> list[Value] | None:
    """A Split into three, or into equal parts with a smaller one at the end."""
    axis = b.size(1, x.rank - 1)
    size = x.shape[axis]
    if size < 3:
        return None
    if b.opset >= 18 and b.chance(2):
        part = -(-size // 3)
        sizes = [part] * (size // part) + ([size % part] if size % part else [])
        return b.split("Split", [x], [resized(x.shape, axis, n) for n in sizes], axis=axis, num_outputs=len(sizes))
    one = b.size(1, size - 2)
    two = b.size(1, size - one - 1)
    shapes = [resized(x.shape, axis, n) for n in (one, two, size - one - two)]
    sizes = [one, two, size - one - two]
    if b.opset >= 13:
        return b.split("Split", [x, b.ints(*sizes)], shapes, axis=axis)
    return b.split("Split", [x], shapes, axis=axis, split=sizes)


def half_of_its_shape(b: Builder, x: Value) -> Value | None:
    """The first half of an axis, as exports write it: by arithmetic on the shape."""
    axis = b.size(1, x.rank - 1)
    if b.opset < 11 or x.shape[axis] < 2:
        return None
    sizes = b.node("Shape", [x], [x.rank])
    half = b.node("Div", [b.node("Gather", [sizes, b.ints(axis)], [1], axis=0), b.ints(2)])
    cut: list[Value | str] = [b.ints(0), half] if b.chance(2) else [half, b.ints(2**31 - 1)]
    left = x.shape[axis] // 2 if cut[1] is half else x.shape[axis] - x.shape[axis] // 2
    return b.node("Slice", [x, *cut, b.ints(axis)], resized(x.shape, axis, left))


def not_understood(b: Builder, x: Value) -> Value | None:
    """Operators without a row, and a sequence in between."""
    if b.opset < 13 or b.dtype == np.float64:
        return None
    axis, way = b.size(1, x.rank - 1), b.size(0, 2)
    if way == 0:
        chosen = b.rng.random(x.shape[axis]) < 0.6
        chosen[0] = True
        shape = resized(x.shape, axis, int(chosen.sum()))
        return b.node("Compress", [x, b.constant(chosen)], shape, axis=axis)
    if way == 1:
        pair = b.node("SequenceConstruct", [x, b.pick(b.like(x))], ())
        return b.node("ConcatFromSequence", [pair], resized(x.shape, axis, 2 * x.shape[axis]), axis=axis)
    pieces = b.node("SplitToSequence", [x], (), axis=axis, keepdims=1)
    return b.node("SequenceAt", [pieces, b.constant(np.array(0, np.int64))], resized(x.shape, axis, 1))


def one_operand(b: Builder, x: Value) -> Value | None:
    """Operators of any number of operands with a single one, or bounded on one side."""
    if b.opset < 12 or b.dtype == np.float64:
        return None
    if b.chance(2):
        return b.node(b.pick(("Sum", "Max", "Min", "Mean")), [x])
    return b.node("Clip", [x, "", b.constant(1.0)] if b.chance(2) else [x, b.constant(-0.7)], x.shape)


def part_of_triangle(b: Builder, x: Value) -> Value | None:
    if b.opset < 14 or b.dtype == np.float64:
        return None
    return b.node("Trilu", [x, b.constant(np.array(b.size(-2, 2), np.int64))], upper=b.size(0, 1))


def slope_of_last(b: Builder, x: Value) -> Value | None:
    """A PRelu with a slope for each index of the last axis, or of all."""
    if b.dtype == np.float64 or b.opset < 9:
        return None
    return b.node("PRelu", [x, b.constant(b.numbers(b.pick(((x.shape[-1],), x.shape[1:])), 0.5))])


def packed_product(b: Builder, x: Value) -> Value | None:
    """A weight of 4 or 8 bits, packed in blocks of 16 of the numbers that it reads."""
    if b.dtype == np.float64:
        return None
    out, bits, blocks = b.size(1, 8), b.pick((4, 8)), -(-x.shape[-1] // 16)
    packed = b.rng.integers(0, 256, (out, blocks, 2 * bits)).astype(np.uint8)
    scales = b.rng.uniform(0.5, 1, b.pick(((out, blocks), (out * blocks,)))) / 2**bits
    inputs: list[Value | str] = [x, b.constant(packed), b.constant(scales.astype(b.dtype))]
    if b.chance(2):
        inputs += ["", "", b.vector(out)]
    return b.node("MatMulNBits", inputs, (*x.shape[:-1], out), domain=CONTRIB, K=x.shape[-1], N=out, bits=bits,
                  block_size=16)  # fmt: skip


def frequencies(b: Builder, x: Value) -> Value | None:
    """A Fourier transform along an axis, or, of vectors, in one window."""
    if b.opset < 17 or b.dtype == np.float64:
        return None
    last = b.ints(-1)
    if x.rank == 2 and b.chance(2):
        bins = x.shape[1] // 2 + 1
        size = b.constant(np.array(x.shape[1], np.int64))
        signal = b.node("Unsqueeze", [x, last], (*x.shape, 1))
        found = b.node("STFT", [signal, size, "", size], (x.shape[0], 1, bins, 2), onesided=1)
        return b.reshape(found, (x.shape[0], 2 * bins))
    axis = b.size(1, x.rank - 1)
    signal = b.node("Unsqueeze", [x, last], (*x.shape, 1))
    placed: dict[str, int] = {"axis": axis} if b.opset < 20 else {}
    along: list[Value | str] = [] if placed else ["", b.constant(np.array(axis, np.int64))]
    found = b.node("DFT", [signal, *along], (*x.shape, 2), **placed)
    return b.node("ReduceSum", [found, last], x.shape, keepdims=0)


def with_diagonal(b: Builder, x: Value) -> Value | None:
    if b.opset < 9 or b.dtype == np.float64:
        return None
    return b.node("Add", [x, b.node("EyeLike", [x], k=b.size(-1, 1))])


UNUSUAL_ANY: tuple[Step, ...] = (
    reduced_over_several, reduced_over_several, running_sum, best_few, scattered, scattered, parted, half_of_its_shape,
    not_understood, one_operand, part_of_triangle, slope_of_last, norm_by_hand, norm_over_several, into_one,
    frequencies,
)  # fmt: skip
UNUSUAL_TOKENS: tuple[Step, ...] = (
    recurrent_with_all, recurrent_with_all, recurrent_with_all, grouped_attention, grouped_attention, repeated_heads,
    fused_attention_with_all, fused_attention_with_all, grouped_queries, rotated_part, norm_over_several, norm_by_hand,
    letters, letters, letters, summed_letters, by_heads, embedded, packed_product,
)  # fmt: skip
UNUSUAL_VECTOR: tuple[Step, ...] = (
    embedded, norm_by_hand, into_one, reduced_over_several, packed_product, frequencies, with_diagonal,
)  # fmt: skip
