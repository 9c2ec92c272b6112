"""Lossless clean-up: what provably does not matter leaves, and the constants it carried stay.

A group is *dead* when each of its channels, in every tensor, is zero, or read by nobody through a non-zero slice, or a
constant that all its readers can take over. A reader takes over a constant c of input channel i

- without padding, into its bias:            b[o] += c · Σₖ W[o, i, k]
- under zero padding, into one channel r:    W[:, r] ← Σᵢ cᵢ·W[:, i] / c_r   (exact at the borders, any spatial size)

where r is a constant channel of the same tensor that stays, so all constant channels of a tensor become one. It is one
of the larger constants: a small one may be what rounding left of a zero.

``fold`` applies these to the full-size model and zeroes the slices that read constants taken over; the result computes
the same function, whatever leaves afterwards. Weights that are read in several places stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from onnxprune.channels import ChannelMap, Contraction, Ids
from onnxprune.graph import Edge, attribute, constant_of
from onnxprune.messages import set_constant, with_numbers
from onnxprune.passes.constants import (
    CONSTANT,
    LIVE,
    MAP,
    ZERO,
    Carried,
    along,
    carried_constants,
    is_padded,
    reads_zero,
)
from onnxprune.passes.flow import flow_by_tensor, keeps_apart
from onnxprune.passes.in_parts import in_parts
from onnxprune.passes.norms import FloatArray, slices
from onnxprune.quantised import quantised
from onnxprune.weights import weight_values

__all__ = ["Dead", "dead_groups", "fold", "nonzero_slices", "same_channels", "signal_blocks"]

BoolArray = NDArray[np.bool_]


_CLOSE = 1e-3  # a constant may stand for one that is at most 1000 times as large


@dataclass(frozen=True)
class Dead:
    """``keep``: bool [groups], False where dead. ``carried``: what channels carry. ``into``: node of a padded
    convolution → the input channel that takes over its constants. ``read``: node of a contraction → which of its
    outputs matter, bool [out]. ``merge``: see ``dead_groups``."""

    keep: BoolArray
    carried: dict[str, Carried]
    into: dict[int, int] = field(default_factory=dict)
    read: dict[int, BoolArray] = field(default_factory=dict)
    merge: bool = True

    def taken(self, channel_map: ChannelMap, c: Contraction) -> FloatArray:
        """The constants a contraction takes over, float64 [in]; 0 for channels that stay."""
        kind, value = along(self.carried.get(channel_map.graph.nodes[c.node].input[c.data]), c.inputs)
        return np.where(self.keep[c.inputs] | (kind > CONSTANT), 0.0, value)


def nonzero_slices(channel_map: ChannelMap) -> dict[int, BoolArray]:
    """Node of a contraction → which kernel slices are not all zero, bool [out, in per group], read-only.

    Where none is zero, as in most layers, the array is a single number in memory.
    """
    return {c.node: _nonzero(slices(channel_map, c)) for c in channel_map.contractions}


def _nonzero(w: FloatArray) -> BoolArray:
    flat = w.reshape(*w.shape[:2], -1)
    found = np.zeros(w.shape[:2], np.bool_)

    def look(rows: slice) -> None:
        part = flat[rows]
        found[rows] = part[..., 0] != 0 if flat.shape[2] else False
        if flat.shape[2] > 1 and not found[rows].all():
            unsure = ~found[rows]
            found[rows][unsure] = np.any(part[unsure] != 0, axis=1)

    in_parts(look, len(flat), math.prod(flat.shape[1:]))
    return np.broadcast_to(np.True_, w.shape[:2]) if found.all() else found


def signal_blocks(nonzero: Mapping[int, BoolArray]) -> dict[int, BoolArray]:
    """The edges that carry a signal, as ``flow`` wants them: contractions of which all do are left out."""
    return {node: block for node, block in nonzero.items() if not block.all()}


def dead_groups(channel_map: ChannelMap, nonzero: Mapping[int, BoolArray], *, merge: bool = True,
                absorb: bool = True) -> Dead:  # fmt: skip
    """The groups that can leave without changing any output.

    ``nonzero``: see ``nonzero_slices``. ``merge=False`` takes constants over into biases only, so that nodes and
    weights stay as they are; under zero padding that is right inside and wrong at the border, which is good enough
    where channels are pruned anyway. ``absorb=False`` takes over none: only what is zero or not read is dead.
    """
    carried = carried_constants(channel_map, nonzero)
    demand = flow_by_tensor(channel_map, signal_blocks(nonzero), _unheard(channel_map, carried))
    needed = channel_map.frozen.copy()
    contractions = {c.node: c for c in channel_map.contractions}
    for c in channel_map.contractions:
        if channel_map.graph.nodes[c.node].input[c.data] not in demand:
            needed[c.inputs] = True  # reads a stored constant
    needed |= _inside(channel_map)
    needed |= _off_zero(channel_map, nonzero, carried)
    for name, (groups, backward) in demand.items():
        kind = _kinds(carried.get(name), groups)
        wanted = backward > -np.inf
        needed[groups[wanted & (kind >= MAP)]] = True
        held = groups[wanted & (kind == CONSTANT)]
        if not absorb:
            needed[held] = True
        elif len(held):
            needed[held[~_absorbed(channel_map, contractions, name, carried[name], held, merge)]] = True
    _still_needed(channel_map, needed)
    into = _take_over(channel_map, nonzero, carried, demand, needed) if merge else {}
    _still_needed(channel_map, needed)
    return Dead(needed, carried, into, _read(channel_map, demand), merge)


def _off_zero(channel_map: ChannelMap, nonzero: Mapping[int, BoolArray], carried: Mapping[str, Carried]) -> BoolArray:
    """Groups (bool [groups]) whose constant, 0 too, a quantised contraction does not read as its zero point."""
    found = np.zeros(channel_map.groups, np.bool_)
    for c in channel_map.contractions:
        node = channel_map.graph.nodes[c.node]
        held = carried.get(node.input[c.data])
        if held is not None and quantised(node, c.data) is not None:
            used = np.any(nonzero[c.node].reshape(c.groups, -1, nonzero[c.node].shape[1]), axis=1).ravel()
            constant = along(held, c.inputs)[0] <= CONSTANT
            found[c.inputs[used & constant & ~reads_zero(channel_map, c, held)]] = True
    return found


def _inside(channel_map: ChannelMap) -> BoolArray:
    """Groups (bool [groups]) along a stored constant that neither what its node makes nor what else it reads has.

    The node sums over them (an Einsum of constants), so no activation tells whether they matter.
    """
    found, outside = np.zeros(channel_map.groups, np.bool_), np.zeros(channel_map.groups, np.bool_)
    for (index, _), axes in channel_map.uses.items():
        node = channel_map.graph.nodes[index]
        seen = [ids for name in (*node.input, *node.output) for ids in channel_map.axes.get(name, ()) if ids is not None]
        for ids in seen:
            outside[ids] = True
        for held in axes:
            if held is not None:
                found[held] |= ~outside[held]
        for ids in seen:
            outside[ids] = False
    return found


def _unheard(channel_map: ChannelMap, carried: Mapping[str, Carried]) -> dict[Edge, Ids]:
    """Operand of a product → groups that it multiplies with zero and that are not zero themselves."""
    found = {}
    for index, node in enumerate(channel_map.graph.nodes):
        labelled = [ids for ids in channel_map.axes.get(node.output[0], ()) if ids is not None] if node.output else []
        if node.op_type != "Mul" or len(labelled) != 1:
            continue
        zero = [_zero_groups(carried.get(name)) for name in node.input]
        for k in (0, 1):
            unheard = np.setdiff1d(zero[1 - k], zero[k])
            if len(unheard):
                found[index, k] = unheard
    return found


def _zero_groups(held: Carried | None) -> Ids:
    """Groups that are zero wherever they are in a tensor."""
    if held is None:
        return np.zeros(0, np.int32)
    groups = np.unique(held.ids)
    return np.asarray(groups[_kinds(held, groups) == ZERO])


def _kinds(held: Carried | None, groups: Ids) -> NDArray[np.int8]:
    """The most that a group's channels carry in this tensor; ``groups`` are sorted."""
    if held is None:
        return np.full(len(groups), LIVE, np.int8)
    kind = np.full(len(groups), ZERO, np.int8)
    asked = np.isin(held.ids, groups)
    np.maximum.at(kind, np.searchsorted(groups, held.ids[asked]), held.kind[asked])
    return kind


