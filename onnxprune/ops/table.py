"""The table of operators: what each does to channels, and how a node changes with the channels that remain.

One row an operator: ``channels`` reads a node and says what the axes of its outputs carry; ``resize`` (where the node
spells out sizes or positions) corrects them. Adding an operator is one row here and one test. Operators are described
at https://onnx.ai/onnx/operators/; those of the domain com.microsoft in ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import NodeProto

from onnxprune.bodies import is_call, is_marker
from onnxprune.channels import (
    INNERMOST,
    OUTERMOST,
    Axes,
    ChannelMap,
    Ids,
    MapBuilder,
    NodeContext,
    Opaque,
    Shuffle,
    solve,
)
from onnxprune.editing import NodeEditor
from onnxprune.graph import Graph, node_name, subgraphs
from onnxprune.ops import attention as a
from onnxprune.ops import contraction as c
from onnxprune.ops import control
from onnxprune.ops import cutting as x
from onnxprune.ops import elementwise as e
from onnxprune.ops import fused as f
from onnxprune.ops import indexing as p
from onnxprune.ops import integer as i
from onnxprune.ops import layer_norm as n
from onnxprune.ops import movement as m
from onnxprune.ops import quantization as q
from onnxprune.ops import reduction as r
from onnxprune.ops import reshape as s
from onnxprune.ops import sampling as g
from onnxprune.ops.einsum import einsum
from onnxprune.ops.recurrent import dynamic_lstm, recurrent, resize_dynamic_lstm, resize_hidden
from onnxprune.ops.rotary import resize_rotary, rotary
from onnxprune.ops.shuffle import find_shuffles, shuffled
from onnxprune.shapes import Shapes, infer_shapes

__all__ = ["RULES", "Rule", "apply_rule", "build_map", "is_derived", "is_size"]


@dataclass(frozen=True)
class Rule:
    """``channels``: node → axes of its outputs. ``resize``: correct a node for the channels that remain."""

    channels: Callable[[NodeContext], list[Axes]]
    resize: Callable[[NodeEditor], None] | None = None


def _rows(names: str, channels: Callable[[NodeContext], list[Axes]],
          resize: Callable[[NodeEditor], None] | None = None) -> dict[str, Rule]:  # fmt: skip
    return dict.fromkeys(names.split(), Rule(channels, resize))


def _plain(ctx: NodeContext) -> list[Axes]:
    """A constant; the sizes of a tensor, which may change (see ``_keep_one``)."""
    ctx.heard.update(range(len(ctx.node.input)))
    return ctx.plain_outputs()


RULES: dict[str, Rule] = {
    # f(0) = 0
    **_rows("Abs Asinh Atan Cast CastLike Ceil Celu Elu Erf Floor Gelu HardSwish Identity LeakyRelu Mish Neg "
            "Relu Round Selu Shrink Sign Sin Sinh Softsign Swish Tan Tanh ThresholdedRelu "
            "com.microsoft.Gelu com.microsoft.QuickGelu", e.zero),
    **_rows("Dropout", e.dropout),
    # f(0) ≠ 0
    **_rows("BitwiseNot Cos Cosh Exp HardSigmoid IsInf IsNaN Not Sigmoid Softplus", e.zero_never),
    # f(0) finite, but not defined everywhere
    **_rows("Acos Asin Atanh Sqrt", e.zero_or_nothing),
    # f(0) = ±∞
    **_rows("Log Reciprocal", e.zero_to_infinity),
    # f(0) not defined
    **_rows("Acosh", e.zero_outside),
    **_rows("Clip", e.clip),
    # several operands, broadcast
    **_rows("Add Max Mean Min Sub Sum", e.add),
    **_rows("Mul", e.multiply),
    **_rows("PRelu", e.prelu),
    **_rows("Div Mod", e.divide),
    **_rows("Pow", e.power),
    **_rows("And Equal Greater GreaterOrEqual Less LessOrEqual Or Xor", e.compare),
    **_rows("Where", e.where),
    **_rows("BatchNormalization", e.batch_normalization),
    # contractions
    **_rows("Conv", c.conv, c.resize_groups),
    **_rows("ConvTranspose", c.conv_transpose, c.resize_groups),
    **_rows("Gemm", c.gemm),
    **_rows("MatMul", c.matmul),
    **_rows("com.microsoft.FusedConv", f.fused_conv, c.resize_groups),
    **_rows("com.microsoft.FusedMatMul", f.fused_matmul),
    **_rows("DeformConv", g.deform_conv, c.resize_groups),
    **_rows("com.microsoft.FusedGemm", f.fused_gemm),
    **_rows("com.microsoft.BiasGelu com.microsoft.FastGelu", f.bias_gelu),
    **_rows("Einsum", einsum),
    **_rows("GRU LSTM RNN", recurrent, resize_hidden),
    **_rows("com.microsoft.DynamicQuantizeLSTM", dynamic_lstm, resize_dynamic_lstm),
    # attention
    **_rows("Attention", a.attention, a.resize_attention),
    **_rows("com.microsoft.Attention", a.packed_attention, a.resize_packed_attention),
    **_rows("com.microsoft.QAttention", a.quantised_attention, a.resize_packed_attention),
    **_rows("com.microsoft.GroupQueryAttention", a.group_query_attention, a.resize_group_query_attention),
    **_rows("com.microsoft.MultiHeadAttention", a.multi_head_attention, a.resize_multi_head_attention),
    **_rows("RotaryEmbedding com.microsoft.RotaryEmbedding", rotary, resize_rotary),
    # movement
    **_rows("Concat", x.concat, x.resize_concat),
    **_rows("ConstantOfShape", s.constant_of_shape, s.resize_constant_of_shape),
    **_rows("DepthToSpace", m.depth_to_space),
    **_rows("Expand", s.expand, s.resize_expand),
    **_rows("Flatten", s.flatten),
    **_rows("Gather", x.gather, x.resize_gather),
    **_rows("Pad", x.pad, x.resize_pad),
    **_rows("Reshape", s.reshape, s.resize_reshape),
    **_rows("Slice", x.slice_, x.resize_slice),
    **_rows("SpaceToDepth", m.space_to_depth),
    **_rows("Split", x.split, x.resize_split),
    **_rows("Squeeze", s.squeeze, s.resize_squeeze),
    **_rows("Tile", m.tile),
    **_rows("Transpose", m.transpose),
    **_rows("Unsqueeze", s.unsqueeze),
    **_rows("Constant Shape", _plain),
    # per channel over space
    **_rows("AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool", r.pool),
    **_rows("MaxPool", r.max_pool),
    **_rows("Crop Upsample", r.resample),
    **_rows("Resize", r.resample, r.resize_resample),
    # at other places
    **_rows("CenterCropPad", g.crop_or_pad),
    **_rows("Col2Im", g.col2im),
    **_rows("GridSample", g.grid_sample),
    **_rows("MaxRoiPool RoiAlign", g.region_pool),
    **_rows("MaxUnpool", g.max_unpool),
    **_rows("GatherElements", p.gather_elements),
    **_rows("GatherND", p.gather_nd),
    **_rows("ScatterElements", p.scatter_elements),
    **_rows("ScatterND", p.scatter_nd),
    **_rows("ReverseSequence", p.reverse_sequence),
    **_rows("Trilu", p.trilu),
    **_rows("Bernoulli RandomNormalLike RandomUniformLike", p.frozen("random numbers follow each other")),
    **_rows("DFT STFT", p.frozen("a transform of a signal")),
    **_rows("EyeLike", p.frozen("its size is that of a matrix")),
    **_rows("OneHot", p.frozen("indices become channels")),
    # across an axis
    **_rows("CumSum", p.along_axis),
    **_rows("ReduceMin ReduceProd", r.reduce),
    **_rows("ReduceMax", r.max_reduce),
    **_rows("ReduceMean", r.mean_reduce, r.resize_mean),
    **_rows("ReduceLogSum ReduceLogSumExp", r.log_reduce),
    **_rows("ReduceL1 ReduceL2 ReduceSum ReduceSumSquare", r.sum_reduce),
    **_rows("Hardmax LogSoftmax Softmax", r.softmax),
    **_rows("ArgMax ArgMin", r.take_axis(0, keeps_axis=False)),
    **_rows("TopK", r.take_axis(-1, keeps_axis=True)),
    **_rows("LpNormalization", r.lp_normalization),
    **_rows("LRN", r.take_axis(1, keeps_axis=True)),
    # normalisations
    **_rows("LayerNormalization com.microsoft.SkipLayerNormalization", n.layer_normalization),
    **_rows("RMSNormalization SimplifiedLayerNormalization com.microsoft.SkipSimplifiedLayerNormalization",
            n.rms_normalization, n.resize_rms_normalization),
    **_rows("com.microsoft.EmbedLayerNormalization", n.embed_layer_normalization),
    **_rows("MeanVarianceNormalization", p.frozen("divides by the deviation of a channel, which may be 0")),
    **_rows("InstanceNormalization", r.instance_normalization),
    **_rows("GroupNormalization", r.group_normalization, r.resize_group_normalization),
    # quantisation
    **_rows("DequantizeLinear QuantizeLinear com.microsoft.DequantizeLinear com.microsoft.QuantizeLinear", q.linear),
    **_rows("DynamicQuantizeLinear", i.dynamic_linear),
    **_rows("QLinearConv com.microsoft.QLinearConv", i.linear_conv, c.resize_groups),
    **_rows("ConvInteger", i.integer_conv, c.resize_groups),
    **_rows("QLinearMatMul", i.linear_matmul),
    **_rows("MatMulInteger", i.integer_matmul),
    **_rows("com.microsoft.QGemm", i.linear_gemm),
    **_rows("com.microsoft.DynamicQuantizeMatMul", i.dynamic_matmul),
    **_rows("com.microsoft.MatMulIntegerToFloat", i.matmul_to_float),
    **_rows("com.microsoft.MatMulNBits", i.packed_matmul, i.resize_packed_matmul),
    **_rows("com.microsoft.QLinearAdd", q.linear_add),
    **_rows("com.microsoft.QLinearMul", q.linear_multiply),
    **_rows("com.microsoft.QLinearWhere", q.linear_where),
    **_rows("com.microsoft.QLinearLeakyRelu", q.linear_leaky_relu),
    **_rows("com.microsoft.QLinearSigmoid", q.linear_sigmoid),
    **_rows("com.microsoft.QLinearSoftmax", q.linear_softmax),
    **_rows("com.microsoft.QLinearAveragePool com.microsoft.QLinearGlobalAveragePool", q.linear_pool),
    **_rows("com.microsoft.QLinearConcat", q.linear_concat, q.resize_linear_concat),
    # bodies laid out flat
    **_rows("onnxprune.result.If", control.branches),
    **_rows("onnxprune.formal.Loop onnxprune.formal.Scan", control.into_loop),
    **_rows("onnxprune.result.Loop onnxprune.result.Scan", control.from_loop),
}

_STANDARD = ("", "ai.onnx")
_RETRIES = (1, INNERMOST, OUTERMOST)
"""What sites of which the choice turned out frozen prefer, one map after another: the next best; then, as sites may
hinder each other, all of them the innermost axis, or the outermost."""


def rule_of(op: str, domain: str) -> Rule | None:
    """The row of an operator, or None where it is not understood."""
    return RULES.get(op if domain in _STANDARD else f"{domain}.{op}")


def build_map(graph: Graph, *, keep: Iterable[str] = (), allow_renorm: bool = False,
              shapes: Shapes | None = None) -> ChannelMap:  # fmt: skip
    """The channel map of a model. ``keep``: names of nodes or tensors whose channels are all left alone."""
    shapes = infer_shapes(graph) if shapes is None else shapes
    pinned = frozenset(keep)
    preferences: dict[int, int] = {}
    best: ChannelMap | None = None
    for retry in (*_RETRIES, None):
        builder = MapBuilder(graph, shapes, allow_renorm, dict(preferences))
        _walk(builder, pinned)
        found = solve(builder)
        if best is None or _freedom(found) > _freedom(best):
            best = found
        stuck = _frozen_sites(builder, found)
        if not stuck or retry is None:
            break
        preferences.update(dict.fromkeys(stuck, retry))
    assert best is not None
    return best


def _freedom(channel_map: ChannelMap) -> tuple[float, int]:
    """What maps are compared by: how much may leave, then in how many steps."""
    return free_weight(channel_map), len(channel_map.free)


def free_weight(channel_map: ChannelMap) -> float:
    """How much may leave: over all uses of constants, elements times the share of them in free groups."""
    total = 0.0
    for axes in channel_map.uses.values():
        sizes = [len(ids) for ids in axes if ids is not None]
        frozen = [_stuck(channel_map, ids) for ids in axes if ids is not None]
        total += float(np.prod(sizes) - np.prod(frozen)) if len(sizes) > 1 else 0.0
    return total


def _stuck(channel_map: ChannelMap, ids: Ids) -> int:
    """How many indices of an axis cannot leave; all of them, if they could only leave together."""
    together = len(ids) > 1 and bool(ids.min() == ids.max())
    return len(ids) if together else int(np.count_nonzero(channel_map.frozen[ids]))


def _frozen_sites(builder: MapBuilder, channel_map: ChannelMap) -> list[int]:
    """Sites where the axis that was chosen cannot lose anything, or only everything."""
    group = channel_map.group_of
    return [
        site
        for site, chosen in builder.sites.items()
        if all(_stuck(channel_map, group[ids]) == len(ids) for ids in chosen)
    ]


def _walk(builder: MapBuilder, pinned: frozenset[str]) -> None:
    """Apply each node's rule in topological order, then freeze what must keep its shape."""
    graph = builder.graph
    shuffles = find_shuffles(graph, builder.shapes)
    inside = {index for shuffle in shuffles.values() for index in shuffle.inner}
    for index, node in enumerate(graph.nodes):
        if index in inside:
            continue
        context = NodeContext(builder, index)
        outputs = outputs_of(context, shuffles)
        kept = node_name(node) in pinned
        for name, axes in zip(node.output, outputs, strict=False):
            if kept or name in pinned:
                _freeze_axes(builder, axes, index, "left alone on request (--keep)")
            if name:
                builder.axes[name] = axes
        if kept:
            context.freeze_all("left alone on request (--keep)")
        if is_derived(context):
            builder.derived.update(name for name in node.output if name)
        if node.op_type == "Shape":
            _keep_one(context)
    _freeze_edges(builder, pinned)


