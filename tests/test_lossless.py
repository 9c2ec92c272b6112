"""Lossless mode: what is dead leaves, the constants it carried stay, and every output is what it was.

Most cases share a stem: ``a`` is an image of 8 channels of which three come from filters that are zero. After the ReLU
these are the constants 2 and 0.5 and a zero; ``end`` counts how many of the 8 its reader still has. Zeros always leave;
constants leave where all readers can take them over, and under zero padding into one of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exactness import assert_same_outputs, model_of
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto
from random_models import random_model
from witness import assert_zeroed_copy, constants, feeds, largest_error, outputs, stored_weights
from zeroed import runs, with_zeros

import onnxprune

Floats = NDArray[np.float32]


def numbers(name: str, *shape: int) -> Floats:
    """Random weights of a sensible size, the same for the same name."""
    rng = np.random.default_rng(sum(map(ord, name)))
    return np.asarray(rng.standard_normal(shape) / max(prod(shape[1:]), 1) ** 0.5, np.float32)


def zeroed(values: Floats, *places: Any) -> Floats:
    """A copy with zeros at these indices of the first axis (or at any index expression)."""
    copy = values.copy()
    for place in places:
        copy[place] = 0
    return copy


STEM = {
    "w": zeroed(numbers("w", 8, 3, 3, 3), 0, 1, 2),
    "b": np.array([2.0, -1.0, 0.5, 0.3, -0.2, 0.1, 0.0, -0.4], np.float32),
}
MAKE = "a = Conv(x, w, b) r = Relu(a)"
ALL = slice(None)


@dataclass(frozen=True)
class Case:
    """``end``: a constant → the shape it has in the result (by default: as it was)."""

    name: str
    model: ModelProto
    end: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def image(name: str, body: str, end: Mapping[str, tuple[int, ...]], opset: int = 17, **weights: Any) -> Case:
    """``body`` reads r, 8 channels of 6 × 6 (a before the ReLU), and writes y."""
    text = f"(float[2,3,8,8] x) => (float[A,B,C,D] y) {{ {MAKE} {body} }}"
    return Case(name, model_of(text, opset, **{**STEM, **weights}), end)


def vector(name: str, body: str, end: Mapping[str, tuple[int, ...]], opset: int = 17, **weights: Any) -> Case:
    """``body`` reads p, a vector of 8 channels, and writes y."""
    pool = "g = GlobalAveragePool(r) p = Flatten(g)"
    text = f"(float[2,3,8,8] x) => (float[A,B] y) {{ {MAKE} {pool} {body} }}"
    return Case(name, model_of(text, opset, **{**STEM, **weights}), end)


V1, V3 = numbers("v1", 4, 8, 1, 1), numbers("v3", 4, 8, 3, 3)
C = numbers("c", 4)
READ = "y = Conv(z, v)"  # takes constants over
FIVE, SIX, SEVEN, EIGHT = ({"v": (4, n, 1, 1)} for n in (5, 6, 7, 8))


def read(name: str, body: str, end: Mapping[str, tuple[int, ...]], opset: int = 17, **weights: Any) -> Case:
    """``body`` from r to z, which a 1 × 1 convolution reads."""
    return image(name, f"{body} {READ}", end, opset, **{"v": V1, **weights})


AFFINE: dict[str, Any] = {"gain": np.ones(8, np.float32), "shift": numbers("shift", 8)}
NORMED: dict[str, Any] = AFFINE | {"mean": numbers("mean", 8), "var": np.ones(8, np.float32)}
NO_GAIN: dict[str, Any] = NORMED | {"gain": np.array([1, 1, 1, 0, 1, 1, 1, 1], np.float32)}
EDGES: dict[str, Any] = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
TWICE: dict[str, Any] = {"scales": np.array([1, 1, 2, 2], np.float32)}


NORM = "BatchNormalization(r, gain, shift, mean, var)"
READERS = [
    image("1 × 1 with a bias", "y = Conv(r, v, c)", FIVE, v=V1, c=C),
    image("1 × 1 without a bias", "y = Conv(r, v)", FIVE, v=V1),
    image("3 × 3 without padding", "y = Conv(r, v, c)", {"v": (4, 5, 3, 3)}, v=V3, c=C),
    image("3 × 3 padded", "y = Conv<pads=[1,1,1,1]>(r, v, c)", {"v": (4, 6, 3, 3)}, v=V3, c=C),
    image("padded on one side", "y = Conv<pads=[0,0,2,0]>(r, v)", {"v": (4, 6, 3, 3)}, v=V3),
    image("padded, stride 2", "y = Conv<pads=[1,1,1,1], strides=[2,2]>(r, v, c)", {"v": (4, 6, 3, 3)}, v=V3, c=C),
    image("padded, dilated", "y = Conv<pads=[2,2,2,2], dilations=[2,2]>(r, v)", {"v": (4, 6, 3, 3)}, v=V3),
    image("padded to the same size", 'y = Conv<auto_pad="SAME_UPPER">(r, v)', {"v": (4, 6, 3, 3)}, v=V3),
    image("transposed", "y = ConvTranspose<strides=[2,2]>(r, v)", {"v": (7, 4, 3, 3)}, v=numbers("v", 8, 4, 3, 3)),
    image("depthwise", "d = Conv<group=8>(r, e) y = Conv(d, v)", SEVEN, e=numbers("e", 8, 1, 3, 3), v=V1),
    image("read twice", "s = Conv(r, v) t = Conv<pads=[1,1,1,1]>(r, u) y = Add(s, t)", SIX, v=V1, u=V3),
    image("no weight of its own", "s = Conv(r, v) t = Relu(s) u = Conv(r, v) y = Add(t, u)", SEVEN, v=V1),
    image("weight behind an Identity", "u = Identity(v) y = Conv(r, u)", SEVEN, v=V1),
    image("zero bias that others use", "k = Conv(x, o, c) s = Conv(r, v, c) y = Add(s, k)", FIVE,
          v=V1, c=np.zeros(4, np.float32), o=numbers("o", 4, 3, 3, 3)),
    image("bias that others use", "s = Conv(r, v, c) k = Conv(x, o, c) y = Add(s, k)", SEVEN,
          v=V1, c=C, o=numbers("o", 4, 3, 3, 3)),
    vector("Gemm", "y = Gemm(p, v, c)", {"v": (5, 4)}, v=numbers("v", 8, 4), c=C),
    vector("Gemm, scaled and transposed", "y = Gemm<alpha=0.5, beta=2.0, transB=1>(p, v, c)", {"v": (4, 5)},
           v=numbers("v", 4, 8), c=C),
    vector("Gemm without C", "y = Gemm<alpha=0.5>(p, v)", {"v": (5, 4)}, v=numbers("v", 8, 4)),
    vector("Gemm that ignores C", "y = Gemm<beta=0.0>(p, v, c)", {"v": (7, 4)}, v=numbers("v", 8, 4), c=C),
    vector("Gemm with a row as C", "y = Gemm(p, v, c)", {"v": (5, 4)}, v=numbers("v", 8, 4), c=C[None]),
    vector("Gemm with a column as C", "y = Gemm(p, v, c)", {"v": (7, 2)}, v=numbers("v", 8, 2), c=C[:2, None]),
    vector("Gemm with a number as C", "y = Gemm(p, v, c)", {"v": (7, 4)}, v=numbers("v", 8, 4), c=np.array(C[0])),
    vector("MatMul", "y = MatMul(p, v)", {"v": (5, 4)}, v=numbers("v", 8, 4)),
    vector("MatMul whose names are taken", "h_bias_folded = MatMul(p, v) h_unbiased_folded = Relu(h_bias_folded) "
           "h = MatMul(h_unbiased_folded, u) y = Neg(h)", {"v": (5, 4)}, v=numbers("v", 8, 4), u=numbers("u", 4, 4)),
    vector("MatMul without a name to take", "h = MatMul(p, v) h_bias_folded = Neg(h) y = Relu(h_bias_folded)",
           {"v": (5, 4)}, v=numbers("v", 8, 4)),
    Case("flattened with its space", model_of(
        f"(float[2,3,8,8] x) => (float[2,4] y) {{ {MAKE} f = Flatten(r) y = Gemm(f, v, c) }}",
        **STEM, v=numbers("v", 8 * 36, 4), c=C), {"v": (5 * 36, 4)}),
    Case("half precision", model_of(
        "(float16[2,3,8,8] x) => (float16[2,4,6,6] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, v, c) }",
        **{k: v.astype(np.float16) for k, v in {**STEM, "v": V1, "c": C}.items()}), FIVE),
    Case("weights in Constant nodes", model_of(
        f"(float[2,3,8,8] x) => (float[2,1,6,6] y) {{ {MAKE} v = Constant<value=float[1,8,1,1] {{1,2,3,4,5,6,7,8}}>() "
        "c = Constant<value=float[1] {0.5}>() y = Conv(r, v, c) }", **STEM), {"v": (1, 5, 1, 1)}),
    Case("initializers among the inputs", model_of(
        "(float[2,3,8,8] x, float[8,3,3,3] w, float[8] b, float[4,8,1,1] v) => (float[2,4,6,6] y) "
        f"{{ {MAKE} y = Conv(r, v) }}", 8, 3, **STEM, v=V1), FIVE),
]  # fmt: skip
CONSTANTS = [
    read("Sigmoid of zero", "z = Sigmoid(r)", FIVE),
    read("Softplus", "z = Softplus(r)", FIVE),
    read("Exp", "z = Exp(r)", FIVE),
    read("Cos", "z = Cos(r)", FIVE),
    read("HardSigmoid", "z = HardSigmoid(r)", FIVE),
    read("Clip above zero", "z = Clip(r, low, high)", FIVE, low=np.array(0.25, np.float32),
         high=np.array(1, np.float32)),
    read("LeakyRelu of a negative constant", "z = LeakyRelu(a)", FIVE),
    read("steps are not trusted", "z = Ceil(r)", SEVEN),
    read("normalised", f"z = {NORM}", FIVE, **NORMED),
    read("normalised by a gain of zero", f"z = {NORM}", {"v": (4, 4, 1, 1)}, **NO_GAIN),
    read("instance normalisation", "z = InstanceNormalization(r, gain, shift)", FIVE, **AFFINE),
    read("max pool, padded", "z = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(r)", FIVE),
    read("average pool, padded", "z = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(r)", FIVE),
    read("average pool that counts the padding",
         "z = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(r)", SEVEN),
    read("average pool that counts beyond the edge",
         "z = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1, count_include_pad=1>(r)", SEVEN),
    read("averaged by a ReduceMean", "z = ReduceMean<axes=[2,3]>(r)", FIVE),
    read("padded with zeros", "z = Pad(r, pads)", SEVEN, **EDGES),
    read("padded with itself", 'z = Pad<mode="edge">(r, pads)', FIVE, **EDGES),
    read("padded with ones", "z = Pad(r, pads, one)", EIGHT, one=np.array(1, np.float32), **EDGES),
    read("resized", 'z = Resize<mode="linear">(r, , scales)', FIVE, **TWICE),
    read("resized beyond the image",
         'z = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=3.0>'
         "(r, roi, scales)", EIGHT, roi=np.array([0, 0, -1, -1, 1, 1, 2, 2], np.float32), **TWICE),
    read("constant operands", "s = Mul(r, k) z = Add(s, l)", FIVE, k=numbers("k", 8, 1, 1), l=numbers("l", 1, 8, 1, 1)),
    read("an operand that varies in space", "z = Add(r, k)", EIGHT, k=numbers("k", 1, 8, 6, 6)),
    read("zero × live", "l = Conv(x, o) z = Mul(r, l)", SEVEN, o=numbers("o", 8, 3, 3, 3)),
    read("constant + live", "l = Conv(x, o) s = Add(r, l) z = Relu(s)", EIGHT, o=numbers("o", 8, 3, 3, 3)),
    read("constant + constant", "l = Conv(x, o, k) s = Add(r, l) z = Relu(s)", FIVE,
         o=zeroed(numbers("o", 8, 3, 3, 3), 0, 1, 2), k=numbers("k", 8)),
    read("constant + constant − itself", "z = Sub(r, r)", FIVE),
    read("squeeze and excite", "g = GlobalAveragePool(r) s = Sigmoid(g) z = Mul(r, s)", FIVE),
    read("concatenated", "z = Concat<axis=1>(r, r)", {"v": (4, 10, 1, 1)}, v=numbers("v", 4, 16, 1, 1)),
    read("split", "s, t = Split<axis=1>(r) z = Concat<axis=1>(t, s)", FIVE),
    read("sliced", "z = Slice(r, at, to, of)", {"v": (4, 4, 1, 1)},
         v=V1[:, :6], at=np.array([1]), to=np.array([7]), of=np.array([1])),
    read("shuffled", "s = Reshape(r, apart) t = Transpose<perm=[0,2,1,3,4]>(s) z = Reshape(t, whole)", FIVE,
         apart=np.array([2, 2, 4, 6, 6]), whole=np.array([2, 8, 6, 6])),
    read("through a convolution of constants", "z = Conv(r, u, k)", {"v": (4, 7, 1, 1), "u": (7, 5, 1, 1)},
         u=zeroed(numbers("u", 8, 8, 1, 1), (0, slice(3, 8))), k=numbers("k", 8)),
    read("a map after a padded convolution of constants", "z = Conv<pads=[1,1,1,1]>(r, u)",
         {"v": (4, 8, 1, 1), "u": (8, 6, 3, 3)}, u=zeroed(numbers("u", 8, 8, 3, 3), (0, slice(3, 8)))),
    read("channels nobody reads", "z = Relu(r)", {"v": (4, 3, 1, 1)}, v=zeroed(V1, (ALL, 4), (ALL, 7))),
    read("the size is read as well", "s = Shape(r) z = Reshape(r, s)", FIVE),
]  # fmt: skip
# What must not be taken for dead.
ALIVE = [
    read("coupled with what is alive elsewhere", "l = Conv(x, o) s = Add(r, l) z = Concat<axis=1>(r, l, s)",
         {"v": (4, 24, 1, 1)}, v=numbers("v", 4, 24, 1, 1), o=numbers("o", 8, 3, 3, 3)),
    read("only one half of a concatenation is zero",
         "l = Conv(x, o) s = Add(r, l) k = Concat<axis=1>(r, l) t = Conv(k, u) z = Concat<axis=1>(t, s)",
         {"v": (4, 16, 1, 1), "u": (8, 16, 1, 1)}, v=numbers("v", 4, 16, 1, 1), o=numbers("o", 8, 3, 3, 3),
         u=zeroed(numbers("u", 8, 16, 1, 1), (0, slice(0, 9)), (0, slice(10, 16)))),
    Case("read through a softmax over the channels", model_of(
        "(float[2,6] x) => (float[2,4] y) { h = MatMul(x, w) s = Softmax<axis=1>(h) y = MatMul(s, v) }",
        w=numbers("w", 6, 8), v=zeroed(numbers("v", 8, 4), 0, 1)), {"v": (8, 4)}),
    Case("read through a normalisation over the channels", model_of(
        "(float[2,6] x) => (float[2,4] y) { h = MatMul(x, w) r = Relu(h) u = MatMul(r, e) n = LayerNormalization(u, k) "
        "y = MatMul(n, v) }", w=numbers("w", 6, 8), e=np.eye(8, dtype=np.float32), k=numbers("k", 8),
        v=zeroed(numbers("v", 8, 4), 0, 1)), {"w": (6, 8), "e": (8, 8)}),
    Case("queries and keys", model_of(
        "(float[2,5,6] x) => (float[2,5,4] y) { q = MatMul(x, wq) k = MatMul(x, wk) t = Transpose<perm=[0,2,1]>(k) "
        "s = MatMul(q, t) a = Softmax<axis=-1>(s) m = MatMul(x, wm) o = MatMul(a, m) y = MatMul(o, v) }",
        **{name: numbers(name, 6, 8) for name in ("wq", "wk", "wm")}, v=zeroed(numbers("v", 8, 4), 0, 1)),
        {"wq": (6, 8), "wk": (6, 8), "wm": (6, 6), "v": (6, 4)}),
    Case("a gate over all channels", model_of(
        "(float[1,3,6,6] x) => (float[1,4,6,6] y) { h = Conv(x, w) k = Conv(x, u) r = Relu(k) g = Conv(r, o) "
        "s = Sigmoid(g) z = Mul(h, s) y = Conv(z, v) }", w=numbers("w", 8, 3, 1, 1), u=numbers("u", 8, 3, 1, 1),
        o=numbers("o", 1, 8, 1, 1), v=V1), {"u": (8, 3, 1, 1), "o": (1, 8, 1, 1)}),
    Case("units of a recurrent layer that only feed others", model_of(
        "(float[5,1,6] x) => (float[5,1,1,4] y) { h = LSTM<hidden_size=8>(x, w, r) y = MatMul(h, v) }",
        w=numbers("w", 1, 32, 6), r=numbers("r", 1, 32, 8), v=zeroed(numbers("v", 8, 4), 0, 1)), {"v": (8, 4)}),
    Case("another axis as long as the channels", model_of(
        "(float[1,3,10,10] x) => (float[1,4,8,8] y) { a = Conv(x, w, b) r = Relu(a) t = Transpose<perm=[0,2,3,1]>(r) "
        "n = BatchNormalization(t, gain, shift, mean, var) y = Conv(n, v) }", **STEM, **NORMED, v=V1), EIGHT),
    Case("rows picked by a table of indices", model_of(
        "(float[1,5,6] x) => (float[A,B,C,D] y) { h = Conv(x, u) r = Relu(h) k = Conv(r, w) q = MatMul(k, e) "
        "g = Gather<axis=1>(q, i) y = MatMul(g, v) }", u=numbers("u", 7, 5, 1), w=numbers("w", 8, 7, 1),
        e=numbers("e", 6, 4), v=numbers("v", 4, 3), i=np.array([[0, 1], [6, 7]])),
        {"u": (7, 5, 1), "w": (8, 7, 1), "e": (6, 4)}),
    Case("indices of a max pool", model_of(
        "(float[1,3,8,8] x) => (float[1,4,3,3] y) { a = Conv(x, w, b) r = Relu(a) "
        "p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) f = Cast<to=1>(i) k = Mul(f, k0) y = Conv(k, v) }",
        **STEM, k0=np.array(0.01, np.float32), v=V1), EIGHT),
    Case("the mask of a dropout", model_of(
        "(float[2,6] x) => (float[2,4] y) { h = MatMul(x, w) d, m = Dropout(h) f = Cast<to=1>(m) y = MatMul(f, v) }",
        w=zeroed(numbers("w", 6, 8), (ALL, 0)), v=numbers("v", 8, 4)), {"v": (8, 4)}),
    Case("a vector that a stored matrix multiplies", model_of(
        "(float[1,6] x) => (float[3] y) { h = MatMul(x, w) k = Add(h, b) r = Reshape(k, s) y = MatMul(m, r) }",
        w=zeroed(numbers("w", 6, 8), (ALL, 0)), b=numbers("b", 8), s=np.array([-1]), m=numbers("m", 3, 8)),
        {"w": (6, 8), "m": (3, 8)}),
    Case("computed from constants alone", model_of(
        "(float[5,4] x) => (float[5,4] y) { h = MatMul(t, w) r = Relu(h) k = MatMul(r, v) y = Add(x, k) }",
        t=numbers("t", 5, 6), w=numbers("w", 6, 8), v=numbers("v", 8, 4)), {"w": (6, 8), "v": (8, 4)}),
    Case("an output that is a constant", model_of(
        f"(float[2,3,8,8] x) => (float[2,8,6,6] r, float[2,8,6,6] a) {{ {MAKE} }}", **STEM), {"w": (8, 3, 3, 3)}),
    Case("a logit that nothing reaches", model_of(
        "(float[2,6] x) => (float[2,4] y) { h = Gemm(x, w) r = Relu(h) y = Gemm(r, v, c) }", w=numbers("w", 6, 8),
        v=zeroed(numbers("v", 8, 4), (ALL, 0)), c=C), {"v": (8, 4)}),
    Case("read by the body of an If", model_of(
        "(float[1,3,8,8] x, bool t) => (float[1,8,6,6] y) { a = Conv(x, w, b) r = Relu(a) y = If(t) <"
        "then_branch = g1 () => (float[1,8,6,6] u) { u = Identity(r) }, "
        "else_branch = g2 () => (float[1,8,6,6] u) { u = Neg(r) }> }", **STEM), {"w": (8, 3, 3, 3)}),
]  # fmt: skip
EXTREMES = [
    image("a cut that is all zero", "y = Conv<pads=[1,1,1,1]>(r, v, c)", {"v": (4, 1, 3, 3)},
          v=V3, c=C, w=np.zeros((8, 3, 3, 3), np.float32), b=-np.ones(8, np.float32)),
    image("a cut that is all constant", "y = Conv<pads=[1,1,1,1]>(r, v, c)", {"v": (4, 1, 3, 3)},
          v=V3, c=C, w=np.zeros((8, 3, 3, 3), np.float32), b=np.ones(8, np.float32)),
    image("the first of all constants is read by nobody", "k = Conv(r, u) y = Conv<pads=[1,1,1,1]>(k, v, c)",
          {"v": (4, 2, 3, 3)}, w=np.zeros((8, 3, 3, 3), np.float32), b=np.ones(8, np.float32),
          u=numbers("u", 8, 8, 1, 1), v=zeroed(V3, (ALL, 0)), c=C),
    image("constants whose only reader is not read", "k = Conv<pads=[1,1,1,1]>(r, u) l = Conv(x, o) s = Add(k, l) "
          "y = Conv(l, v)", {"v": (4, 8, 1, 1)}, u=numbers("u", 8, 8, 3, 3), v=V1, o=numbers("o", 8, 3, 3, 3)),
    image("a reader of nothing", "y = Conv<pads=[1,1,1,1]>(r, v, c)", {"v": (4, 1, 3, 3)}, v=np.zeros_like(V3), c=C),
    image("a branch that is zero", "s = Conv(r, v) t = Relu(s) u = Conv(t, k) o = Conv(x, l) y = Add(u, o)",
          {"v": (1, 1, 1, 1), "k": (4, 1, 1, 1)}, v=np.zeros((6, 8, 1, 1), np.float32), k=numbers("k", 4, 6, 1, 1),
          l=numbers("l", 4, 3, 3, 3)),
]  # fmt: skip
CASES = [*READERS, *CONSTANTS, *ALIVE, *EXTREMES]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def assert_same(model: ModelProto, candidate: ModelProto) -> None:
    onnx.checker.check_model(candidate, full_check=True)
    if model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16:
        assert largest_error(outputs(model, feeds(model)), outputs(candidate, feeds(model))) < 5e-3
    else:
        assert_same_outputs(model, candidate, feeds(model))


@each_case
def test_outputs_are_unchanged(case: Case) -> None:
    assert_same(case.model, onnxprune.prune(case.model, check=False).model)


@each_case
def test_what_is_dead_leaves_and_nothing_else(case: Case) -> None:
    held = constants(onnxprune.prune(case.model, check=False).model)
    assert {name: held[name].shape for name in case.end} == dict(case.end)


@each_case
def test_the_interface_is_unchanged(case: Case) -> None:
    pruned = onnxprune.prune(case.model, check=False).model
    weights = {*constants(case.model), *constants(pruned)}
    before, after = ([v for v in m.graph.input if v.name not in weights] for m in (case.model, pruned))
    assert after == before
    assert list(pruned.graph.output) == list(case.model.graph.output)


@each_case
def test_dead_channels_that_stay_for_alignment_do_no_harm(case: Case) -> None:
    """What was taken over must not be counted twice."""
    assert_same(case.model, onnxprune.prune(case.model, align="4", check=False).model)


@each_case
def test_its_plan_applied_again_gives_the_same_model(case: Case) -> None:
    first = onnxprune.prune(case.model, check=False)
    again = onnxprune.prune(case.model, plan=onnxprune.Plan.from_json(first.plan.to_json()), check=False)
    assert again.model == first.model


@each_case
def test_a_plan_that_keeps_everything_changes_no_output(case: Case) -> None:
    assert_same(case.model, onnxprune.prune(case.model, plan=onnxprune.Plan(), check=False).model)


@each_case
def test_with_a_sparsity_the_masked_reference_keeps_its_nodes_and_weights(case: Case) -> None:
    try:
        result = onnxprune.prune(case.model, sparsity=0.2, align="none", check=False)
    except onnxprune.UnreachableError:
        pytest.skip("20 % cannot leave")
    assert_zeroed_copy(case.model, result.masked)
    assert_same(result.masked, result.model)


def test_nothing_dead_nothing_changed(models: Path) -> None:
    model = onnx.load(models / "unet_circles.onnx")
    assert onnxprune.prune(model, check=False).model == model


def test_an_unused_input_stays(models: Path) -> None:
    model = image("unused", "y = Conv(r, v)", FIVE, v=V1).model
    model.graph.input.append(onnx.helper.make_tensor_value_info("spare", onnx.TensorProto.FLOAT, [3]))
    pruned = onnxprune.prune(model, check=False).model
    assert [value.name for value in pruned.graph.input] == ["x", "spare"]


# ---- the trained model with zeroed filters --------------------------------------------------------------------------


def belonging(model: ModelProto) -> int:
    """Weights of the zero filters of convolutions, and of the kernel slices that read these through a ReLU."""
    held = constants(model)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    total = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            w = held[node.input[1]]
            dead = np.array([not np.any(kernel) for kernel in w])
            total += int(dead.sum()) * w[0].size
            relus = [n for n in readers[node.output[0]] if n.op_type == "Relu"]
            convs = [n for relu in relus for n in readers[relu.output[0]] if n.op_type == "Conv"]
            total += sum(int(dead.sum()) * held[n.input[1]][:, 0].size for n in convs)
    return total


def test_the_zeroed_model_loses_95_percent_of_what_belongs_to_its_zero_filters(models: Path) -> None:
    model = onnx.load(models / "resnet_digits_zeroed.onnx")
    zero = json.loads((models / "resnet_digits_zeroed.json").read_text())["zero_filters"]
    pruned = onnxprune.prune(model, check=False).model
    assert belonging(model) > sum(layer["zero"] for layer in zero.values()) > 0
    assert stored_weights(model) - stored_weights(pruned) >= 0.95 * belonging(model)


def test_the_zeroed_model_computes_what_it_did(models: Path) -> None:
    model = onnx.load(models / "resnet_digits_zeroed.onnx")
    pruned = onnxprune.prune(model, check=False).model
    given = feeds(model)
    assert largest_error(outputs(model, given), outputs(pruned, given)) < 1e-5


# ---- random models --------------------------------------------------------------------------------------------------


def test_random_models_keep_their_outputs() -> None:
    changed = 0
    for seed in range(500):
        model = with_zeros(random_model(seed), seed)
        if runs(model, feeds(model)):
            pruned = onnxprune.prune(model, check=False).model
            assert_same_outputs(model, pruned, feeds(model))
            changed += stored_weights(pruned) < stored_weights(model)
    assert changed > 200  # or there was nothing to be wrong about


@st.composite
def padded_nets(draw: st.DrawFn) -> ModelProto:
    """A stack of convolutions with zero filters and any bias, and all that makes and moves constants between them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    weights: dict[str, Any] = {}
    lines: list[str] = []
    tensor, wide = "x", 3
    for layer in range(draw(st.integers(2, 4))):
        made = draw(st.sampled_from([4, 6]))
        kernel, pad, stride = draw(st.sampled_from([(1, 0, 1), (3, 1, 1), (3, 0, 1), (3, 1, 2), (3, 2, 1)]))
        w = rng.standard_normal((made, wide, kernel, kernel)) / np.sqrt(wide * kernel**2)
        w[rng.random(made) < draw(st.sampled_from([0.0, 0.5, 0.9]))] = 0
        weights |= {f"w{layer}": w, f"b{layer}": rng.choice([0.0, 0.5, -0.5, 2.0, 1e-6], made)}
        weights |= {f"{name}{layer}": rng.standard_normal(made) for name in ("h", "m")}
        weights |= {f"g{layer}": rng.choice([0.0, 1.0, -2.0], made), f"v{layer}": rng.random(made) + 0.1}
        bias = draw(st.sampled_from([f", b{layer}", f", b{layer}", ""]))
        shape = f"pads=[{pad},{pad},{pad},{pad}], strides=[{stride},{stride}]"
        step = draw(st.sampled_from(sorted(STEPS)))
        lines += [f"c{layer} = Conv<{shape}>({tensor}, w{layer}{bias})", STEPS[step].replace("#", str(layer))]
        tensor, wide = f"t{layer}", 2 * made if step == "concatenated" else made
    weights["w"] = rng.standard_normal((2, wide, 1, 1))
    text = f"(float[1,3,12,12] x) => (float[A,B,C,D] y) {{ {' '.join(lines)} y = Conv({tensor}, w) }}"
    read = {name: held.astype(np.float32) for name, held in weights.items() if re.search(rf"[ (]{name}[,)]", text)}
    return model_of(text, **read)