def _read(channel_map: ChannelMap, demand: Mapping[str, tuple[Ids, FloatArray]]) -> dict[int, BoolArray]:
    """Node of a contraction → which of its outputs an output of the model depends on, bool [out]."""
    found = {}
    wanted = np.zeros(channel_map.groups, np.bool_)
    for c in channel_map.contractions:
        for name in channel_map.graph.nodes[c.node].output:  # a recurrent layer has several
            groups, backward = demand.get(name, (np.zeros(0, np.int32), np.zeros(0)))
            wanted[groups[backward > -np.inf]] = True
        found[c.node] = wanted[c.outputs]
        wanted[:] = False
    return found


def _absorbed(channel_map: ChannelMap, contractions: Mapping[int, Contraction], name: str, held: Carried,
              groups: Ids, merge: bool) -> BoolArray:  # fmt: skip
    """Which groups (bool, as ``groups``) of a tensor are passed on or taken over as constants by all its readers."""
    result = np.ones(len(groups), np.bool_)
    for index, k in channel_map.graph.consumers.get(name, []):
        node = channel_map.graph.nodes[index]
        c = contractions.get(index)
        if node.op_type == "Shape":
            continue  # goes on telling the old size
        if c is not None and k == c.data:
            read = c.inputs[along(held, c.inputs)[0] == CONSTANT]
            read_as_zero = c.inputs[reads_zero(channel_map, c, held)]
            takes_over = _takes_over(channel_map, c, merge) and np.all(np.isin(groups, read))
            result &= takes_over | np.isin(groups, read_as_zero)
        elif not keeps_apart(channel_map, index, k):
            return np.zeros(len(groups), np.bool_)
        elif node.op_type not in ("Slice", "Split", "Gather") or k > 0:
            result &= np.isin(groups, _passed_on(channel_map, index))
    return result


