"""Steps of a random model for tokens [N, L, D].

A step appends nodes and returns the new tensor, several, or None where it does not apply to these sizes.
"""

from __future__ import annotations

import numpy as np
from generate import Builder, Value
from generate_any import activation, bent

__all__ = [
    "attention",
    "einsum",
    "gated",
    "layer_norm",
    "linear",
    "merged_heads",
    "mix_tokens",
    "projection",
    "recurrent",
    "swap_axes",
    "to_image",
]


def linear(b: Builder, x: Value) -> Value:
    out = b.size(1, 10)
    y = b.node("MatMul", [x, b.weight((x.shape[-1], out), x.shape[-1])], (*x.shape[:-1], out))
    return b.node("Add", [y, b.vector(out)]) if b.chance(2) else y


def mix_tokens(b: Builder, x: Value) -> Value:
    """A weight from the left: over the tokens."""
    out = b.size(1, 8)
    return b.node("MatMul", [b.weight((out, x.shape[1]), x.shape[1]), x], (x.shape[0], out, x.shape[2]))


def gated(b: Builder, x: Value) -> Value:
    """GLU: one half times the sigmoid of the other."""
    half = b.size(1, 6)
    wide = b.node("MatMul", [x, b.weight((x.shape[-1], 2 * half), x.shape[-1])], (*x.shape[:-1], 2 * half))
    shape = (*x.shape[:-1], half)
    attrs = {"num_outputs": 2} if b.opset >= 18 else {}
    left, right = b.split("Split", [wide], [shape, shape], axis=x.rank - 1, **attrs)
    return b.node("Mul", [left, b.node("Sigmoid", [right])])


def layer_norm(b: Builder, x: Value) -> Value:
    if b.opset < 17:
        return linear(b, x)
    return b.node("LayerNormalization", [x, b.vector(x.shape[-1]), b.vector(x.shape[-1])], axis=-1, epsilon=0.1)


def projection(b: Builder, x: Value, out: int) -> Value:
    y = b.node("MatMul", [x, b.weight((x.shape[-1], out), x.shape[-1])], (*x.shape[:-1], out))
    y = b.node("Add", [y, b.vector(out)]) if b.chance(2) else y
    return activation(b, y) if b.chance(4) else y


def attention(b: Builder, x: Value) -> Value:
    """Heads apart, q·kᵀ, softmax, ·v, heads together, projection."""
    heads, width = b.size(1, 3), b.size(1, 4)
    n, length, size = x.shape
    q, k, v = _fused_qkv(b, x, heads, width) if b.chance(2) else [_one_of_qkv(b, x, heads, width) for _ in range(3)]
    keys = b.transpose(k, 0, 1, 3, 2)
    scores = b.node("MatMul", [q, keys], (n, heads, length, length))
    scaled = b.node("Mul", [scores, b.constant(0.5)])
    if b.chance(3):
        scaled = b.node("Add", [scaled, b.constant(b.numbers((1, heads, length, length)))])
    weights = b.node("Softmax", [scaled], axis=3)
    seen = b.transpose(b.node("MatMul", [weights, v], (n, heads, length, width)), 0, 2, 1, 3)
    out = projection(b, b.reshape(seen, (n, length, heads * width)), size)
    return b.node("Add", [x, out]) if b.chance(2) else out


def _one_of_qkv(b: Builder, x: Value, heads: int, width: int) -> Value:
    n, length, _ = x.shape
    return b.transpose(b.reshape(projection(b, x, heads * width), (n, length, heads, width)), 0, 2, 1, 3)


def _fused_qkv(b: Builder, x: Value, heads: int, width: int) -> list[Value]:
    n, length, _ = x.shape
    wide = projection(b, x, 3 * heads * width)
    parts = b.transpose(b.reshape(wide, (n, length, 3, heads, width)), 2, 0, 3, 1, 4)
    index = [b.constant(np.array(i, np.int64)) for i in range(3)]
    return [b.node("Gather", [parts, i], (n, heads, length, width), axis=0) for i in index]


def merged_heads(b: Builder, x: Value) -> Value:
    """Heads moved into the batch and back."""
    heads, width = b.size(1, 3), b.size(1, 3)
    n, length, _ = x.shape
    apart = _one_of_qkv(b, x, heads, width)
    joint = activation(b, b.reshape(apart, (n * heads, length, width)))
    mixed = b.node("MatMul", [joint, b.transpose(joint, 0, 2, 1)], (n * heads, length, length))
    back = b.node("MatMul", [b.node("Softmax", [mixed], axis=2), joint], (n * heads, length, width))
    return b.reshape(b.transpose(b.reshape(back, (n, heads, length, width)), 0, 2, 1, 3), (n, length, heads * width))


def recurrent(b: Builder, x: Value) -> Value | None:
    """LSTM or GRU over the tokens, one way or both, its states joined again."""
    if b.dtype == np.float64:
        return None
    op, ways, hidden = b.pick(("LSTM", "GRU", "RNN")), b.size(1, 2), b.size(1, 5)
    n, length, size = x.shape
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * hidden
    inputs: list[Value | str] = [b.transpose(x, 1, 0, 2), b.weight((ways, rows, size), size)]
    inputs.append(b.weight((ways, rows, hidden), hidden))
    if b.chance(2):
        inputs.append(b.constant(b.numbers((ways, 2 * rows), 0.5)))
    direction = "bidirectional" if ways == 2 else b.pick(("forward", "reverse"))
    states = b.node(op, inputs, (length, ways, n, hidden), hidden_size=hidden, direction=direction)
    return b.reshape(b.transpose(states, 2, 0, 1, 3), (n, length, ways * hidden))


def einsum(b: Builder, x: Value) -> Value:
    """A weight on the channels, or a product of two tensors over them, by letters."""
    if b.opset < 12:
        return linear(b, x)
    out = b.size(1, 6)
    if b.chance(2):
        left = b.node(
            "Einsum", [x, b.weight((out, x.shape[2]), x.shape[2])], (*x.shape[:2], out), equation="nld,ed->nle"
        )
        right = b.node(
            "Einsum", [x, b.weight((x.shape[2], out), x.shape[2])], (*x.shape[:2], out), equation="nld,de->nle"
        )
        shape = (x.shape[0], x.shape[1], x.shape[1])
        return b.node("Tanh", [b.node("Einsum", [bent(b, left), bent(b, right)], shape, equation="nie,nje->nij")])
    return b.node(
        "Einsum", [x, b.weight((out, x.shape[2]), x.shape[2])], (x.shape[0], out, x.shape[1]), equation="nld,ed->nel"
    )


def swap_axes(b: Builder, x: Value) -> Value:
    return b.transpose(x, 0, 2, 1)


def to_image(b: Builder, x: Value) -> Value | None:
    side = int(np.sqrt(x.shape[1]))
    if b.dtype == np.float64 or side * side != x.shape[1] or side < 2:
        return None
    return b.reshape(b.transpose(x, 0, 2, 1), (x.shape[0], x.shape[2], side, side))
