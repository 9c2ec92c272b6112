"""The table of consistency rules: operator → what has to agree among the sizes of its operands.

One row an operator; the functions say what they ask for. An operator that is not here asks for nothing. Operators are
described at https://onnx.ai/onnx/operators/; those of the domain com.microsoft in ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.consistency import attention as a
from onnxprune.consistency import contraction as c
from onnxprune.consistency import elementwise as e
from onnxprune.consistency import movement as m
from onnxprune.consistency import normalization as n
from onnxprune.consistency import quantization as q
from onnxprune.consistency.recurrent import dynamic_lstm, recurrent
from onnxprune.consistency.site import Site

__all__ = ["RULES", "rules_of"]

Rule = Callable[[Site], None]


def _rows(names: str, *rules: Rule) -> dict[str, tuple[Rule, ...]]:
    return dict.fromkeys(names.split(), rules)


RULES: dict[str, tuple[Rule, ...]] = {
    # operands that broadcast
    **_rows("Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow Sub Sum Where Xor",
            e.broadcast),
    **_rows("Expand", e.expand),
    **_rows("PRelu", e.prelu),
    **_rows("Clip", e.clip),
    **_rows("com.microsoft.BiasGelu com.microsoft.FastGelu", c.bias_of_last(1, 0)),
    # contractions
    **_rows("Conv com.microsoft.FusedConv", c.conv()),
    **_rows("DeformConv", c.conv(bias=3)),
    **_rows("ConvTranspose", c.conv_transpose),
    **_rows("Gemm com.microsoft.FusedGemm", c.gemm()),
    **_rows("MatMul", c.matmul()),
    **_rows("com.microsoft.FusedMatMul", c.fused_matmul),
    **_rows("Einsum", c.einsum),
    **_rows("GRU", recurrent(gates=3)),
    **_rows("LSTM", recurrent(gates=4, peepholes=3)),
    **_rows("RNN", recurrent(gates=1)),
    **_rows("com.microsoft.DynamicQuantizeLSTM", dynamic_lstm),
    # attention
    **_rows("Attention", a.attention),
    **_rows("com.microsoft.Attention", a.packed_attention),
    **_rows("com.microsoft.QAttention", a.packed_attention, q.per_filter(1, -1, 4, 7)),
    **_rows("com.microsoft.MultiHeadAttention", a.multi_head_attention),
    **_rows("com.microsoft.GroupQueryAttention", a.group_query_attention),
    **_rows("RotaryEmbedding com.microsoft.RotaryEmbedding", a.rotary),
    # movement
    **_rows("Concat", m.concat),
    **_rows("DepthToSpace", m.depth_to_space),
    **_rows("Gather", m.gather),
    **_rows("GatherElements", m.gather_elements),
    **_rows("MaxUnpool", m.unpool),
    **_rows("Pad", m.pad),
    **_rows("Reshape", m.reshape),
    **_rows("Resize", m.resize),
    **_rows("ReverseSequence", m.reverse_sequence),
    **_rows("ScatterElements", m.scatter_elements),
    **_rows("ScatterND", m.scatter_nd),
    **_rows("Slice", m.slice_),
    **_rows("SpaceToDepth", m.space_to_depth),
    **_rows("Split", m.split),
    **_rows("Squeeze", m.squeeze),
    **_rows("Tile", m.tile),
    **_rows("TopK", m.top_k),
    **_rows("Transpose", m.transpose),
    **_rows("Upsample", m.upsample),
    # along an axis
    **_rows("AveragePool LpPool MaxPool", m.pool),
    **_rows("ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
            "ReduceSumSquare", m.axes_exist),
    **_rows("ArgMax ArgMin", m.axis_exists(0)),
    **_rows("Hardmax LogSoftmax LpNormalization Softmax", m.axis_exists(-1)),
    # normalisations
    **_rows("BatchNormalization", n.batch_norm),
    **_rows("GroupNormalization", n.group_norm),
    **_rows("InstanceNormalization", n.instance_norm),
    **_rows("LayerNormalization RMSNormalization SimplifiedLayerNormalization", n.layer_norm),
    **_rows("com.microsoft.SkipLayerNormalization com.microsoft.SkipSimplifiedLayerNormalization", n.skip_layer_norm),
    **_rows("com.microsoft.EmbedLayerNormalization", n.embed_layer_norm),
    # quantisation: scales and zero points stand behind what they belong to
    **_rows("DequantizeLinear QuantizeLinear com.microsoft.DequantizeLinear com.microsoft.QuantizeLinear", q.linear),
    **_rows("ConvInteger", c.conv(bias=None), q.per_filter(1, 0, 3), q.single(2)),
    **_rows("QLinearConv com.microsoft.QLinearConv", c.conv(0, 3, 8), q.per_filter(3, 0, 4, 5), q.single(1, 2, 6, 7)),
    **_rows("MatMulInteger", c.matmul()),
    **_rows("QLinearMatMul", c.matmul(0, 3), q.single(6, 7)),
    **_rows("com.microsoft.QGemm", c.gemm(0, 3, 6), q.single(1, 2, 7, 8)),
    **_rows("com.microsoft.DynamicQuantizeMatMul", c.matmul(), q.per_filter(1, -1, 2, 3), c.bias_of_last(4, 1)),
    **_rows("com.microsoft.MatMulIntegerToFloat", c.matmul(), q.per_filter(1, -1, 3, 5), c.bias_of_last(6, 1)),
    **_rows("com.microsoft.MatMulNBits", q.packed_matmul),
    **_rows("com.microsoft.QLinearAdd com.microsoft.QLinearMul", e.broadcast_at(0, 3), q.single(1, 2, 4, 5, 6, 7)),
    **_rows("com.microsoft.QLinearWhere", e.broadcast_at(0, 1, 4), q.single(2, 3, 5, 6, 7, 8)),
    **_rows("com.microsoft.QLinearLeakyRelu com.microsoft.QLinearSigmoid com.microsoft.QLinearSoftmax "
            "com.microsoft.QLinearAveragePool com.microsoft.QLinearGlobalAveragePool", q.single(1, 2, 3, 4)),
    **_rows("com.microsoft.QLinearConcat", q.linear_concat),
}  # fmt: skip


def rules_of(op: str, domain: str) -> tuple[Rule, ...]:
    """The rules of an operator: none for one that is not in the table."""
    return RULES.get(op if domain in ("", "ai.onnx") else f"{domain}.{op}", ())
