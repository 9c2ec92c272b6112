"""Narrowing: a contraction reads only the channels it has kernels for.

Where all kernel slices of an input channel are zero in *one* consumer, the channel itself may still be alive for others.
This consumer then gets the rest of its input alone: the operands of a Concat it uses, the part of a Split, the pads and
activations on the way for these channels only (``onnxprune.ops.parts``), or, where the channels lie in one tensor, a
copy of them. Its weight loses the same slices. What nobody reads any more goes.

    y = W · x,  W[:, i] = 0 for i outside of I     ⇒     y = W[:, I] · x[I]

Every consumer is narrowed at first; one by one, those are taken back that cost more than they save (see
``onnxprune.passes.latency``), because a part of a tensor may be shared, and a tensor may vanish only with its last reader.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxprune.channels import ChannelMap, Contraction
from onnxprune.graph import attribute, is_named
from onnxprune.measure import count_weights
from onnxprune.ops.parts import IntArray
from onnxprune.passes.blocks import in_blocks, is_connected
from onnxprune.passes.columns import in_columns
from onnxprune.passes.latency import Target
from onnxprune.passes.overlaid import written
from onnxprune.passes.overlay import Overlay, Part
from onnxprune.passes.settle import Choice, Settlement

__all__ = ["Narrowed", "Restructure", "can_narrow", "narrow"]

BoolArray = NDArray[np.bool_]
Restructure = Literal["auto", "always", "never"]

_DATA_AXIS = {
    **dict.fromkeys(("Conv", "ConvInteger", "ConvTranspose", "FusedConv", "QLinearConv"), 1),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), 2),
}


@dataclass(frozen=True)
class Narrowed:
    """``consumers``: output of a contraction → how many channels it reads now, for those that were narrowed.
    ``blocks``: output of a contraction → of how many smaller ones it consists now, for those that fell apart.
    ``changed``: whether the model is another one; some contractions may only be computed in another way."""

    model: ModelProto
    consumers: Mapping[str, int] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    changed: bool = False


def can_narrow(channel_map: ChannelMap, nonzero: Mapping[int, BoolArray], keep: BoolArray) -> bool:
    """Whether any contraction has an input that stays (``keep``: bool [groups]) and that it has no kernels for, or falls
    apart."""
    for c in channel_map.contractions:
        block, outputs = nonzero[c.node], keep[c.outputs]
        if c.groups > 1 or not np.any(outputs) or np.any(np.all(block, axis=1) & outputs):
            continue  # an output that reads all inputs joins them
        rest = block[outputs][:, keep[c.inputs]]
        if not np.all(np.any(rest, axis=0)) or not is_connected(rest):
            return True
    return False


def narrow(channel_map: ChannelMap, nonzero: Mapping[int, BoolArray], mode: Restructure = "auto",
           pinned: Collection[str] = (), target: Target | None = None) -> Narrowed:  # fmt: skip
    """The model with every contraction narrowed to the channels it uses, where that pays (``always``: wherever it can).

    ``nonzero``: node of a contraction → which kernel slices are not all zero, [out, in per group]. ``pinned``: names of
    nodes and tensors that are left alone. The model itself where there is nothing to do.
    """
    model = channel_map.graph.model
    overlay = Overlay(channel_map)
    free = [c for c in channel_map.contractions if not is_named(channel_map.graph.nodes[c.node], pinned)]
    target = Target() if target is None else target
    pays = mode == "auto"
    narrower = [_narrower(overlay, c, nonzero[c.node], target.block if pays else 0) for c in free]
    apart, groups, counts = in_blocks(overlay, free, nonzero)
    if not any(narrower) and not apart:
        return Narrowed(model)
    settled = Settlement(overlay, target, pinned)
    settled.settle([*(ways[0] for ways in narrower if ways), *_flatter(overlay)], take_back=pays)
    settled.settle(apart, take_back=pays)
    settled.settle(groups, take_back=True)
    columns = in_columns(settled, pinned)
    settled.settle(columns, take_back=True)
    if pays:
        settled.polish([*(choice for ways in narrower for choice in ways), *apart, *groups, *columns])
    changed = settled.replaced_outputs()
    result = written(settled) if changed else model
    if result is model or count_weights(result) > count_weights(model):
        return Narrowed(model)
    split = {choice.index for choice in (*apart, *groups) if settled.replaced[choice.index] is choice}
    return Narrowed(
        result,
        {name: settled.choice(index).reads for index, name in changed.items() if settled.choice(index).reads},
        {changed[index]: counts[index] for index in sorted(split)},
        changed=True,
    )


def _narrower(overlay: Overlay, c: Contraction, block: BoolArray, step: int) -> list[Choice]:
    """A contraction on the inputs it has kernels for (the first of them, if it has none at all).

    ``step``: channels of a block of the target's convolutions. They are not computed in blocks if they read a block or
    more, and no multiple of 4, and read their inputs without blocks if these are fewer: so those read a few more, and
    for these, a whole block is another way.
    """
    used = np.flatnonzero(np.any(block, axis=0))
    used = used if len(used) else np.arange(1)
    node = overlay.graph.nodes[c.node]
    if not step or node.op_type != "Conv" or len(overlay.shape.get(node.input[c.weight], ())) != 4:
        widths = [len(used)]
    else:
        widths = [len(used), step] if len(used) < step else [-(-len(used) // 4) * 4]
    ways = (_reading(overlay, c, _filled_up(used, width, len(c.inputs))) for width in widths)
    return [choice for choice in ways if choice]


def _reading(overlay: Overlay, c: Contraction, used: IntArray) -> Choice | None:
    """A contraction on some of its inputs; None where it cannot be, or they are all."""
    node = overlay.graph.nodes[c.node]
    data, weight = node.input[c.data], node.input[c.weight]
    if c.groups > 1 or len(used) == len(c.inputs) or data not in overlay.shape or data in overlay.graph.constants:
        return None
    axis = _data_axis(node, c, len(overlay.shape[data]))
    if axis is None or overlay.shape[data][axis] != len(c.inputs) or not overlay.map.shapes.is_fixed(data, axis):
        return None
    slices = Part(weight, c.in_axis, used)
    if not overlay.is_free(slices) or overlay.is_shared(weight):
        return None
    result = NodeProto()
    result.CopyFrom(node)
    result.input[c.data] = overlay.part(Part(data, axis, used))
    result.input[c.weight] = overlay.part(slices)
    return Choice(c.node, result, reads=len(used))


def _filled_up(used: IntArray, width: int, size: int) -> IntArray:
    """So many of the inputs, with those next to used ones."""
    others = np.setdiff1d(np.arange(size), used)
    far = np.min(np.abs(others[:, None] - used[None, :]), axis=1) if len(others) else others
    more = others[np.argsort(far, kind="stable")[: max(width - len(used), 0)]]
    return np.sort(np.concatenate([used, more]))


def _flatter(overlay: Overlay) -> list[Choice]:
    """Joints of joints as one, for those of which the inner ones have lost their other readers."""
    found = ((index, overlay.flattened(index)) for index in range(len(overlay.graph.nodes)))
    return [Choice(index, node) for index, node in found if node is not None]


def _data_axis(node: NodeProto, c: Contraction, rank: int) -> int | None:
    """The axis of the data that is summed over."""
    if attribute(node, "channels_last"):
        return rank - 1
    if node.op_type in _DATA_AXIS:
        return _DATA_AXIS[node.op_type]
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transA") else 1
    if node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        return rank - 1 if c.weight > c.data else rank - 2
    return None
