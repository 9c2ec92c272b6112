"""Operators that sample, pick, put or accumulate at other places; and the spellings of old operator sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import Case, check, floats, image, ints, tokens
from exactness import Array

from onnxprune.graph import Graph
from onnxprune.ops import build_map

MS = "com.microsoft"


def boxes() -> Array:
    return floats(0, 0, 4, 4, 1, 1, 5, 5, 0, 2, 3, 5).reshape(3, 4)


def places(*shape: int, below: int = 6) -> Array:
    return np.random.default_rng(0).integers(0, below, shape)


SAMPLING = [
    image("GridSample", "z = GridSample(a, g)", 8, opset=16,
          g=np.linspace(-1, 1, 2 * 5 * 5 * 2, dtype=np.float32).reshape(2, 5, 5, 2)),
    image("GridSample at computed places", "s = Conv(x, k) t = Transpose<perm=[0,2,3,1]>(s) g = Tanh(t) "
          "z = GridSample(a, g)", 8, reason="sampled over", opset=16, k=(2, 3, 1, 1)),
    image("RoiAlign", "z = RoiAlign<output_height=2, output_width=2>(a, r, i)", 8, opset=16, r=boxes(),
          i=ints(0, 1, 1)),
    image("MaxRoiPool", "z = MaxRoiPool<pooled_shape=[2,2]>(a, r)", 8,
          r=np.hstack([floats(0, 1, 1).reshape(3, 1), boxes()])),
    image("DeformConv", "z = DeformConv<kernel_shape=[2,2], pads=[0,0,1,1]>(a, k, o, c)", 14, 6, opset=19,
          k=(6, 8, 2, 2), o=(2, 8, 6, 6), c=6),
    image("DeformConv with groups of offsets", "z = DeformConv<kernel_shape=[2,2], pads=[0,0,1,1], offset_group=2>"
          "(a, k, o, c, m)", 6, 6, "share offsets", opset=19, k=(6, 8, 2, 2), o=(2, 16, 6, 6), c=6, m=(2, 8, 6, 6)),
    image("MaxUnpool", "p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) "
          "z = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(p, i)", 0, reason="indices count through all channels"),
    image("Col2Im", "r = Reshape(a, s) z = Col2Im(r, i, k)", 4, 4, opset=18, s=ints(2, 8, 36), i=ints(6, 7),
          k=ints(1, 2)),
    image("CenterCropPad", "z = CenterCropPad<axes=[2,3]>(a, s)", 8, opset=18, s=ints(4, 8)),
    image("CenterCropPad of the channels", "z = CenterCropPad<axes=[1]>(a, s)", 0, 6,
          "cropped or padded along the channels", opset=18, s=ints(6)),
    image("CumSum", "z = CumSum<reverse=1>(a, d)", 8, d=np.array(2)),
    image("CumSum of the channels", "z = CumSum(a, d)", 0, reason="CumSum over the channels", d=np.array(-3)),
    tokens("ReverseSequence", "z = ReverseSequence<batch_axis=0, time_axis=1>(a, n)", 8, n=ints(3, 5)),
    image("Trilu", "z = Trilu<upper=0>(a)", 8),
    tokens("Trilu of the channels", "z = Trilu(a)", 0, reason="a triangle of a matrix"),
]  # fmt: skip

INDEXING = [
    image("GatherElements", "z = GatherElements<axis=2>(a, i)", 8, i=places(2, 8, 4, 6)),
    image("GatherElements of some channels", "z = GatherElements<axis=2>(a, i)", 8, 5, i=places(2, 5, 4, 6)),
    image("GatherElements along the channels", "z = GatherElements<axis=1>(a, i)", 0, 4, "picked one by one",
          i=places(2, 4, 6, 6, below=8)),
    image("ScatterElements", "z = ScatterElements<axis=3>(a, i, u)", 8, i=places(2, 8, 6, 1), u=(2, 8, 6, 1), opset=16),
    image("ScatterElements into some channels", "z = ScatterElements<axis=3>(a, i, u)", 8, i=places(2, 5, 6, 1),
          u=(2, 5, 6, 1), opset=16),
    tokens("GatherND", "z = GatherND(a, i)", 8, i=ints(0, 4, 1, 1, 1, 0, 0, 2).reshape(2, 2, 2)),
    tokens("GatherND of batches", "z = GatherND<batch_dims=1>(a, i)", 8, i=ints(0, 4, 1, 1).reshape(2, 2, 1)),
    tokens("ScatterND", "z = ScatterND(a, i, u)", 8, i=ints(0, 4, 1, 1).reshape(2, 2), u=(2, 8)),
    tokens("ScatterND of channels", "s = MatMul(x, k) z = ScatterND(s, i, a)", 8, i=ints(1, 0).reshape(2, 1), k=(6, 8)),
    tokens("ScatterND along the channels", "t = Transpose<perm=[2,0,1]>(a) s = ScatterND(t, i, u) "
           "z = Transpose<perm=[1,2,0]>(s)", 0, reason="picked one by one", i=ints(3, 5).reshape(2, 1), u=(2, 2, 5)),
]  # fmt: skip

FUSED = [
    tokens("FusedMatMul transposed weight", f"z = {MS}.FusedMatMul<transB=1, alpha=0.5>(a, k)", 14, 6, k=(6, 8)),
    tokens("FusedMatMul transposed data", f"t = Transpose<perm=[0,2,1]>(a) z = {MS}.FusedMatMul<transA=1>(t, k)", 14, 6,
           k=(8, 6)),
    tokens("FusedMatMul of two activations", f"h = {MS}.FusedMatMul<transB=1>(a, a) z = MatMul(h, a)", 8),
]  # fmt: skip

OLD = [
    image("Dropout", "z, m = Dropout<ratio=0.3>(a)", 8, opset=7),
    image("BatchNormalization", "z = BatchNormalization<momentum=0.9>(a, s, o, m, p)", 8, opset=7,
          s=8, o=8, m=8, p=floats(*range(1, 9))),
    image("Slice", "z = Slice<axes=[1,2], starts=[1,0], ends=[7,100]>(a)", 8, 6, opset=7),
    image("Squeeze", "u = Unsqueeze<axes=[0]>(a) z = Squeeze<axes=[0]>(u)", 8, opset=7),
    image("Pad", "z = Pad<pads=[0,1,0,0,0,1,0,0], value=0.5>(a)", 10, 10, opset=7),
    image("Split", "z, n = Split<axis=1, split=[5,3]>(a)", 8, 5, opset=7),
    tokens("TopK", "z, i = TopK<axis=1, k=5>(a)", 8, opset=7),
    image("ReduceSum", "z = ReduceSum<axes=[2]>(a)", 8, opset=7),
    image("Softmax", "z = Softmax<axis=2>(a)", 8, opset=7),
    image("Gemm with broadcast", "p = GlobalAveragePool(a) f = Flatten(p) g = Gemm(f, k, c) "
          "z = Unsqueeze<axes=[2,3]>(g)", 14, 6, opset=7, k=(8, 6), c=6),
]  # fmt: skip
FROZEN = {
    "Bernoulli": "z = Bernoulli(a)",
    "RandomNormalLike": "z = RandomNormalLike(a)",
    "RandomUniformLike": "z = RandomUniformLike(a)",
    "MeanVarianceNormalization": "z = MeanVarianceNormalization<axes=[2,3]>(a)",
    "DFT": "u = Unsqueeze(a, last) f = DFT<axis=2>(u) z = ReduceSum<keepdims=0>(f, last)",
    "STFT": "r = Reshape(a, s) f = STFT<onesided=1>(r, n, , n) z = Reshape(f, t)",
    "EyeLike": "p = Reshape(a, s) e = EyeLike(p) z = Reshape(e, t)",
    "OneHot": "i = ArgMax<axis=1, keepdims=0>(a) z = OneHot<axis=1>(i, d, v)",
}
"""Operators that no channel passes → from a to z."""
CASES = [*SAMPLING, *INDEXING, *FUSED, *OLD]


@pytest.mark.parametrize(("op", "body"), FROZEN.items(), ids=FROZEN.keys())
def test_frozen_for_a_reason_of_its_own(op: str, body: str) -> None:
    numbers: dict[str, Any] = {"last": ints(-1), "s": ints(2, 288), "t": ints(2, 8, 6, 6), "n": np.array(16)}
    case = image(op, body, 0, **numbers, d=np.array(8), v=floats(0, 1))
    channel_map = build_map(Graph(case.model))
    assert not len(channel_map.free)
    assert any(f.operator == op and "not understood" not in f.reason for f in channel_map.reasons.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sampling(case: Case) -> None:
    check(case)