STEPS = {
    "activated": "t# = Relu(c#)",
    "squashed": "t# = Sigmoid(c#)",
    "normalised": "n# = BatchNormalization(c#, g#, h#, m#, v#) t# = Relu(n#)",
    "normalised by itself": "t# = InstanceNormalization<epsilon=0.1>(c#, g#, h#)",
    "added": "r# = Relu(c#) s# = Sigmoid(c#) t# = Add(r#, s#)",
    "concatenated": "r# = Relu(c#) s# = Tanh(c#) t# = Concat<axis=1>(s#, r#)",
    "gated": "r# = Relu(c#) p# = GlobalAveragePool(r#) s# = Sigmoid(p#) t# = Mul(r#, s#)",
    "pooled": "r# = Relu(c#) t# = MaxPool<kernel_shape=[2,2], pads=[1,1,0,0]>(r#)",
    "averaged": "t# = AveragePool<kernel_shape=[2,2], pads=[1,0,1,0], count_include_pad=1>(c#)",
    "per channel": "d# = Relu(c#) t# = Mul(d#, d#)",
}


@settings(max_examples=250, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(padded_nets())
def test_stacks_of_convolutions_keep_their_outputs(model: ModelProto) -> None:
    note(onnx.printer.to_text(model))
    assume(runs(model, feeds(model)))
    assert_same_outputs(model, onnxprune.prune(model, check=False).model, feeds(model))


@pytest.mark.parametrize(
    ("inputs", "shift"),
    [
        (", float[8] s", ""),
        (", bool c", "s = If(c) <then_branch = t () => (float[8] p) { p = Identity(b) },"
                     " else_branch = e () => (float[8] q) { q = Neg(b) }>"),
    ],
    ids=["fed", "made by branches"],
)  # fmt: skip
def test_a_shift_that_is_not_stored_is_no_constant(inputs: str, shift: str) -> None:
    model = model_of(
        f"(float[2,3,6,6] x{inputs}) => (float[2,4,4,4] y) "
        f"{{ {MAKE} {shift} z = InstanceNormalization<epsilon=0.1>(r, g, s) y = Conv(z, v) }}",
        **STEM, g=numbers("g", 8), v=numbers("v", 4, 8, 1, 1),
    )  # fmt: skip
    given = feeds(model)
    assert_same_outputs(model, onnxprune.prune(model).model, given)