def outputs_of(context: NodeContext, shuffles: Mapping[int, Shuffle]) -> list[Axes]:
    """The axes of a node's outputs. ``shuffles``: the last nodes of channel shuffles (see ``find_shuffles``)."""
    if context.index in shuffles:
        return shuffled(context, shuffles[context.index])
    return context.plain_outputs() if is_size(context.builder, context) else apply_rule(context)


def is_derived(context: NodeContext) -> bool:
    """Whether a node computes from stored constants alone."""
    held = [k for k in range(len(context.node.input)) if context.has(k)]
    if is_marker(context.node):
        return False  # what comes out of a body depends on a condition, or on the iteration
    if not held or not all(context.is_constant(k) for k in held) or any(True for _ in subgraphs(context.node)):
        return False
    return _is_in_proportion(context.builder, context.node)


_ALWAYS_SMALL = 1 << 24


def _is_in_proportion(builder: MapBuilder, node: NodeProto) -> bool:
    """Whether what a node computes from stored constants is not so large that somebody only wants it to be."""
    shapes = [builder.shapes.of.get(name) for name in node.output if name]
    largest = max((prod(shape) for shape in shapes if shape is not None), default=0)
    if largest <= _ALWAYS_SMALL:
        return True
    stored = max(prod(tensor.dims) for tensor in builder.graph.constants.values())
    return bool(largest <= 2 * stored)


