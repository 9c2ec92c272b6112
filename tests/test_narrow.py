"""Narrowing: a layer reads only the channels it has kernels for, and the model computes what it computed.

Hand-made graphs say what every layer has to read in the end; on random graphs, with kernel slices set to zero at
random, the result has to be the same function and must not store more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exactness import assert_same_outputs, model_of
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from random_models import random_model
from witness import constants, feeds, largest_error, outputs

import onnxprune
from onnxprune.graph import Graph
from onnxprune.ops import build_map
from onnxprune.passes.blocks import blocks_of, is_connected
from onnxprune.passes.fold import nonzero_slices
from onnxprune.passes.latency import Target
from onnxprune.passes.layout import model_microseconds
from onnxprune.passes.narrow import Restructure, narrow
from onnxprune.shapes import infer_shapes

Floats = NDArray[np.float32]


def only(wide: int, *inputs: int, out: int = 4, kernel: int = 1, in_axis: int = 1) -> Floats:
    """A weight [out, wide, kernel, kernel] that is zero but for these inputs."""
    values = np.zeros((out, wide, *([kernel] * 2 if kernel else [])), np.float32)
    rng = np.random.default_rng([wide, out, *inputs])
    values[:, list(inputs)] = rng.standard_normal((out, len(inputs), *values.shape[2:]))
    return np.asarray(np.swapaxes(values, 1, in_axis), order="C")


def narrowed(model: ModelProto, mode: Restructure = "always", target: Target | None = None) -> ModelProto:
    channel_map = build_map(Graph(model))
    return narrow(channel_map, nonzero_slices(channel_map), mode, target=target).model


def modelled(model: ModelProto, target: Target) -> float:
    """Time of a run in µs."""
    graph = Graph(model)
    return model_microseconds(target, graph, infer_shapes(graph).of)


def stored(model: ModelProto) -> int:
    """Elements of constants of rank ≥ 2."""
    return sum(prod(held.shape) for held in constants(model).values() if held.ndim > 1)


def operators(model: ModelProto) -> list[str]:
    return sorted(node.op_type for node in model.graph.node if node.op_type != "Constant")


@dataclass(frozen=True)
class Case:
    """``reads``: constant → its shape in the result; ``nodes``: the operators that are left, if that matters."""

    name: str
    model: ModelProto
    reads: Mapping[str, tuple[int, ...]]
    nodes: str = ""
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def image(name: str, body: str, reads: Mapping[str, tuple[int, ...]], nodes: str = "", opset: int = 17,
          **weights: Any) -> Case:  # fmt: skip
    """``body`` reads p, q and r, images of 4, 3 and 5 channels, and x, and writes y."""
    stem = "p = Conv(x, wp) q = Conv(x, wq) r = Conv(x, wr)"
    text = f"(float[2,3,6,6] x) => (float[A,B,C,D] y) {{ {stem} {body} }}"
    held = {"wp": (4, 3, 1, 1), "wq": (3, 3, 1, 1), "wr": (5, 3, 1, 1), **weights}
    return Case(name, model_of(text, opset, **held), reads, nodes)


def integers(zero: int, wide: int, *inputs: int) -> NDArray[np.int8]:
    """A weight [4, wide, 1, 1] that is its zero point but for these inputs."""
    values = np.full((4, wide, 1, 1), zero, np.int8)
    values[:, list(inputs)] = np.arange(20, 20 + 4 * len(inputs), dtype=np.int8).reshape(4, -1, 1, 1)
    return values


STEP: dict[str, Any] = {"s": np.array(0.125, np.float32), "o": np.array(100, np.uint8)}
ALL = "c = Concat<axis=1>(p, q, r)"  # 0-3: p, 4-6: q, 7-11: r
STEM = "Conv Conv Conv"
ENDS = "ya = Conv(c, v) yb = Conv(c, u) y = Concat<axis=1>(ya, yb)"
CHANNELS: dict[str, Any] = {"at": np.array([1]), "to": np.array([6]), "of": np.array([1])}
SHUFFLE: dict[str, Any] = {"apart": np.array([2, 3, 4, 6, 6]), "whole": np.array([2, 12, 6, 6])}
AFFINE: dict[str, Any] = {k: np.linspace(0.5, 2, 12, dtype=np.float32) for k in ("gain", "shift", "mean", "var")}
SYMMETRIC = (
    "t0 = Slice(c, zero, one, two) t1 = Slice(t0, last, before, two, back) e0 = Slice(c, last, huge, two) "
    "e1 = Slice(e0, last, before, two, back) ch = Concat<axis=2>(t1, c, e1)"
)
_BOUNDS = {"zero": 0, "one": 1, "two": 2, "last": -1, "before": -(2**31), "back": -1, "huge": 2**31}
BOUNDS: dict[str, Any] = {name: np.array([bound]) for name, bound in _BOUNDS.items()}

CASES = [
    image("one operand of a Concat", f"{ALL} y = Conv(c, v)", {"v": (4, 3, 1, 1)}, "Conv Conv", v=only(12, 4, 5, 6)),
    image("two operands in part", f"{ALL} y = Conv(c, v)", {"v": (4, 3, 1, 1)}, f"{STEM} Concat Gather Gather",
          v=only(12, 1, 8, 9)),
    image("the only channel of a tensor, twice", "l = Conv(x, w) a = Sigmoid(l) b = Add(a, k) "
          "c = Concat<axis=1>(b, b, p) y = Conv(c, v)", {"v": (4, 2, 1, 1)},
          w=(1, 3, 1, 1), k=(1, 1, 1, 1), v=only(6, 0, 1)),
    image("readers that want different parts", f"{ALL} {ENDS}", {"v": (4, 4, 1, 1), "u": (4, 5, 1, 1)},
          "Conv Conv Conv Conv Concat", v=only(12, 0, 1, 2, 3), u=only(12, 7, 8, 9, 10, 11)),
    image("a reader that wants everything", f"{ALL} {ENDS}", {"v": (4, 4, 1, 1), "u": (4, 12, 1, 1)},
          f"{STEM} Concat Concat Conv Conv", v=only(12, 0, 1, 2, 3), u=(4, 12, 1, 1)),
    image("a chain of joints", "a = Concat<axis=1>(p, q) b = Relu(a) c = Concat<axis=1>(b, r) y = Conv(c, v)",
          {"v": (4, 8, 1, 1)}, "Conv Conv Relu Concat Conv", v=only(12, 4, 5, 6, 7, 8, 9, 10, 11)),
    image("joints of joints, which others read", "a = Concat<axis=1>(p, q) c = Concat<axis=1>(a, r) s = Conv(a, u) "
          "t = Conv(c, v) y = Concat<axis=1>(s, t)", {"u": (4, 3, 1, 1), "v": (4, 12, 1, 1)},
          f"{STEM} Concat Concat Conv Conv", u=only(7, 4, 5, 6), v=(4, 12, 1, 1)),
    image("padded by Pad", f"{ALL} d = Pad(c, pads) y = Conv(d, v)", {"v": (4, 3, 3, 3)}, "Conv Conv Pad",
          v=only(12, 4, 5, 6, kernel=3), pads=np.array([0, 0, 1, 1, 0, 0, 1, 1])),
    image("padded symmetrically by Slice and Concat", f"{ALL} {SYMMETRIC} y = Conv(ch, v)", {"v": (4, 5, 3, 3)},
          "Conv Conv Concat Slice Slice Slice Slice", v=only(12, 7, 8, 9, 10, 11, kernel=3), **BOUNDS),
    image("the same padding twice", f"{ALL} d = Pad(c, pads) e = Pad(c, pads) s = Conv(d, v) t = Conv(e, u) "
          "y = Add(s, t)", {"v": (4, 3, 3, 3), "u": (4, 3, 3, 3)}, "Add Conv Conv Conv Pad",
          v=only(12, 4, 5, 6, kernel=3), u=2 * only(12, 4, 5, 6, kernel=3), pads=np.array([0, 0, 1, 1, 0, 0, 1, 1])),
    image("the same operator with other attributes", f"{ALL} d = LeakyRelu<alpha=0.1>(c) e = LeakyRelu<alpha=0.7>(c) "
          "s = Conv(d, v) t = Conv(e, u) y = Add(s, t)", {"v": (4, 3, 1, 1), "u": (4, 3, 1, 1)},
          "Add Conv Conv Conv LeakyRelu LeakyRelu", v=only(12, 4, 5, 6), u=2 * only(12, 4, 5, 6)),
    image("normalised", f"{ALL} d = BatchNormalization(c, gain, shift, mean, var) y = Conv(d, v)",
          {"v": (4, 4, 1, 1), "gain": (4,)}, "Conv Conv BatchNormalization", v=only(12, 0, 1, 2, 3), **AFFINE),
    image("pooled and resized", f'{ALL} d = MaxPool<kernel_shape=[2,2]>(c) e = Resize<mode="nearest">(d, , scales) '
          "y = Conv(e, v)", {"v": (4, 4, 1, 1)}, "Conv Conv MaxPool Resize", v=only(12, 0, 1, 2, 3),
          scales=np.array([1, 1, 2, 2], np.float32)),
    image("resized to a size", f'{ALL} e = Resize<mode="nearest">(c, , , target) y = Conv(e, v)', {"v": (4, 4, 1, 1)},
          "Conv Conv Resize", v=only(12, 0, 1, 2, 3), target=np.array([2, 12, 9, 9])),
    image("a constant per channel", f"{ALL} d = Mul(c, k) y = Conv(d, v)", {"v": (4, 3, 1, 1), "k": (3, 1, 1)},
          "Conv Conv Mul", v=only(12, 4, 5, 6), k=(12, 1, 1)),
    image("an operand of one channel", f"{ALL} g = Conv(x, o) d = Mul(c, g) y = Conv(d, v)", {"v": (4, 3, 1, 1)},
          "Conv Conv Conv Mul", v=only(12, 4, 5, 6), o=(1, 3, 1, 1)),
    image("the sum of two joints", f"{ALL} b = Concat<axis=1>(p, r, q) d = Add(c, b) y = Conv(d, v)",
          {"v": (4, 4, 1, 1)}, "Add Conv Conv", v=only(12, 0, 1, 2, 3)),
    image("a residual sum", "h = Conv(p, a) s = Add(p, h) t = Relu(s) y = Conv(t, v)", {"v": (4, 2, 1, 1)},
          v=only(4, 1, 3), a=(4, 4, 1, 1)),
    image("depthwise", f"{ALL} d = Conv<group=12>(c, k, kb) y = Conv(d, v)",
          {"v": (4, 3, 1, 1), "k": (3, 1, 3, 3), "kb": (3,)}, "Conv Conv Conv", v=only(12, 4, 5, 6),
          k=(12, 1, 3, 3), kb=12),
    image("grouped, a whole group", f"{ALL} d = Conv<group=3>(c, k) y = Conv(d, v)",
          {"v": (4, 2, 1, 1), "k": (2, 4, 1, 1)}, "Conv Conv Conv", v=only(6, 0, 1), k=(6, 4, 1, 1)),
    image("grouped, part of a group", f"{ALL} d = Conv<group=3>(c, k) y = Conv(d, v)",
          {"v": (4, 1, 1, 1), "k": (6, 4, 1, 1)}, v=only(6, 1), k=(6, 4, 1, 1)),
    image("a grouped reader stays", f"{ALL} d = Conv<group=3>(c, k) y = Conv(d, v)", {"k": (6, 4, 1, 1)},
          v=(4, 6, 1, 1), k=only(4, 0, out=6)),
    image("split", f"{ALL} s, t = Split<axis=1>(c) y = Conv(t, v)", {"v": (4, 5, 1, 1)}, "Conv Conv",
          v=only(6, 1, 2, 3, 4, 5)),
    image("split over space", f"{ALL} s, t = Split<axis=2>(c) u = Add(s, t) y = Conv(u, v)", {"v": (4, 4, 1, 1)},
          "Add Conv Conv Split", v=only(12, 0, 1, 2, 3)),
    image("sliced", f"{ALL} d = Slice(c, at, to, of) y = Conv(d, v)", {"v": (4, 2, 1, 1)},
          f"{STEM} Concat Gather Gather", v=only(5, 2, 3), **CHANNELS),
    image("gathered", f"{ALL} d = Gather<axis=1>(c, order) y = Conv(d, v)", {"v": (4, 3, 1, 1)}, "Conv Conv Gather",
          v=only(4, 0, 2, 3), order=np.array([6, 0, 4, 5])),
    image("shuffled", f"{ALL} s = Reshape(c, apart) t = Transpose<perm=[0,2,1,3,4]>(s) d = Reshape(t, whole) "
          "y = Conv(d, v)", {"v": (4, 4, 1, 1)}, "Conv Conv", v=only(12, 0, 3, 6, 9), **SHUFFLE),
    image("depth to space", f"{ALL} d = DepthToSpace<blocksize=2>(c) y = Conv(d, v)", {"v": (4, 2, 1, 1)},
          v=only(3, 0, 2)),
    image("channels last", f"{ALL} d = Transpose<perm=[0,2,3,1]>(c) y = MatMul(d, v)", {"v": (4, 4)},
          "Conv MatMul Transpose", v=only(12, 0, 1, 2, 3, kernel=0, in_axis=0)),
    image("transposed convolution", f"{ALL} y = ConvTranspose<strides=[2,2]>(c, v)", {"v": (3, 4, 2, 2)},
          "Conv ConvTranspose", v=only(12, 4, 5, 6, kernel=2, in_axis=0)),
    image("integers", f"{ALL} h = QuantizeLinear(c, s, o) i = ConvInteger(h, v, o, n) y = Cast<to=1>(i)",
          {"v": (4, 3, 1, 1)}, v=integers(3, 12, 4, 5, 6), n=np.array(3, np.int8), **STEP),
    image("integers with a scale for every output", f"{ALL} h = QuantizeLinear(c, s, o) "
          "i = QLinearConv(h, s, o, v, each, n, s, o) y = DequantizeLinear(i, s, o)", {"v": (4, 4, 1, 1), "each": (4,)},
          v=integers(0, 12, 0, 1, 2, 3), each=np.array([0.25, 0.5, 1, 2], np.float32), n=np.zeros(4, np.int8), **STEP),
    image("averaged over space", f"{ALL} g = ReduceMean<axes=[2,3]>(c) y = Conv(g, v)", {"v": (4, 3, 1, 1)},
          "Conv Conv ReduceMean", v=only(12, 4, 5, 6)),
    image("a model output", f"{ALL} d = Relu(c) s = Conv(d, v) y = Concat<axis=1>(c, s)", {"v": (4, 3, 1, 1)},
          f"{STEM} Concat Conv Relu", v=only(12, 4, 5, 6)),
    image("nothing is read", f"{ALL} d = Conv(c, v, b) y = Add(d, p)", {"v": (4, 1, 1, 1)}, v=only(12), b=4),
    image("a weight behind a Transpose", f"{ALL} v = Transpose<perm=[1,0,2,3]>(vt) y = Conv(c, v)",
          {"vt": (3, 4, 1, 1)}, "Conv Conv Transpose", vt=only(12, 4, 5, 6, in_axis=0)),
    image("a weight in two places stays", f"{ALL} b = Concat<axis=1>(r, q, p) s = Conv(c, v) t = Conv(b, v) "
          "y = Add(s, t)", {"v": (4, 12, 1, 1)}, v=only(12, 4, 5, 6)),
    image("opset 9", "c = Concat<axis=1>(p, q, r) d = Slice<axes=[1], starts=[1], ends=[6]>(c) y = Conv(d, v)",
          {"v": (4, 2, 1, 1)}, opset=9, v=only(5, 2, 3)),
    Case("flattened: channels × positions", model_of(
        "(float[2,3,6,6] x) => (float[2,4] y) { p = Conv(x, wp) q = Conv(x, wq) c = Concat<axis=1>(p, q) "
        "f = Flatten(c) y = Gemm<transB=1>(f, v, b) }", wp=(4, 3, 3, 3), wq=(3, 3, 3, 3), b=4,
        v=only(7 * 16, *range(64, 112), kernel=0)), {"v": (4, 48)}, "Conv Flatten Gemm"),
    Case("reshaped: channels × positions", model_of(
        "(float[N,3,6,6] x) => (float[N,4] y) { p = Conv(x, wp) q = Conv(x, wq) c = Concat<axis=1>(p, q) "
        "f = Reshape(c, flat) y = Gemm<transB=1>(f, v, b) }", wp=(4, 3, 3, 3), wq=(3, 3, 3, 3), b=4,
        flat=np.array([-1, 7 * 16]), v=only(7 * 16, *range(64, 112), kernel=0)), {"v": (4, 48)}, "Conv Reshape Gemm"),
    Case("vectors", model_of(
        "(float[2,6] x) => (float[2,4] y) { p = Gemm(x, wp) q = MatMul(x, wq) c = Concat<axis=1>(p, q) d = Sigmoid(c) "
        "y = Gemm<alpha=0.5>(d, v) }", wp=(6, 4), wq=(6, 3), v=only(7, 4, 5, 6, kernel=0, in_axis=0)),
        {"v": (3, 4)}, "Gemm MatMul Sigmoid"),
    Case("tokens", model_of(
        "(float[2,5,6] x) => (float[2,5,4] y) { p = MatMul(x, wp) q = MatMul(x, wq) c = Concat<axis=-1>(p, q) "
        "d = Add(c, b) y = MatMul(d, v) }", wp=(6, 4), wq=(6, 3), b=7, v=only(7, 4, 5, 6, kernel=0, in_axis=0)),
        {"v": (3, 4), "b": (3,)}, "Add MatMul MatMul"),
    Case("initializers among the inputs", model_of(
        "(float[2,3,6,6] x, float[4,3,1,1] wp, float[3,3,1,1] wq, float[4,7,1,1] v) => (float[2,4,6,6] y) "
        "{ p = Conv(x, wp) q = Conv(x, wq) c = Concat<axis=1>(p, q) y = Conv(c, v) }", 8, 3,
        wp=(4, 3, 1, 1), wq=(3, 3, 1, 1), v=only(7, 1, 5, 6)), {"v": (4, 3, 1, 1)}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_layer_reads_only_what_it_uses(case: Case) -> None:
    onnx.checker.check_model(case.model, full_check=True)
    result = narrowed(case.model)
    onnx.checker.check_model(result, full_check=True)
    given = feeds(case.model)
    assert largest_error(outputs(case.model, given), outputs(result, given)) < 1e-5
    shapes = {name: held.shape for name, held in constants(result).items()}
    assert {name: shapes.get(name) for name in case.reads} == case.reads
    assert stored(result) <= stored(case.model)
    if case.nodes:
        assert operators(result) == sorted(case.nodes.split())


COLUMNS = [
    ("padded", "Conv<pads=[1,2,0,1]>", 17),
    ("strides and dilations", "Conv<strides=[2,1], dilations=[1,2], kernel_shape=[3,3]>", 17),
    ("padded to the same size", 'Conv<auto_pad="SAME_LOWER", strides=[2,2]>', 17),
    ("axes as attributes", "Conv<pads=[1,1,1,1]>", 11),
]


@pytest.mark.parametrize(("name", "conv", "opset"), COLUMNS, ids=[name for name, *_ in COLUMNS])
def test_convolution_to_a_single_channel_is_computed_in_columns(name: str, conv: str, opset: int) -> None:
    model = model_of(
        "(float[1,3,64,64] x) => (float[A,B,C,D] y) { p = Conv(x, wp) q = Conv(x, wq) c = Concat<axis=1>(p, q) "
        f"d = {conv}(c, v, b) e = Relu(d) y = Conv(e, o) }}", opset,
        wp=(4, 3, 1, 1), wq=(3, 3, 1, 1), v=only(7, 4, 5, 6, out=1, kernel=3), b=1, o=(32, 1, 1, 1))  # fmt: skip
    result = narrowed(model, "auto", Target(blocked=10000))  # elsewhere, columns with gaps may take longer than blocks
    onnx.checker.check_model(result, full_check=True)
    assert constants(result)["v"].shape == (1, 3, 1, 3, 3)
    assert constants(result)["o"].shape == (32, 1, 1, 1)
    assert largest_error(outputs(model, given := feeds(model)), outputs(result, given)) < 1e-5


def blocky(outputs: list[list[int]], inputs: list[list[int]], kernel: int = 3) -> Floats:
    """A weight of which each block of outputs reads its own inputs."""
    out, wide = (sum(map(len, side)) for side in (outputs, inputs))
    values = np.zeros((out, wide, kernel, kernel), np.float32)
    rng = np.random.default_rng(out)
    for o, i in zip(outputs, inputs, strict=True):
        values[np.ix_(o, i)] = rng.standard_normal((len(o), len(i), kernel, kernel)) / 9
    return values


HALVES = [list(range(16)), list(range(16, 32))]
EVENLY = [list(range(0, 32, 2)), list(range(1, 32, 2))]
UNEVEN = [list(range(48)), list(range(48, 64))]
BLOCKS = [
    ("halves", HALVES, HALVES, [("v", (32, 16, 3, 3))], "Conv Conv Relu"),
    ("halves, interleaved", EVENLY, EVENLY, [("v", (32, 16, 3, 3))], "Conv Conv Gather Gather Relu"),
    ("halves of which outputs are in order", HALVES, EVENLY, [("v", (32, 16, 3, 3))], "Conv Conv Gather Relu"),
    ("of different size", UNEVEN, UNEVEN, [], "Concat Conv Conv Conv Gather Gather Relu"),
]


@pytest.mark.parametrize(("outs", "ins", "left", "nodes"), [rest for _, *rest in BLOCKS], ids=[b[0] for b in BLOCKS])
def test_independent_blocks_become_smaller_convolutions(outs: list[list[int]], ins: list[list[int]], left: Any,
                                                        nodes: str) -> None:  # fmt: skip
    model = model_of(
        "(float[1,3,56,56] x) => (float[A,B,C,D] y) { p = Conv(x, w) d = Conv<pads=[1,1,1,1]>(p, v, b) y = Relu(d) }",
        w=(sum(map(len, ins)), 3, 1, 1), v=blocky(outs, ins), b=sum(map(len, outs)))  # fmt: skip
    result = narrowed(model, "auto")
    onnx.checker.check_model(result, full_check=True)
    assert operators(result) == nodes.split()
    assert {name: constants(result)[name].shape for name, _ in left} == dict(left)
    assert stored(result) < stored(model)
    assert largest_error(outputs(model, given := feeds(model)), outputs(result, given)) < 1e-5


@pytest.mark.parametrize("seed", range(40))
def test_blocks_are_the_components_of_the_slices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    block = np.asarray(rng.random(rng.integers(1, 9, 2)) < rng.choice([0.1, 0.2, 0.4]))
    found = blocks_of(block)
    assert is_connected(block) == (len(found) < 2)
    inside = np.zeros_like(block)
    for part in found:
        inside[np.ix_(part.outputs, part.inputs)] = True
        assert is_connected(block[np.ix_(part.outputs, part.inputs)])
    assert not np.any(block & ~inside)
    if found:
        assert sorted(np.concatenate([part.outputs for part in found])) == list(range(len(block)))
        assert sorted(np.concatenate([part.inputs for part in found])) == np.flatnonzero(block.any(axis=0)).tolist()


def test_independent_blocks_of_matrices() -> None:
    halves = np.zeros((64, 64), np.float32)
    halves[:32, :32] = halves[32:, 32:] = np.random.default_rng(0).standard_normal((32, 32))
    model = model_of(
        "(float[64,9] x) => (float[64,64] y) { p = Gemm(x, w) h = Gemm(p, v, b) y = MatMul(h, u) }",
        w=(9, 64), v=halves, b=64, u=halves)  # fmt: skip
    result = narrowed(model, "always")
    assert stored(result) < 0.6 * stored(model)
    assert largest_error(outputs(model, given := feeds(model)), outputs(result, given)) < 1e-5


def test_what_nobody_touches_keeps_its_name() -> None:
    model = CASES[0].model
    for node in model.graph.node:
        node.name, node.doc_string = f"n_{node.output[0]}", "mine"
    result = narrowed(model)
    assert {(node.name, node.doc_string, node.output[0]) for node in result.graph.node} == {
        ("n_q", "mine", "q"),
        ("n_y", "mine", "y"),
    }


def test_nothing_to_do_returns_the_model_itself() -> None:
    model = model_of("(float[1,3,6,6] x) => (float[1,4,6,6] y) { p = Conv(x, w) y = Conv(p, v) }",
                     w=(5, 3, 1, 1), v=(4, 5, 1, 1))  # fmt: skip
    assert narrowed(model) is model


# ---- the nets of the LEAN authors ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lean_nets() -> Path:
    """Mixed-scale dense nets of which LEAN's authors masked kernels; every layer reads all earlier ones."""
    folder = Path(os.environ.get("ONNXPRUNE_DATA") or Path(__file__).parents[2] / "shared" / "data") / "lean"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}; set ONNXPRUNE_DATA to the folder that holds it")
    return folder


