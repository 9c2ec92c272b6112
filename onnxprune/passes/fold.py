"""Lossless clean-up: what provably does not matter leaves, and the constants it carried stay.

A group is *dead* when each of its channels, in every tensor, is zero, or read by nobody through a non-zero slice, or a
constant that all its readers can take over. A reader takes over a constant c of input channel i

- without padding, into its bias:            b[o] += c · Σₖ W[o, i, k]
- under zero padding, into one channel r:    W[:, r] ← Σᵢ cᵢ·W[:, i] / c_r   (exact at the borders, any spatial size)

where r is a constant channel of the same tensor that stays, so all constant channels of a tensor become one.

``fold`` applies these to the weights of the full-size model and zeroes the slices that read dead channels; the result
computes the same function, and its dead groups can then be rewritten away like any others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from onnxprune.channels import ChannelMap, Contraction
from onnxprune.graph import attribute, constant_of
from onnxprune.passes.constants import CONSTANT, MAP, ZERO, Carried, carried_constants, is_padded
from onnxprune.passes.flow import flow_by_tensor
from onnxprune.passes.norms import FloatArray, slices
from onnxprune.weights import weight_values

__all__ = ["Dead", "dead_groups", "fold", "nonzero_slices", "signal_blocks"]

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Dead:
    """``keep``: bool [groups], False where dead. ``carried``: what channels carry. ``into``: node of a padded
    convolution → the group whose channel takes over its constants."""

    keep: BoolArray
    carried: dict[str, Carried]
    into: dict[int, int] = field(default_factory=dict)


def nonzero_slices(channel_map: ChannelMap) -> dict[int, BoolArray]:
    """Node of a contraction → which kernel slices are not all zero, bool [out, in per group]."""
    found = {}
    for c in channel_map.contractions:
        w = slices(channel_map, c)
        flat = w.reshape(*w.shape[:2], -1)
        found[c.node] = flat[..., 0] != 0
        for k in range(1, flat.shape[2]):
            found[c.node] |= flat[..., k] != 0
    return found


def signal_blocks(nonzero: Mapping[int, BoolArray]) -> dict[int, FloatArray]:
    """Edge weights for reachability: 0 for a slice that carries a signal, −∞ for one that does not."""
    return {node: np.where(block, np.float32(0), np.float32(-np.inf)) for node, block in nonzero.items() if not block.all()}


def dead_groups(channel_map: ChannelMap, nonzero: Mapping[int, BoolArray], *, merge: bool = True) -> Dead:
    """The groups that can leave without changing any output.

    ``nonzero``: see ``nonzero_slices``. ``merge=False`` takes constants over into existing biases only, so that nodes and weights stay as they are.
    """
    carried = carried_constants(channel_map, nonzero)
    demand = flow_by_tensor(channel_map, signal_blocks(nonzero))
    needed = channel_map.frozen.copy()
    for name, (groups, backward) in demand.items():
        kind = _kinds(carried.get(name), groups)
        wanted = backward > -np.inf
        needed[groups[wanted & (kind >= MAP)]] = True
        held = groups[wanted & (kind == CONSTANT)]
        if not _absorbed(channel_map, name, merge):
            needed[held] = True
    _still_needed(channel_map, needed)
    into = _take_over(channel_map, nonzero, carried, needed)
    _still_needed(channel_map, needed)
    return Dead(needed, carried, into)


def _kinds(held: Carried | None, groups: NDArray[np.int32]) -> NDArray[np.int8]:
    """The most that a group's channels carry in this tensor."""
    if held is None:
        return np.full(len(groups), 3, np.int8)
    kind = np.full(int(max(held.ids.max(), groups.max())) + 1, ZERO, np.int8)
    np.maximum.at(kind, held.ids, held.kind)
    return kind[groups]