def _passed_on(channel_map: ChannelMap, index: int) -> Ids:
    """The groups of what a node makes; for a node inside a channel shuffle, of what the shuffle makes."""
    nodes = channel_map.graph.nodes
    made = [*nodes[index].output]
    made += [nodes[last].output[0] for last, shuffle in channel_map.shuffles.items() if index in shuffle.inner]
    labelled = [ids for name in made for ids in channel_map.axes.get(name, ()) if ids is not None]
    return np.concatenate(labelled) if labelled else np.zeros(0, np.int32)


def _takes_over(channel_map: ChannelMap, c: Contraction, merge: bool) -> bool:
    """Whether a contraction can take over constants: its numbers are stored, and read here alone."""
    node = channel_map.graph.nodes[c.node]
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx") or c.groups > 1:
        return False
    if not _is_own(channel_map, node.input[c.weight]):
        return False
    if node.op_type == "MatMul":  # by an Add behind it
        return merge and c.weight == 1 and len(channel_map.graph.constants[node.input[1]].dims) == 2
    if merge and node.op_type == "Conv" and is_padded(node):
        return True
    return _has_bias_place(channel_map, c, 2 if merge else 1)


def _is_own(channel_map: ChannelMap, name: str) -> bool:
    """Whether a tensor is a stored constant of floating-point numbers that is read in one place."""
    graph = channel_map.graph
    if name not in graph.constants or name in graph.captured or name in graph.outputs:
        return False
    return len(graph.consumers[name]) == 1 and np.issubdtype(graph.values(name).dtype, np.floating)