def _keep_one(context: NodeContext) -> None:
    """Someone asks for the sizes of this tensor, so something of it has to be left."""
    for ids in context.builder.axes.get(context.node.input[0], ()):
        context.need(None, ids)


_SIZE_TYPES = (np.int64, np.int32, np.bool_)


def is_size(builder: MapBuilder, context: NodeContext) -> bool:
    """A small integer computed from shapes: it carries no channels. (Size has no way to go on telling the old one.)"""
    value = builder.shapes.values.get(next(iter(context.node.output), ""))
    return value is not None and value.dtype in _SIZE_TYPES and context.node.op_type != "Size"


_BREAKS_ITS_SCHEMA = (ArithmeticError, AssertionError, IndexError, KeyError, MemoryError, TypeError, ValueError)
"""What a rule ends in where a node is not what its operator says."""


def apply_rule(context: NodeContext) -> list[Axes]:
    """The axes of a node's outputs by its rule; plain, with all inputs frozen, where there is none that fits."""
    node = context.node
    rule = rule_of(node.op_type, node.domain)
    if rule is None and is_call(context.builder.graph.model, node):
        return context.freeze_all("a function that could not be inlined")
    if rule is None or any(True for _ in subgraphs(node)):
        return context.freeze_all(f"{node.op_type} is not understood")
    try:
        if any(name and name not in context.builder.shapes.of for name in node.output[:1]):
            fixed = "what goes in or out of its bodies has no fixed shape"
            raise Opaque(fixed if is_marker(node) else "the shape of its output is not known")
        outputs = _checked(context, rule.channels(context))
        context.freeze_unheard()
        return outputs
    except Opaque as refusal:
        return context.freeze_all(str(refusal))
    except _BREAKS_ITS_SCHEMA as error:
        return context.freeze_all(f"{node.op_type} is malformed ({type(error).__name__}: {error})")


