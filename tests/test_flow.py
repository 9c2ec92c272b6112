"""Accessibility, co-accessibility and the best path through every channel, against an enumeration of all paths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from exactness import model_of
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from onnxprune.channels import ChannelMap
from onnxprune.graph import Graph
from onnxprune.ops import build_map
from onnxprune.passes.flow import channel_blocks, flow
from onnxprune.passes.fold import nonzero_slices, signal_blocks
from onnxprune.passes.norms import frobenius_block

Vertex = tuple[str, int]
"""A group of coupled channels in one tensor; 0 for all of a tensor that has no channels of its own."""
Path = tuple[tuple[Vertex, ...], float]

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "chain": (
        "(float[1,2,4,4] x) => (float[A,B,C,D] y) { a = Conv(x, w1) b = Relu(a) y = Conv(b, w2) }",
        {"w1": (3, 2, 3, 3), "w2": (2, 3, 1, 1)},
    ),
    "residual": (
        "(float[1,2,4,4] x) => (float[A,B,C,D] y) "
        "{ a = Conv(x, w1) b = Conv(a, w2) c = Add(a, b) d = Relu(c) y = Conv(d, w3) }",
        {"w1": (3, 2, 1, 1), "w2": (3, 3, 1, 1), "w3": (2, 3, 1, 1)},
    ),
    "concatenation": (
        "(float[1,2,4,4] x) => (float[A,B,C,D] y) "
        "{ a = Conv(x, w1) b = Conv(a, w2) c = Concat<axis=1>(b, x, a) y = Conv(c, w3) }",
        {"w1": (3, 2, 1, 1), "w2": (2, 3, 1, 1), "w3": (2, 7, 1, 1)},
    ),
    "grouped": (
        "(float[1,2,4,4] x) => (float[A,B,C,D] y) { a = Conv(x, w1) b = Conv<group=2>(a, w2) y = Conv(b, w3) }",
        {"w1": (4, 2, 1, 1), "w2": (2, 2, 3, 3), "w3": (2, 2, 1, 1)},
    ),
    "depthwise and normalised": (
        "(float[1,2,4,4] x) => (float[A,B,C,D] y) "
        "{ a = Conv(x, w1) b = Conv<group=3>(a, w2) c = BatchNormalization(b, g, s, m, v) y = Conv(c, w3) }",
        {"w1": (3, 2, 1, 1), "w2": (3, 1, 3, 3), "w3": (2, 3, 1, 1), "s": 3, "m": 3,
         "g": np.array([0.5, -2.0, 0.01], np.float32), "v": np.array([1.0, 0.1, 4.0], np.float32)},
    ),
    "up and down with a skip": (
        "(float[1,2,4,4] x) => (float[A,B,C,D] y) { a = Conv(x, w1) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) "
        "b = Conv(p, w2) u = ConvTranspose<strides=[2,2]>(b, w3) c = Concat<axis=1>(u, a) y = Conv(c, w4) }",
        {"w1": (2, 2, 1, 1), "w2": (3, 2, 1, 1), "w3": (3, 2, 2, 2), "w4": (2, 4, 1, 1)},
    ),
    "two inputs, two outputs": (
        "(float[1,2,4,4] x, float[1,2,4,4] z) => (float[A,B,C,D] y, float[A,E,C,D] q) "
        "{ a = Conv(x, w1) b = Conv(z, w2) y = Conv(a, w3) c = Add(a, b) q = Conv(c, w4) }",
        {"w1": (3, 2, 1, 1), "w2": (3, 2, 1, 1), "w3": (2, 3, 1, 1), "w4": (1, 3, 1, 1)},
    ),
}  # fmt: skip
each_model = pytest.mark.parametrize("name", MODELS)


def built(name: str, zeros: float = 0.0, seed: int = 0) -> ModelProto:
    """A model; ``zeros``: share of its kernel slices that are zero."""
    text, weights = MODELS[name]
    model = model_of(text, **weights)
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if values.ndim == 4:
            values[rng.random(values.shape[:2]) < zeros] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


# ---- the oracle: every path of the channel graph, spelled out -------------------------------------------------------


def edges(model: ModelProto, channel_map: ChannelMap) -> dict[tuple[Vertex, Vertex], float]:
    """(from, to) → the best gain of a pair of channels that a node joins."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    wide = {value.name: value.type.tensor_type.shape.dim[1].dim_value for value in model.graph.input}
    found: dict[tuple[Vertex, Vertex], float] = {}
    for node in model.graph.node:
        made = list(_joined(node, held, wide))
        wide[node.output[0]] = 1 + max(to for _, to, _, _ in made)
        for name, to, i, gain in made:
            ends = _vertex(channel_map, name, i), _vertex(channel_map, node.output[0], to)
            found[ends] = max(found.get(ends, 0.0), gain)
    return found