def _has_bias_place(channel_map: ChannelMap, c: Contraction, rank: int) -> bool:
    """Whether numbers per output can be added to the bias of a Conv or Gemm, which may have this rank at most."""
    graph, node = channel_map.graph, channel_map.graph.nodes[c.node]
    if node.op_type == "Gemm" and attribute(node, "beta") == 0:
        return False
    if c.bias is None:
        return True
    name = node.input[c.bias]
    if not _is_own(channel_map, name) and not (name in graph.constants and not np.any(graph.values(name))):
        return False
    held = graph.values(name)
    fits = held.size == len(c.outputs) and held.shape[-1] == len(c.outputs) and held.ndim <= rank
    return fits and np.issubdtype(held.dtype, np.floating)


def _still_needed(channel_map: ChannelMap, needed: BoolArray) -> None:
    """While an output is kept, a contraction keeps at least one input. Coupled channels may ask for another round."""
    missing = True
    while missing:
        missing = False
        for outputs, inputs in reversed(channel_map.needs):
            if len(inputs) and np.any(needed[outputs]) and not np.any(needed[inputs]):
                needed[inputs[0]] = missing = True


def _take_over(channel_map: ChannelMap, nonzero: Mapping[int, BoolArray], carried: dict[str, Carried],
               demand: Mapping[str, tuple[Ids, FloatArray]], needed: BoolArray) -> dict[int, int]:  # fmt: skip
    """For each padded convolution that reads constants about to leave, the group that takes them over and stays.

    Only a channel that is read carries what ``carried`` says: upstream, constants are not taken over for others.
    """
    into: dict[int, int] = {}
    wanted = np.zeros(channel_map.groups, np.bool_)
    for c in channel_map.contractions:
        node = channel_map.graph.nodes[c.node]
        name = node.input[c.data]
        if name not in carried or name not in demand or not (node.op_type == "Conv" and is_padded(node)):
            continue
        if not _takes_over(channel_map, c, True):
            continue
        kind, value = along(carried[name], c.inputs)
        leaving = (kind == CONSTANT) & np.any(nonzero[c.node][needed[c.outputs]], axis=0) & ~needed[c.inputs]
        if not np.any(leaving):
            continue
        size = np.where(kind == CONSTANT, np.abs(value), 0.0)
        groups, backward = demand[name]
        wanted[groups] = backward > -np.inf
        staying = np.where(needed[c.inputs] & wanted[c.inputs], size, 0.0)
        wanted[groups] = False
        enough = staying.max() >= _CLOSE * size[leaving].max()
        best = int(np.argmax(staying if enough else np.where(leaving, size, 0.0)))
        needed[c.inputs[best]] = True
        into[c.node] = best
    return into


def fold(channel_map: ChannelMap, dead: Dead) -> ModelProto:
    """The same function at full size, with the constants of dead channels taken over by those who read them.

    The model itself where there are no constants to take over.
    """
    editor = _Weights(channel_map)
    for c in channel_map.contractions:
        value = dead.taken(channel_map, c)
        if np.any(value):
            _fold_into(channel_map, dead, c, value, editor)
    return editor.finished()


def _fold_into(channel_map: ChannelMap, dead: Dead, c: Contraction, value: FloatArray, editor: _Weights) -> None:
    """``value``: the constant of each input channel that leaves, float64 [in], else 0."""
    node = channel_map.graph.nodes[c.node]
    if not _takes_over(channel_map, c, dead.merge):
        return  # nobody needs it
    weight = np.array(weight_values(channel_map.graph, node.input[c.weight]))
    columns = np.moveaxis(weight, c.in_axis, -1)  # a view: […, in]
    added = np.asarray((columns.astype(np.float64) * value).sum(axis=-1))  # the other axes of the weight
    if c.node in dead.into:
        held, keeper = dead.carried[node.input[c.data]], dead.into[c.node]
        columns[..., keeper] += (added / held.value[keeper]).astype(weight.dtype)
    elif dead.merge and node.op_type == "Conv" and is_padded(node):
        return  # nobody needs it
    else:
        place = c.out_axis - (c.out_axis > c.in_axis)
        per_output = np.moveaxis(added, place, 0).reshape(len(c.outputs), -1).sum(axis=1)
        per_output = np.where(dead.read[c.node], per_output, 0.0)
        if not np.any(per_output):
            return
        editor.add_bias(c, per_output)
    columns[..., value != 0] = 0
    editor.set(c.node, c.weight, weight)