def _checked(context: NodeContext, outputs: list[Axes]) -> list[Axes]:
    """The axes of the outputs, which must be as many and as long as their shapes say."""
    for name, axes in zip(context.node.output, outputs, strict=False):
        shape = context.builder.shapes.of.get(name)
        if shape is None:
            continue
        sizes = [size if ids is None else len(ids) for ids, size in zip(axes, shape, strict=False)]
        if len(axes) != len(shape) or sizes != list(shape):
            raise Opaque("its output is not as large as its channels say")
    return outputs


def _freeze_axes(builder: MapBuilder, axes: Axes, index: int, reason: str) -> None:
    for ids in axes:
        if ids is not None:
            builder.freeze(ids, index, reason)


def _freeze_edges(builder: MapBuilder, pinned: frozenset[str]) -> None:
    """What leaves the main graph keeps its shape: model outputs, and tensors that bodies capture."""
    graph = builder.graph
    for name in graph.outputs:
        _freeze_axes(builder, builder.axes.get(name, ()), graph.producer.get(name, -1), "a model output")
    for name in graph.captured:
        maker = graph.producer.get(name, -1)
        _freeze_axes(builder, builder.axes.get(name, ()), maker, "read by a body of If, Loop or Scan")
    shared = set(graph.outputs) | graph.captured | pinned
    for (index, k), axes in builder.uses.items():
        if graph.nodes[index].input[k] in shared:
            reason = "left alone on request (--keep)" if graph.nodes[index].input[k] in pinned else "read elsewhere too"
            _freeze_axes(builder, axes, index, reason)
