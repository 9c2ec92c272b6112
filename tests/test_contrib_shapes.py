"""Shapes of what operators of com.microsoft make, as ONNX Runtime makes them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from exactness import model_of

from onnxprune.graph import Graph
from onnxprune.shapes import infer_shapes
from onnxprune.shapes.contrib import contrib_shapes
from onnxprune.shapes.stand_ins import stand_in_shape

MHA = "com.microsoft.MultiHeadAttention<num_heads=2>"
BODIES = {
    "BiasGelu": "y = com.microsoft.BiasGelu(x, b)",
    "SkipLayerNormalization": "y, , , z = com.microsoft.SkipLayerNormalization(x, x, b)",
    "SkipSimplifiedLayerNormalization": "y, , , z = com.microsoft.SkipSimplifiedLayerNormalization(x, x, b)",
    "Attention": "y, z = com.microsoft.Attention<num_heads=2>(x, w, c)",
    "Attention of wider values": "y = com.microsoft.Attention<num_heads=2, qkv_hidden_sizes=[4,4,16]>(x, w, c)",
    "MultiHeadAttention": f"y, z, u = {MHA}(x, x, x)",
    "MultiHeadAttention with caches": f'y, z, u = {MHA}(x, x, x, "", "", "", k, k)',
    "MultiHeadAttention of keys apart": f"y = {MHA}(x, k, k)",
    "GroupQueryAttention": "y = com.microsoft.GroupQueryAttention<num_heads=1, kv_num_heads=1>(x, q, q, , , n, l)",
    "RotaryEmbedding": "y = com.microsoft.RotaryEmbedding(x, p, s, s)",
    "FusedMatMul": "y = com.microsoft.FusedMatMul<transB=1>(x, x)",
    "FusedMatMul of transposes": "y = com.microsoft.FusedMatMul<transA=1>(x, x)",
    "EmbedLayerNormalization": 'y, u, z = com.microsoft.EmbedLayerNormalization(i, "", w, w, "", c, c)',
}
HELD = {
    "b": 8,
    "w": (8, 24),
    "c": 24,
    "k": (2, 2, 3, 4),
    "q": (2, 5, 8),
    "s": (9, 2),
    "p": np.zeros((2, 5), np.int64),
    "n": np.full(2, 4, np.int32),
    "l": np.array(5, np.int32),
    "i": np.zeros((2, 5), np.int32),
}


@pytest.mark.parametrize("name", BODIES)
def test_shapes_are_those_of_the_runtime(name: str) -> None:
    body = BODIES[name]
    used = {k: v for k, v in HELD.items() if f" {k}" in body.replace("(", " ").replace(",", " ")}
    model = model_of(f"(float[2,5,8] x) => (float[A,B,C] y) {{ {body} }}", 17, **used)
    node = model.graph.node[0]
    del model.graph.output[1:]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in node.output[1:] if n)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    made = session.run(None, {"x": np.zeros((2, 5, 8), np.float32)})
    shapes = infer_shapes(Graph(model)).of
    inputs = [shapes.get(n) for n in node.input]
    found = dict(zip(node.output, contrib_shapes(node, inputs), strict=False))
    for output, array in zip((n for n in node.output if n), made, strict=True):
        assert found[output] == array.shape
        assert shapes[output] == array.shape


def test_what_does_not_follow_is_not_known() -> None:
    node = onnx.helper.make_node("MultiHeadAttention", ["a", "b", "c"], ["y"], domain="com.microsoft", num_heads=2)
    assert contrib_shapes(node, [(2, 5, 8), None, (2, 5, 8)]) == []
    assert contrib_shapes(onnx.helper.make_node("MultiHeadAttention", ["a"], ["y"]), [(2, 5, 8)]) == []


@pytest.mark.parametrize(
    "body",
    ['y = com.microsoft.FusedConv<activation="Relu", pads=[1,1,1,1], strides=[2,2]>(x, v)',
     'y = com.microsoft.FusedGemm<activation="Relu", transB=1>(x, v)'],
)  # fmt: skip
def test_shapes_of_fused_contractions_are_those_of_the_runtime(body: str) -> None:
    wide = "FusedConv" in body
    sizes, made = ("2,8,5,6", "A,B,C,D") if wide else ("2,8", "A,B")
    model = model_of(f"(float[{sizes}] x) => (float[{made}] y) {{ {body} }}", 17, v=(4, 8, 3, 3) if wide else (4, 8))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shape = tuple(int(size) for size in sizes.split(","))
    assert infer_shapes(Graph(model)).of["y"] == session.run(None, {"x": np.zeros(shape, np.float32)})[0].shape


def test_an_attribute_without_numbers_is_no_fault() -> None:
    node = onnx.helper.make_node("FusedConv", ["x", "w"], ["y"], domain="com.microsoft", kernel_shape=[1, 1])
    shapes = {"x": (2, 3, 8, 8), "w": (4, 3, 1, 1)}
    assert stand_in_shape(node, shapes) == (2, 4, 8, 8)
    del node.attribute[0].ints[:]
    assert stand_in_shape(node, shapes) in (None, (2, 4, 8, 8))