class _Weights:
    """Changed constants of a model: in place where they are read once, else new ones beside them."""

    def __init__(self, channel_map: ChannelMap) -> None:
        self.map = channel_map
        self.values: dict[str, TensorProto] = {}
        self.new: dict[tuple[int, int], TensorProto] = {}
        self.behind: dict[int, NodeProto] = {}
        graph = channel_map.graph
        self.names = {name for node in graph.nodes for name in (node.name, *node.input, *node.output)}
        self.names |= {value.name for value in graph.model.graph.input} | graph.captured

    def set(self, index: int, k: int, value: NDArray[np.generic]) -> None:
        """Let input k of a node be these numbers."""
        held = self.map.graph.nodes[index].input
        name = held[k] if k < len(held) else ""
        if name and _is_own(self.map, name):
            self.values[name] = with_numbers(self.map.graph.constants[name], value)
        else:
            own = self._name(name or f"{self.map.graph.nodes[index].output[0]}_bias")
            self.new[index, k] = numpy_helper.from_array(np.asarray(value), own)

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

    def _add_behind(self, index: int, extra: NDArray[np.generic]) -> None:
        node = self.map.graph.nodes[index]
        output = node.output[0]
        bias = self._name(f"{output}_bias")
        self.new[index, -1] = numpy_helper.from_array(extra, bias)
        self.behind[index] = onnx.helper.make_node(
            "Add", [self._name(f"{output}_unbiased"), bias], [output], self._name(f"{node.name or output}_bias")
        )

    def _name(self, stem: str) -> str:
        """A name that is not taken yet."""
        name = next(n for n in (f"{stem}_folded{i or ''}" for i in count()) if n not in self.names)
        self.names.add(name)
        return name

    def finished(self) -> ModelProto:
        """The model with the changes, or the model itself if there are none."""
        source = self.map.graph.model
        if not self.values and not self.new:
            return source
        result = ModelProto()
        result.CopyFrom(source)
        for tensor in result.graph.initializer:
            if tensor.name in self.values:
                tensor.CopyFrom(self.values[tensor.name])
        result.graph.initializer.extend(self.new.values())
        if source.ir_version < 4:  # there, every initializer is listed as an input too
            result.graph.input.extend(
                onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in self.new.values()
            )
        del result.graph.node[:]
        for index, node in enumerate(self.map.graph.nodes):
            result.graph.node.append(node)
            self._edit(result.graph.node[-1], index)
            if index in self.behind:
                result.graph.node.append(self.behind[index])
        return result

    def _edit(self, node: NodeProto, index: int) -> None:
        if constant_of(node) is not None and node.output[0] in self.values:
            set_constant(node, self.values[node.output[0]])
        if (index, 2) in self.new:
            names = [*node.input, "", ""][:2]
            del node.input[:]
            node.input.extend([*names, self.new[index, 2].name])
        if index in self.behind:
            node.output[0] = self.behind[index].input[0]


def same_channels(a: ChannelMap, b: ChannelMap) -> bool:
    """Whether folding (a → b) left all channels what they were, group numbers included."""
    if not np.array_equal(a.frozen, b.frozen) or len(a.contractions) != len(b.contractions):
        return False
    axes = [(a.axes[name], b.axes.get(name, ())) for name in a.axes]
    ends = zip(a.contractions, b.contractions, strict=True)
    axes += [((one.inputs, one.outputs), (other.inputs, other.outputs)) for one, other in ends]
    return all(len(one) == len(other) and all(map(_same_ids, one, other)) for one, other in axes)


def _same_ids(one: Ids | None, other: Ids | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))
