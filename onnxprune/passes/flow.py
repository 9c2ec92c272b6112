"""Paths through the channel graph: for every channel, the best path from an input and to an output.

The channel graph is the DAG whose vertices are the channels of every tensor and whose edges are kernel slices (between
the channels of a contraction's input and output) and identities (every other operator joins a channel to itself).
What has no channels of its own (a plain tensor, an operand broadcast over all channels, an axis that is summed over)
is joined to all of them. A contraction without a block counts every slice as 1. With edge weights log w, a path's
weight is the logarithm of its product, and both passes are longest-path passes in topological order, one dense
[out × in] block per contraction:

    forward[out]  = max over in  of forward[in]  + log w[out, in]
    backward[in]  = max over out of backward[out] + log w[out, in]

A channel is *accessible* iff its forward value is above −∞ (a slice of zero norm has weight −∞), *co-accessible* iff
its backward value is. The value of the best path *through* a channel is forward + backward.

What the outputs *depend on* is the same backward pass with one difference: where an operator mixes channels without a
weight (a normalisation over them, a product of two activations), every channel it reads counts for every one it makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxprune.bodies import FORMAL, RESULT, loops, number, results_of
from onnxprune.channels import ChannelMap, Contraction, Ids
from onnxprune.graph import Edge, subgraphs
from onnxprune.ops import RULES, control, cutting, elementwise, movement, quantization, reduction, reshape
from onnxprune.ops.recurrent import GATES
from onnxprune.passes.bounds import Bounds, Logs
from onnxprune.passes.gains import normalisation_gain
from onnxprune.passes.norms import FloatArray, operator_logs

__all__ = ["Blocks", "Flow", "channel_blocks", "flow", "flow_by_tensor", "picks"]

Blocks = Mapping[int, FloatArray] | Mapping[int, NDArray[np.bool_]] | Mapping[int, "FloatArray | Logs"]
"""Node of a contraction → log norms of its kernel slices, [out, in per group]; or which are there, of weight 0."""

_Block = FloatArray | NDArray[np.bool_]
_NOTHING = -np.inf
_CHUNK = 1 << 18  # slices that are looked at together: in the cache, and little memory beside the weights


@dataclass(frozen=True)
class Flow:
    """Best log path values per group, over all tensors the group appears in (float [groups]); −∞: no path."""

    forward: FloatArray
    backward: FloatArray
    through: FloatArray

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Groups on some path from an input to an output: accessible and co-accessible."""
        return self.through > _NOTHING


@dataclass(frozen=True)
class _LogNorms(Mapping[int, "FloatArray | Logs"]):
    """Log norms of kernel slices, computed when they are asked for.

    Those of kernels of several elements are kept, as they cost much more to compute than to hold. Those of matrices,
    which are as large as the matrices, are not.
    """

    map: ChannelMap
    log_norm: Callable[[ChannelMap, Contraction], FloatArray | Logs]
    held: dict[int, FloatArray | Logs] = field(default_factory=dict)

    @cached_property
    def contraction(self) -> dict[int, Contraction]:
        return {c.node: c for c in self.map.contractions}

    def __getitem__(self, node: int) -> FloatArray | Logs:
        if node in self.held:
            return self.held[node]
        c = self.contraction[node]
        found = self.log_norm(self.map, c)
        stored = math.prod(self.map.shapes.of[self.map.graph.nodes[node].input[c.weight]])
        if isinstance(found, Bounds) or (isinstance(found, np.ndarray) and found.size < stored):
            self.held[node] = found
        return found

    def __iter__(self) -> Iterator[int]:
        return iter(self.contraction)

    def __len__(self) -> int:
        return len(self.contraction)


def channel_blocks(channel_map: ChannelMap,
                   norm: Callable[[ChannelMap, Contraction], FloatArray] | None = None
                   ) -> Mapping[int, FloatArray | Logs]:  # fmt: skip
    """Log norms of all kernel slices; by default, operator norms."""
    if norm is None:
        return _LogNorms(channel_map, operator_logs)

    def log_norm(channel_map: ChannelMap, c: Contraction) -> FloatArray:
        with np.errstate(divide="ignore"):
            return np.log(norm(channel_map, c))

    return _LogNorms(channel_map, log_norm)