def kernels(model: ModelProto) -> list[Floats]:
    """The 3 × 3 kernel slices of all convolutions."""
    held = constants(model)
    weights = [held[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]
    return [kernel for w in weights if w.shape[-2:] == (3, 3) for kernel in w.reshape(-1, 9).astype(np.float32)]


@pytest.mark.parametrize(("name", "left"), [("lean005", 64), ("sv005", 41), ("l1005", 50), ("lean005_zeros", 64)])
def test_masked_net_becomes_the_net_that_is_left(lean_nets: Path, name: str, left: int) -> None:
    path = lean_nets / f"msd_{name}_legacy.onnx"
    assert sum(bool(np.any(kernel)) for kernel in kernels(onnx.load(path))) == left
    result = onnxprune.prune(path, check=False)
    assert len(kernels(result.model)) == left
    assert result.after.kernels < 0.2 * result.before.kernels
    images = np.load(lean_nets / "cs_test.npz")["images"][:2].astype(np.float32).reshape(2, 1, 256, 256)
    for image in images:
        given = {result.model.graph.input[0].name: image[None]}
        assert largest_error(outputs(path, given), outputs(result.model, given)) < 1e-5


# ---- random graphs ---------------------------------------------------------------------------------------------------

EXAMPLES = int(os.environ.get("ONNXPRUNE_EXAMPLES", "0")) or 600


def with_zeros(model: ModelProto, rng: np.random.Generator) -> ModelProto:
    """A copy of which weights have all kernel slices of some inputs at zero, and some others."""
    channel_map = build_map(Graph(model))
    result = ModelProto()
    result.CopyFrom(model)
    held = {tensor.name: tensor for tensor in result.graph.initializer}
    for c in channel_map.contractions:
        name = channel_map.graph.nodes[c.node].input[c.weight]
        if name not in held or not rng.integers(3):
            continue
        values = np.array(numpy_helper.to_array(held[name]))
        columns = np.moveaxis(values, (c.in_axis, c.out_axis), (0, 1))
        columns[rng.random(len(columns)) < rng.choice([0.3, 0.7])] = 0
        columns[rng.random(columns.shape[:2]) < 0.2] = 0
        if rng.integers(2):  # two blocks of inputs and outputs
            one, other = (rng.random(size) < 0.5 for size in columns.shape[:2])
            columns[np.not_equal.outer(one, other)] = 0
        held[name].CopyFrom(numpy_helper.from_array(values, name))
    return result


def check_narrowed(model: ModelProto, seed: int, mode: Restructure) -> bool:
    """Whether a model, with zeros at random, was changed; the result is checked either way."""
    model = with_zeros(model, np.random.default_rng(seed))
    result = narrowed(model, mode)
    if result is model:
        return False
    onnx.checker.check_model(result, full_check=True)
    assert list(result.graph.output) == list(model.graph.output)
    assert stored(result) <= stored(model)
    assert_same_outputs(model, result, feeds(model, seed))
    return True


def test_random_models_compute_the_same() -> None:
    changed = sum(check_narrowed(random_model(seed), seed, "always") for seed in range(EXAMPLES))
    assert changed > EXAMPLES / 4


CHEAP = Target(start=0.01)  # so that something pays even on small images


def test_what_pays_is_never_modelled_to_take_longer() -> None:
    changed = 0
    for seed in range(150):
        model = with_zeros(random_model(seed), np.random.default_rng(seed))
        result = narrowed(model, "auto", CHEAP)
        assert modelled(result, CHEAP) <= modelled(model, CHEAP)
        changed += result is not model
    assert changed


@pytest.mark.parametrize(("used", "read"), [(33, 36), (18, 20), (20, 20), (7, 7)])
def test_wide_convolutions_read_a_multiple_of_4(used: int, read: int) -> None:
    """Others are not computed in blocks of channels."""
    model = model_of(
        "(float[1,3,64,64] x) => (float[A,B,C,D] y, float[E,F,G,H] z) "
        "{ p = Conv(x, wp) q = Conv(x, wq) r = Conv(x, wr) c = Concat<axis=1>(p, q, r) "
        "y = Conv<pads=[1,1,1,1]>(c, v) z = Conv(c, w) }",
        wp=(32, 3, 1, 1), wq=(32, 3, 1, 1), wr=(64, 3, 1, 1), v=only(128, *range(used), out=64, kernel=3),
        w=(8, 128, 1, 1))  # fmt: skip
    result = narrowed(model, "auto", Target(block=16, near=1e6, far=1e6))  # copies that cost next to nothing
    assert constants(result)["v"].shape == (64, read, 3, 3)
    assert largest_error(outputs(model, given := feeds(model)), outputs(result, given)) < 1e-5


def test_random_models_through_the_whole_pipeline() -> None:
    """``prune`` compares with the original and raises where they differ."""
    changed = 0
    for seed in range(100):
        model = with_zeros(random_model(seed), np.random.default_rng(seed))
        result = onnxprune.prune(model, restructure="always")
        assert result.verification is not None
        assert result.verification.ok
        assert result.after.kernels <= result.before.kernels
        assert result.after.weights == stored(result.model) or result.after.weights <= result.before.weights
        changed += bool(result.narrowed)
    assert changed > 10