def _vertex(channel_map: ChannelMap, name: str, index: int) -> Vertex:
    ids = channel_map.axes.get(name, (None, None))[1]
    return name, 0 if ids is None else int(ids[index])


def _joined(
    node: NodeProto, held: dict[str, NDArray[Any]], wide: dict[str, int]
) -> Iterator[tuple[str, int, int, float]]:
    """(tensor read, channel made, channel read, gain)"""
    w = held.get(node.input[1]) if len(node.input) > 1 else None
    if node.op_type in ("Conv", "ConvTranspose"):
        assert w is not None
        count = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "ConvTranspose":
            w = w.swapaxes(0, 1)
        for out, row in enumerate(w):
            first = out // (len(w) // count) * len(row)
            for i, kernel in enumerate(row):
                yield node.input[0], out, first + i, float(np.linalg.norm(kernel))
    elif node.op_type == "BatchNormalization":
        gamma, variance = held[node.input[1]], held[node.input[4]]
        for i in range(wide[node.input[0]]):
            yield node.input[0], i, i, float(abs(gamma[i]) / np.sqrt(variance[i] + 1e-5))
    elif node.op_type == "Concat":
        place = 0
        for name in node.input:
            for i in range(wide[name]):
                yield name, place + i, i, 1.0
            place += wide[name]
    else:
        assert node.op_type in ("Add", "Relu", "MaxPool")
        yield from ((name, i, i, 1.0) for name in node.input for i in range(wide[name]))


def paths(model: ModelProto, channel_map: ChannelMap, keep: NDArray[np.bool_] | None = None) -> list[Path]:
    """Every path that begins at a model input, has a gain and runs over kept groups: (vertices, log gain)."""
    ways: dict[Vertex, list[tuple[Vertex, float]]] = {}
    for (start, end), gain in edges(model, channel_map).items():
        if gain > 0 and (keep is None or (keep[start[1]] and keep[end[1]])):
            ways.setdefault(start, []).append((end, float(np.log(gain))))
    inputs = {value.name for value in model.graph.input}
    pending: list[Path] = [((v,), 0.0) for v in sorted({v for v in ways if v[0] in inputs})]
    found: list[Path] = []
    while pending:
        path = pending.pop()
        found.append(path)
        pending += [((*path[0], end), path[1] + gain) for end, gain in ways.get(path[0][-1], [])]
    return found