_MODULES = [module.__name__ for module in (cutting, elementwise, movement, quantization, reshape)]
_APART = frozenset(
    name
    for name, rule in RULES.items()
    if rule.channels.__module__ in _MODULES
    or rule.channels in (reduction.pool, reduction.max_pool, reduction.resample, reduction.reduce, reduction.log_reduce,
                         reduction.sum_reduce, reduction.max_reduce, reduction.mean_reduce, reduction.softmax, reduction.instance_normalization,
                         reduction.group_normalization, control.branches, control.into_loop)
)  # fmt: skip
"""Operators of which a channel depends on the same channels of what is read, and on channels that end here."""

_BY_RANGE = frozenset(("DynamicQuantizeLSTM", "DynamicQuantizeMatMul"))
"""Contractions that quantise what they read by its range: a channel counts though all its weights are zero."""
_PICKING = frozenset(("Gather", "Slice", "Split"))
_SIZES = frozenset(("Shape", "Size"))


def picks(channel_map: ChannelMap, index: int, k: int) -> bool:
    """Whether a node passes some of the channels of input k on and leaves the others out."""
    node = channel_map.graph.nodes[index]
    if k > 0 or node.op_type not in _PICKING:
        return False
    read, *made = (
        sum(ids is not None for ids in channel_map.axes.get(name, ())) for name in (node.input[0], *node.output)
    )
    return all(count == read for count in made)  # an axis that became plain holds channels that no label tells apart


def keeps_apart(channel_map: ChannelMap, index: int, k: int) -> bool:
    """Whether a node other than a contraction computes channels from the same channels of its input k alone."""
    node = channel_map.graph.nodes[index]
    key = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    if key == "MatMul":  # not if they are summed over: along the last axis of a, the last but one of b, that of a vector
        axes = channel_map.axes.get(node.input[k], ())
        return not axes or axes[-min(1 + k, len(axes))] is None
    return index in channel_map.shuffles or key in _APART


def flow_by_tensor(channel_map: ChannelMap, blocks: Blocks,
                   unheard: Mapping[Edge, Ids] | None = None) -> dict[str, tuple[Ids, FloatArray]]:  # fmt: skip
    """Tensor → (its groups, their backward values): above −∞ where an output depends on it, whatever mixes channels.

    ``unheard``: use of a tensor → groups of which what it holds does not matter there.
    """
    engine = _Engine(channel_map, blocks, None)
    engine.unheard = unheard or {}
    for name in (*engine.graph.inputs, *(name for node in engine.graph.nodes for name in node.output if name)):
        groups = engine.groups(name)
        engine.tensors[name] = _Tensor(groups, np.zeros(len(groups)))
    return {name: (engine.tensors[name].groups, values) for name, values in engine.backwards(mixing=True).items()}


@dataclass
class _Tensor:
    """The groups of a tensor (sorted; 0 for what has no channel) and their best values."""

    groups: Ids
    best: FloatArray

    @property
    def top(self) -> float:
        return float(self.best.max(initial=_NOTHING))


def flow(channel_map: ChannelMap, blocks: Blocks, keep: NDArray[np.bool_] | None = None) -> Flow:
    """Longest paths both ways; channels that are not kept (bool [groups]) carry none."""
    engine = _Engine(channel_map, blocks, keep)
    forward = engine.forwards()
    backward = engine.backwards()
    count = channel_map.groups
    result = [np.full(count, _NOTHING) for _ in range(3)]
    for name, ahead in forward.items():
        behind = backward[name]
        for total, values in zip(result, (ahead.best, behind, ahead.best + behind), strict=True):
            total[ahead.groups] = np.maximum(total[ahead.groups], values)
    return Flow(*result)