def _absorbed(channel_map: ChannelMap, name: str, merge: bool) -> bool:
    """Whether every reader of a tensor either passes its channels on or can take over a constant."""
    contractions = {c.node: c for c in channel_map.contractions}
    for index, k in channel_map.graph.consumers.get(name, []):
        node = channel_map.graph.nodes[index]
        c = contractions.get(index)
        if c is not None and k == c.data:
            if node.op_type not in ("Conv", "Gemm", "MatMul") or c.groups > 1 or not _editable(channel_map, c):
                return False
            if not merge and (node.op_type == "MatMul" or (node.op_type == "Conv" and is_padded(node))):
                return False
        elif not any(ids is not None for out in node.output for ids in channel_map.axes.get(out, ())):
            return False
    return True


def _editable(channel_map: ChannelMap, c: Contraction) -> bool:
    """Whether weight and bias are stored, floating point, of rank the fold knows."""
    graph, node = channel_map.graph, channel_map.graph.nodes[c.node]
    names = [node.input[c.weight], *([node.input[c.bias]] if c.bias is not None else [])]
    stored = all(n in graph.constants and np.issubdtype(graph.values(n).dtype, np.floating) for n in names)
    plain = node.op_type != "MatMul" or (c.weight == 1 and len(graph.constants[names[0]].dims) == 2) if stored else False
    return stored and plain and (c.bias is None or graph.values(names[1]).size == len(c.outputs))


def _still_needed(channel_map: ChannelMap, needed: BoolArray) -> None:
    """While an output is kept, a contraction keeps at least one input."""
    for outputs, inputs in reversed(channel_map.needs):
        if np.any(needed[outputs]) and not np.any(needed[inputs]):
            needed[inputs[0]] = True


def _take_over(channel_map: ChannelMap, nonzero: Mapping[int, BoolArray], carried: dict[str, Carried],
               needed: BoolArray) -> dict[int, int]:  # fmt: skip
    """For each padded convolution that reads constants about to leave, the group that takes them over and stays."""
    into: dict[int, int] = {}
    for c in channel_map.contractions:
        node = channel_map.graph.nodes[c.node]
        held = carried.get(node.input[c.data])
        if held is None or not (node.op_type == "Conv" and is_padded(node)) or not np.any(needed[c.outputs]):
            continue
        read = np.any(nonzero[c.node][needed[c.outputs]], axis=0) if c.groups == 1 else None
        if read is None or len(held.kind) != len(c.inputs):
            continue
        constant = held.kind == CONSTANT
        if not np.any(constant & read & ~needed[c.inputs]):
            continue
        staying = np.flatnonzero(constant & needed[c.inputs])
        choice = staying if len(staying) else np.flatnonzero(constant & read)
        best = int(choice[np.argmax(np.abs(held.value[choice]))])
        needed[c.inputs[best]] = True
        into[c.node] = best
    return into


def fold(channel_map: ChannelMap, dead: Dead) -> ModelProto:
    """The same function at full size, with every slice that reads a dead channel zero and its constant taken over."""
    result = ModelProto()
    result.CopyFrom(channel_map.graph.model)
    editor = _Weights(channel_map, result)
    for c in channel_map.contractions:
        gone = ~dead.keep[c.inputs]
        if c.groups == 1 and np.any(gone) and np.any(dead.keep[c.outputs]) and _editable(channel_map, c):
            _fold_into(channel_map, dead, c, gone, editor)
    editor.finish()
    return result


def _fold_into(channel_map: ChannelMap, dead: Dead, c: Contraction, gone: BoolArray, editor: _Weights) -> None:
    node = channel_map.graph.nodes[c.node]
    held = dead.carried.get(node.input[c.data])
    value = np.where(gone, held.value, 0.0) if held is not None and len(held.value) == len(gone) else np.zeros(len(gone))
    weight = np.array(weight_values(channel_map.graph, node.input[c.weight]))
    columns = np.moveaxis(weight, c.in_axis, -1)  # a view: […, in]
    taken = np.asarray((columns.astype(np.float64) * value).sum(axis=-1))  # the other axes of the weight
    if c.node in dead.into:
        keeper = dead.into[c.node]
        assert held is not None
        columns[..., keeper] += (taken / held.value[keeper]).astype(weight.dtype)
    elif np.any(value):
        per_output = np.moveaxis(taken, c.out_axis - (c.out_axis > c.in_axis), 0).reshape(len(c.outputs), -1).sum(axis=1)
        editor.add_bias(c, per_output)
    columns[..., gone] = 0
    editor.set(c.node, c.weight, weight)