def enumerated(
    model: ModelProto, channel_map: ChannelMap, keep: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Per group the best log gain of a path from an input to it, and of a complete path through it."""
    outputs = {value.name for value in model.graph.output}
    best = np.full((2, channel_map.groups), -np.inf)
    for vertices, gain in paths(model, channel_map, keep):
        best[0, vertices[-1][1]] = max(best[0, vertices[-1][1]], gain)
        for _, group in vertices if vertices[-1][0] in outputs else ():
            best[1, group] = max(best[1, group], gain)
    return best


def best_ends(model: ModelProto, channel_map: ChannelMap) -> NDArray[np.float64]:
    """Per group the best log gain of a path from it to an output (in a model where every channel is accessible)."""
    outputs = {value.name for value in model.graph.output}
    gains = edges(model, channel_map)
    best = np.full(channel_map.groups, -np.inf)
    for vertices, _ in paths(model, channel_map):
        rest = 0.0
        for here, after in zip(reversed(vertices), (None, *reversed(vertices)), strict=False):
            rest += np.log(gains[here, after]) if after is not None else 0.0
            if vertices[-1][0] in outputs:
                best[here[1]] = max(best[here[1]], rest)
    return best


def on_tensors(channel_map: ChannelMap) -> NDArray[np.int32]:
    """Groups that some activation has (those of a weight's input axis are not, where it reads a plain input)."""
    labelled = [ids for axes in channel_map.axes.values() for ids in axes if ids is not None]
    return np.unique(np.concatenate(labelled))


# ---- flow against the oracle ----------------------------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_best_gain_from_an_input(name: str, zeros: float) -> None:
    model = built(name, zeros)
    channel_map = build_map(Graph(model))
    found = flow(channel_map, channel_blocks(channel_map, frobenius_block)).forward
    seen = on_tensors(channel_map)
    np.testing.assert_allclose(found[seen], enumerated(model, channel_map)[0, seen], rtol=1e-5, atol=1e-6)


@each_model
def test_best_gain_to_an_output(name: str) -> None:
    model = built(name)
    channel_map = build_map(Graph(model))
    found = flow(channel_map, channel_blocks(channel_map, frobenius_block)).backward
    seen = on_tensors(channel_map)
    np.testing.assert_allclose(found[seen], best_ends(model, channel_map)[seen], rtol=1e-5, atol=1e-6)


@each_model
@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_best_gain_through_a_channel(name: str, zeros: float) -> None:
    model = built(name, zeros)
    channel_map = build_map(Graph(model))
    found = flow(channel_map, channel_blocks(channel_map, frobenius_block)).through
    seen = on_tensors(channel_map)
    np.testing.assert_allclose(found[seen], enumerated(model, channel_map)[1, seen], rtol=1e-5, atol=1e-6)


@each_model
def test_alive_is_being_on_a_path_from_an_input_to_an_output(name: str) -> None:
    for seed in range(10):
        model = built(name, 0.5, seed)
        channel_map = build_map(Graph(model))
        alive = flow(channel_map, signal_blocks(nonzero_slices(channel_map))).alive
        seen = on_tensors(channel_map)
        assert np.array_equal(alive[seen], enumerated(model, channel_map)[1, seen] > -np.inf), f"seed {seed}"


@each_model
def test_edges_that_are_there_count_like_edges_of_weight_0(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only few slices are looked at together."""
    for seed in range(5):
        channel_map = build_map(Graph(built(name, 0.5, seed)))
        nonzero = nonzero_slices(channel_map)
        with np.errstate(divide="ignore"):
            wanted = flow(channel_map, {node: np.log(block.astype(np.float64)) for node, block in nonzero.items()})
        monkeypatch.setattr("onnxprune.passes.flow._CHUNK", 1 + seed)
        found = flow(channel_map, nonzero)
        for one, other in zip(astuple(found), astuple(wanted), strict=True):
            assert np.array_equal(one, other), f"seed {seed}"
        monkeypatch.undo()


@each_model
def test_removed_channels_carry_no_path(name: str) -> None:
    model = built(name)
    channel_map = build_map(Graph(model))
    seen = on_tensors(channel_map)
    for seed in range(10):
        keep = channel_map.frozen | (np.random.default_rng(seed).random(channel_map.groups) < 0.6)
        alive = flow(channel_map, {}, keep).alive
        assert np.array_equal(alive[seen], enumerated(model, channel_map, keep)[1, seen] > -np.inf), f"seed {seed}"


# ---- what has no channels of its own joins all ----------------------------------------------------------------------


JOINED: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "queries and keys": (
        "(float[2,5,6] x) => (float[A,B,C] y) { q = MatMul(x, wq) k = MatMul(x, wk) t = Transpose<perm=[0,2,1]>(k) "
        "s = MatMul(q, t) a = Softmax<axis=-1>(s) v = MatMul(x, wv) o = MatMul(a, v) y = MatMul(o, w) }",
        {"wq": (6, 4), "wk": (6, 4), "wv": (6, 4), "w": (4, 2)},
        ("q", "k", "v", "o"),
    ),
    "a gate over all channels": (
        "(float[1,3,6,6] x) => (float[A,B,C,D] y) { h = Conv(x, w1) k = Conv(x, w2) r = Relu(k) g = Conv(r, w3) "
        "s = Sigmoid(g) z = Mul(h, s) y = Conv(z, w4) }",
        {"w1": (4, 3, 1, 1), "w2": (4, 3, 1, 1), "w3": (1, 4, 1, 1), "w4": (2, 4, 1, 1)},
        ("h", "k", "r", "g", "z"),
    ),
    "an embedding": (
        "(int64[2,3] x) => (float[A,B,C] y) { e = Gather(t, x) h = MatMul(e, w1) y = MatMul(h, w2) }",
        {"t": (5, 6), "w1": (6, 4), "w2": (4, 2)},
        ("e", "h"),
    ),
    "a weight on a stored constant": (
        "(float[5,4] x) => (float[A,B] y) { h = MatMul(t, w1) r = Relu(h) k = MatMul(r, w2) y = Add(x, k) }",
        {"t": (5, 6), "w1": (6, 8), "w2": (8, 4)},
        ("h", "r"),
    ),
    "a mean over the channels": (
        "(float[2,6] x) => (float[A,B] y) { h = MatMul(x, w1) r = Relu(h) m = ReduceMean<axes=[1]>(r) "
        "u = MatMul(x, w2) z = Mul(u, m) y = MatMul(z, w3) }",
        {"w1": (6, 4), "w2": (6, 4), "w3": (4, 2)},
        ("h", "r", "u"),
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_what_has_no_channels_joins_all(name: str) -> None:
    text, weights, tensors = JOINED[name]
    channel_map = build_map(Graph(model_of(text, **weights)))
    alive = flow(channel_map, channel_blocks(channel_map, frobenius_block)).alive
    for tensor in tensors:
        labelled = [ids for ids in channel_map.axes[tensor] if ids is not None]
        assert labelled
        assert all(bool(np.all(alive[ids])) for ids in labelled), tensor


def test_sizes_carry_no_signal() -> None:
    """A channel of which only the size is asked reaches no output."""
    text = """(float[1,3,6,6] x) => (float[A,B,C,D] y) { a = Conv(x, w1) s = Shape(a) f = Cast<to=1>(s)
    m = ReduceProd<axes=[0], keepdims=0>(f) b = Conv(x, w2) z = Mul(b, m) y = Conv(z, w3) }"""
    channel_map = build_map(Graph(model_of(text, w1=(4, 3, 1, 1), w2=(4, 3, 1, 1), w3=(2, 4, 1, 1))))
    alive = flow(channel_map, {}).alive
    a, b = (channel_map.axes[name][1] for name in ("a", "b"))
    assert a is not None
    assert b is not None
    assert not np.any(alive[a])
    assert np.all(alive[b])


def test_a_normalisation_that_is_zero_for_one_channel_of_a_group_passes_the_others() -> None:
    """Channels 0 and 2 are coupled by a grouped convolution; only the gain of the first is zero."""
    text = """(float[1,4,6,6] x) => (float[A,B,C,D] y) { a = Conv(x, w1) n = BatchNormalization(a, g, s, m, v)
    b = Conv<group=2>(n, w2) y = Conv(b, w3) }"""
    gain = np.array([0, 1, 1, 1], np.float32)
    normed: dict[str, Any] = {"g": gain, "s": 4, "m": 4, "v": np.ones(4, np.float32)}
    model = model_of(text, w1=(4, 4, 1, 1), w2=(4, 2, 1, 1), w3=(2, 4, 1, 1), **normed)
    channel_map = build_map(Graph(model))
    ids = channel_map.axes["a"][1]
    assert ids is not None
    assert len(np.unique(ids)) == 2
    assert np.all(flow(channel_map, {}).alive[ids])