class _Engine:
    def __init__(self, channel_map: ChannelMap, blocks: Blocks, keep: NDArray[np.bool_] | None) -> None:
        self.map = channel_map
        self.graph = channel_map.graph
        self.blocks = blocks
        self.keep = keep
        self.contraction = {c.node: c for c in channel_map.contractions}
        self.gains = _gains(channel_map)
        self.scratch = np.full(channel_map.groups, np.nan)  # NaN: not there
        self.unheard: Mapping[Edge, Ids] = {}
        self.tensors: dict[str, _Tensor] = {}

    def groups(self, name: str) -> Ids:
        labelled = self._labelled(name)
        return np.unique(np.concatenate(labelled)) if labelled else np.zeros(1, np.int32)

    def _labelled(self, name: str) -> list[Ids]:
        return [ids for ids in self.map.axes.get(name, ()) if ids is not None]

    def _reads(self, index: int) -> Sequence[str]:
        """What a node reads; the last node of a channel shuffle reads what goes into the shuffle."""
        shuffle = self.map.shuffles.get(index)
        return self.graph.nodes[index].input if shuffle is None else (shuffle.source,)

    def _dead(self, groups: Ids, best: FloatArray) -> FloatArray:
        return best if self.keep is None else np.where(self.keep[groups], best, _NOTHING)

    def _lookup(self, tensors: Sequence[_Tensor], groups: Ids, absent: float) -> FloatArray:
        """Best value of each group over the tensors it appears in; ``absent`` for groups that appear in none."""
        if len(tensors) == 1 and np.array_equal(tensors[0].groups, groups):
            return tensors[0].best.copy()
        for tensor in tensors:
            self.scratch[tensor.groups] = np.fmax(self.scratch[tensor.groups], tensor.best)
        result = self.scratch[groups]
        for tensor in tensors:
            self.scratch[tensor.groups] = np.nan
        return np.where(np.isnan(result), absent, result)

    def _scatter(self, at: Ids, values: FloatArray, groups: Ids, rest: FloatArray, both: bool) -> FloatArray:
        """Values of the groups: the best among ``values`` at ``at``, elsewhere (``both``: or if better) ``rest``."""
        self.scratch[at] = _NOTHING
        with np.errstate(invalid="ignore"):  # of weights that are no numbers
            np.maximum.at(self.scratch, at, values)
        result = self.scratch[groups]
        self.scratch[at] = np.nan
        return np.where(np.isnan(result), rest, np.maximum(result, rest) if both else result)

    # ---- forwards

    def forwards(self) -> dict[str, _Tensor]:
        for name in self.graph.inputs:
            groups = self.groups(name)
            self.tensors[name] = _Tensor(groups, np.zeros(len(groups)))
        for index, node in enumerate(self.graph.nodes):
            if node.op_type in _SIZES:
                continue
            read = [self.tensors[name] for name in self._reads(index) if name in self.tensors]
            if node.domain == FORMAL or any(True for _ in subgraphs(node)):
                read = [_Tensor(np.zeros(1, np.int32), np.zeros(1))]  # earlier iterations, captures: not followed
            if not read and index not in self.contraction:
                continue  # computed from constants alone: no path starts here, unless through a weight
            for name in node.output:
                if name:
                    self.tensors[name] = self._ahead(index, name, read)
        return self.tensors

    def _ahead(self, index: int, name: str, read: Sequence[_Tensor]) -> _Tensor:
        groups = self.groups(name)
        c = self.contraction.get(index)
        if c is not None:
            return _Tensor(groups, self._dead(groups, self._through(index, name, groups, c)))
        top = max(tensor.top for tensor in read)
        if self._labelled(name):
            best = self._lookup(read, groups, _NOTHING if self.graph.nodes[index].op_type == "Concat" else top)
        else:
            best = np.full(len(groups), top)
        if index in self.gains:
            best = best + self._lookup([self.gains[index]], groups, 0.0)
        return _Tensor(groups, self._dead(groups, best))

    def _through(self, index: int, name: str, groups: Ids, c: Contraction) -> FloatArray:
        data = self.tensors.get(self.graph.nodes[index].input[c.data])
        if data is None:
            data = _Tensor(np.zeros(1, np.int32), np.zeros(1))
        out = _best_over_inputs(self.blocks.get(index), self._lookup([data], c.inputs, data.top), c)
        rest = self._lookup([data], groups, float(out.max(initial=_NOTHING)))
        return self._scatter(c.outputs, out, groups, rest, len(self._labelled(name)) > 1)

    # ---- backwards

    def backwards(self, mixing: bool = False) -> dict[str, FloatArray]:
        behind = {name: np.full(len(t.groups), _NOTHING) for name, t in self.tensors.items()}
        for name in {*self.graph.outputs, *self.graph.captured} & behind.keys():
            behind[name][:] = 0.0
        tops: dict[int, float] = {}
        for index in reversed(range(len(self.graph.nodes))):
            made = [n for n in self.graph.nodes[index].output if n in behind]
            if not made or self.graph.nodes[index].op_type in _SIZES:
                continue
            for name in made:
                behind[name] = self._dead(self.tensors[name].groups, behind[name])
            # every state of a loop, every unit of a recurrent layer feeds all others at the next step
            top = self._loop_top(index, behind, tops)
            if top is None and mixing and self.graph.nodes[index].op_type in GATES:
                top = max(float(behind[name].max(initial=_NOTHING)) for name in made)
            if top is not None:
                behind.update({name: np.full(len(behind[name]), top) for name in made})
            outputs = [_Tensor(self.tensors[n].groups, behind[n]) for n in made]
            if index in self.gains:
                outputs[0].best = outputs[0].best + self._lookup([self.gains[index]], outputs[0].groups, 0.0)
            for k, name in enumerate(self._reads(index)):
                if name in behind:
                    values = self._back(index, k, name, outputs, mixing)
                    if (index, k) in self.unheard:
                        values[np.isin(self.tensors[name].groups, self.unheard[index, k])] = _NOTHING
                    np.maximum(behind[name], values, out=behind[name])
        return behind

    def _loop_top(self, index: int, behind: Mapping[str, FloatArray], tops: dict[int, float]) -> float | None:
        """The best value of all outputs of the loop that a result belongs to, found at the last of them; else None."""
        node = self.graph.nodes[index]
        if node.domain != RESULT or not loops(node):
            return None
        owner = number(node, "owner")
        if owner not in tops:
            made = (self.graph.nodes[k].output[0] for k in results_of(self.graph.nodes, index))
            values = (self._dead(self.tensors[n].groups, behind[n]) for n in made if n in behind)
            tops[owner] = max(float(each.max(initial=_NOTHING)) for each in values)
        return tops[owner]

    def _back(self, index: int, k: int, name: str, outputs: Sequence[_Tensor], mixing: bool) -> FloatArray:
        """Values of the groups of input k of a node, from those of what it makes."""
        groups = self.tensors[name].groups
        c = self.contraction.get(index)
        if c is not None and k in (c.weight, c.bias):
            return np.full(len(groups), _NOTHING)  # no path begins in a weight
        if mixing and self.graph.nodes[index].op_type in _BY_RANGE:
            return np.full(len(groups), max(tensor.top for tensor in outputs))
        if c is not None and k == c.data:
            return self._back_through(index, name, groups, c, outputs)
        top = max(tensor.top for tensor in outputs)
        made = [n for n in self.graph.nodes[index].output if n in self.tensors]
        if not self._labelled(name) or not any(self._labelled(n) for n in made):
            return np.full(len(groups), top)
        if mixing and not self._is_apart(index, k, [name, *made]):
            return np.full(len(groups), top)
        return self._lookup(outputs, groups, _NOTHING if picks(self.map, index, k) else top)

    def _back_through(self, index: int, name: str, groups: Ids, c: Contraction,
                      outputs: Sequence[_Tensor]) -> FloatArray:  # fmt: skip
        values = self._lookup(outputs, c.outputs, max(tensor.top for tensor in outputs))
        into = _best_over_outputs(self.blocks.get(index), values, c)
        top = float(into.max(initial=_NOTHING))
        if not self._labelled(name):
            return np.full(len(groups), top)
        rest = self._lookup(outputs, groups, top)
        return self._scatter(c.inputs, into, groups, rest, len(self._labelled(name)) > 1)

    def _is_apart(self, index: int, k: int, names: Sequence[str]) -> bool:
        """Whether a node keeps the channels of input k apart: by what it is, and as no group runs along two axes."""
        if not keeps_apart(self.map, index, k):
            return False
        several = [n for n in names if len(self._labelled(n)) > 1]
        return all(sum(len(np.unique(ids)) for ids in self._labelled(n)) == len(self.groups(n)) for n in several)