class _Weights:
    """Changed constants of a model. Uses that a change does not concern keep the old one."""

    def __init__(self, channel_map: ChannelMap, model: ModelProto) -> None:
        self.map = channel_map
        self.model = model
        self.inserted: dict[int, onnx.NodeProto] = {}

    def set(self, index: int, k: int, value: NDArray[np.generic]) -> None:
        old = self.map.graph.nodes[index].input[k]
        name = f"{old}_folded_{index}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        node = self.model.graph.node[index]
        while len(node.input) <= k:
            node.input.append("")
        node.input[k] = name

    def add_bias(self, c: Contraction, extra: FloatArray) -> None:
        """Add numbers to the outputs of a contraction: into its bias, or by an Add behind a MatMul."""
        node = self.map.graph.nodes[c.node]
        dtype = weight_values(self.map.graph, node.input[c.weight]).dtype
        if node.op_type == "MatMul":
            self._add_behind(c.node, extra.astype(dtype))
            return
        alpha, beta = (attribute(node, n) if node.op_type == "Gemm" else None for n in ("alpha", "beta"))
        extra = extra * (alpha if isinstance(alpha, float) else 1.0) / (beta if isinstance(beta, float) else 1.0)
        old = weight_values(self.map.graph, node.input[c.bias]) if c.bias is not None else np.zeros(len(extra), dtype)
        self.set(c.node, 2, (old.astype(np.float64) + extra.reshape(old.shape)).astype(dtype))

    def _add_behind(self, index: int, extra: FloatArray) -> None:
        node = self.model.graph.node[index]
        output, inner, bias = node.output[0], f"{node.output[0]}_unbiased", f"{node.output[0]}_folded"
        node.output[0] = inner
        self.model.graph.initializer.append(numpy_helper.from_array(extra, bias))
        self.inserted[index] = onnx.helper.make_node("Add", [inner, bias], [output], f"{node.name or output}_bias")

    def finish(self) -> None:
        """Put inserted nodes in place, drop constants that nobody reads any more, give changed ones their old names."""
        _rename_single_copies(self.map, self.model)
        read = {name for node in self.model.graph.node for name in node.input} | set(self.map.graph.outputs)
        read |= self.map.graph.captured
        replaced = {n for n in self.map.graph.constants if n in self.map.graph.consumers and n not in read}
        nodes = [
            onnx.NodeProto.FromString(n.SerializeToString())
            for i, node in enumerate(self.model.graph.node)
            for n in (node, self.inserted.get(i))
            if n is not None and not (constant_of(n) is not None and n.output[0] in replaced)
        ]
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)


def _rename_single_copies(channel_map: ChannelMap, model: ModelProto) -> None:
    """A changed constant whose original nobody reads any more takes the original's name and place."""
    read = {name for node in model.graph.node for name in node.input} | channel_map.graph.captured
    read |= set(channel_map.graph.outputs)
    stored = {tensor.name: i for i, tensor in enumerate(channel_map.graph.model.graph.initializer)}
    for tensor in list(model.graph.initializer)[len(stored) :]:
        old = tensor.name.rpartition("_folded_")[0]
        if old in stored and old not in read and old in channel_map.graph.consumers:
            for node in model.graph.node:
                for k, name in enumerate(node.input):
                    if name == tensor.name:
                        node.input[k] = old
            copy = onnx.TensorProto.FromString(tensor.SerializeToString())
            copy.name = old
            model.graph.initializer[stored[old]].CopyFrom(copy)
            model.graph.initializer.remove(tensor)
            read.add(old)