def _best_over_inputs(block: _Block | Logs | None, values: FloatArray, c: Contraction) -> FloatArray:
    """max over inputs of values[in] + block[out, in], group by group of a grouped convolution."""
    if isinstance(block, Logs):
        return block.best_of_rows(values)
    parts = values.reshape(c.groups, 1, -1)
    if block is None:
        return np.repeat(parts.max(axis=2, initial=_NOTHING).ravel(), len(c.outputs) // c.groups)
    if c.groups > 1:
        return np.asarray(_joined(block.reshape(c.groups, -1, block.shape[1]), parts).max(axis=2, initial=_NOTHING).ravel())
    if block.dtype != np.bool_ or not len(values):
        return _best_of_rows(block, values)
    best = int(values.argmax())
    result = np.full(len(block), values[best])
    others = np.logical_not(block[:, best])  # few, where most slices are there
    result[others] = _best_of_rows(block[others], values)
    return result


def _best_of_rows(block: _Block, values: FloatArray) -> FloatArray:
    """max over columns of values[column] + block[row, column], some rows at a time."""
    step = max(1, _CHUNK // max(1, block.shape[1]))
    parts = [_joined(block[i : i + step], values).max(axis=1, initial=_NOTHING) for i in range(0, len(block), step)]
    return np.concatenate([np.zeros(0), *parts])


def _joined(block: _Block, values: FloatArray) -> FloatArray:
    """The value of a path with one more slice."""
    return np.where(block, values, _NOTHING) if block.dtype == np.bool_ else block + values


def _best_over_outputs(block: _Block | Logs | None, values: FloatArray, c: Contraction) -> FloatArray:
    """max over outputs of values[out] + block[out, in]."""
    if isinstance(block, Logs):
        return block.best_of_columns(values)
    parts = values.reshape(c.groups, -1, 1)
    if block is None:
        return np.repeat(parts.max(axis=1, initial=_NOTHING).ravel(), len(c.inputs) // c.groups)
    if c.groups > 1:
        return np.asarray(_joined(block.reshape(c.groups, -1, block.shape[1]), parts).max(axis=1, initial=_NOTHING).ravel())
    if block.dtype != np.bool_ or not len(values):
        return _best_of_columns(block, values)
    best = int(values.argmax())
    result = np.full(block.shape[1], values[best])
    others = np.logical_not(block[best])
    result[others] = _best_of_columns(block[:, others], values)
    return result


def _best_of_columns(block: _Block, values: FloatArray) -> FloatArray:
    """max over rows of values[row] + block[row, column], some rows at a time."""
    step = max(1, _CHUNK // max(1, block.shape[1]))
    result = np.full(block.shape[1], _NOTHING)
    for i in range(0, len(block), step):
        part = _joined(block[i : i + step], values[i : i + step, None])
        np.maximum(result, part.max(axis=0, initial=_NOTHING), out=result)
    return result


def _gains(channel_map: ChannelMap) -> dict[int, _Tensor]:
    """The log gain of every BatchNormalization, by group."""
    found: dict[int, _Tensor] = {}
    for index, node in enumerate(channel_map.graph.nodes):
        axes = channel_map.axes.get(node.output[0], ()) if node.op_type == "BatchNormalization" else ()
        ids = axes[1] if len(axes) > 1 else None
        gain = None if ids is None else normalisation_gain(channel_map.graph, index)
        if ids is not None and gain is not None:
            groups, place = np.unique(ids, return_inverse=True)
            best = np.full(len(groups), _NOTHING)
            np.maximum.at(best, place, gain)
            found[index] = _Tensor(groups, best)
    return found
