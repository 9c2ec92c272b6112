"""Paths through the channel graph: for every channel, the best path from an input and to an output.

The channel graph is the DAG whose vertices are the channels of every tensor and whose edges are kernel slices (between
the channels of a contraction's input and output) and identities (every other operator joins a channel to itself).
A contraction without a block counts every slice as 1. With edge weights log w, a path's weight is the logarithm of its product, and both passes are longest-path passes in
topological order, one dense [out × in] block per contraction:

    forward[out]  = max over in  of forward[in]  + log w[out, in]
    backward[in]  = max over out of backward[out] + log w[out, in]

A channel is *accessible* iff its forward value is above −∞ (a slice of zero norm has weight −∞), *co-accessible* iff
its backward value is. The value of the best path *through* a channel is forward + backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import ChannelMap, Contraction, Ids
from onnxprune.graph import attribute, subgraphs
from onnxprune.passes.norms import FloatArray
from onnxprune.weights import weight_values

__all__ = ["Blocks", "Flow", "channel_blocks", "flow", "flow_by_tensor"]

Blocks = Mapping[int, FloatArray]
"""Node of a contraction → log norms of its kernel slices, [out, in per group]."""

_NOTHING = -np.inf


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


def channel_blocks(channel_map: ChannelMap, norm: Callable[[ChannelMap, Contraction], FloatArray]) -> dict[int, FloatArray]:
    """Log norms of all kernel slices."""
    with np.errstate(divide="ignore"):
        return {c.node: np.log(norm(channel_map, c)) for c in channel_map.contractions}


def flow_by_tensor(channel_map: ChannelMap, blocks: Blocks) -> dict[str, tuple[Ids, FloatArray]]:
    """Tensor → (its groups, their backward values): what of each tensor the outputs depend on."""
    engine = _Engine(channel_map, blocks, None)
    forward = engine.forwards()
    return {name: (forward[name].groups, values) for name, values in engine.backwards().items()}


@dataclass
class _Tensor:
    """The groups of a tensor (sorted; 0 for what has no channel) and their best values."""

    groups: Ids
    best: FloatArray


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
        self.scratch = np.full(channel_map.groups, _NOTHING)
        self.tensors: dict[str, _Tensor] = {}

    def _groups(self, name: str) -> Ids:
        labelled = [ids for ids in self.map.axes.get(name, ()) if ids is not None]
        return np.unique(np.concatenate(labelled)) if labelled else np.zeros(1, np.int32)

    def _reads(self, index: int) -> Sequence[str]:
        """What a node reads; the last node of a channel shuffle reads what goes into the shuffle."""
        shuffle = self.map.shuffles.get(index)
        return self.graph.nodes[index].input if shuffle is None else (shuffle.source,)

    def _dead(self, groups: Ids, best: FloatArray) -> FloatArray:
        return best if self.keep is None else np.where(self.keep[groups], best, _NOTHING)

    # ---- forwards

    def forwards(self) -> dict[str, _Tensor]:
        for name in self.graph.inputs:
            groups = self._groups(name)
            self.tensors[name] = _Tensor(groups, np.zeros(len(groups)))
        for index, node in enumerate(self.graph.nodes):
            read = [self.tensors[name] for name in self._reads(index) if name in self.tensors]
            if any(True for _ in subgraphs(node)):
                read = [_Tensor(np.zeros(1, np.int32), np.zeros(1))]  # what a body captures is not followed
            if not read:
                continue  # computed from constants alone: no path starts here
            for name in node.output:
                if name:
                    self.tensors[name] = self._ahead(index, name, read)
        return self.tensors

    def _ahead(self, index: int, name: str, read: Sequence[_Tensor]) -> _Tensor:
        groups = self._groups(name)
        c = self.contraction.get(index)
        data = self.tensors.get(self.graph.nodes[index].input[c.data]) if c else None
        if c is None or data is None:
            best = _lookup(self.scratch, read, groups, len(self._labelled(name)) == 0)
            if index in self.gains:
                best = best + _lookup(self.scratch, [self.gains[index]], groups, False)
        else:
            values = _lookup(self.scratch, [data], c.inputs, False, whole=data)
            out = _best_over_inputs(self.blocks.get(index), values, c)
            rest = _lookup(self.scratch, [data], groups, False)
            best = _scatter_max(self.scratch, c.outputs, out, groups, rest)
        return _Tensor(groups, self._dead(groups, best))

    def _labelled(self, name: str) -> list[Ids]:
        return [ids for ids in self.map.axes.get(name, ()) if ids is not None]

    # ---- backwards

    def backwards(self) -> dict[str, FloatArray]:
        behind = {name: np.full(len(t.groups), _NOTHING) for name, t in self.tensors.items()}
        for name in {*self.graph.outputs, *self.graph.captured} & behind.keys():
            behind[name][:] = 0.0
        for index in reversed(range(len(self.graph.nodes))):
            made = [n for n in self.graph.nodes[index].output if n in behind]
            if not made:
                continue
            for name in made:
                behind[name] = self._dead(self.tensors[name].groups, behind[name])
            c = self.contraction.get(index)
            for k, name in enumerate(self._reads(index)):
                if name in behind:
                    through = c if c is not None and k == c.data else None
                    values = self._back(index, made, behind, self.tensors[name].groups, through)
                    np.maximum(behind[name], values, out=behind[name])
        return behind

    def _back(self, index: int, made: list[str], behind: dict[str, FloatArray], groups: Ids,
              c: Contraction | None) -> FloatArray:  # fmt: skip
        outputs = [_Tensor(self.tensors[n].groups, behind[n]) for n in made]
        if index in self.gains:
            gain = _lookup(self.scratch, [self.gains[index]], outputs[0].groups, False)
            outputs[0] = _Tensor(outputs[0].groups, outputs[0].best + gain)
        if c is None:
            dropped = all(not self._labelled(n) for n in made)
            return _lookup(self.scratch, outputs, groups, False, whole=outputs[0] if dropped else None)
        values = _lookup(self.scratch, outputs, c.outputs, False)
        into = _best_over_outputs(self.blocks.get(index), values, c)
        rest = _lookup(self.scratch, outputs, groups, False)
        if len(groups) == 1 and groups[0] == 0 and not np.any(c.inputs == 0):
            return np.array([into.max(initial=_NOTHING)])
        return _scatter_max(self.scratch, c.inputs, into, groups, rest)


def _lookup(scratch: FloatArray, tensors: Sequence[_Tensor], groups: Ids, drop_axis: bool,
            whole: _Tensor | None = None) -> FloatArray:  # fmt: skip
    """Best value of each group over the tensors it appears in.

    ``drop_axis``: the result has no channel axis and takes the best of all channels. ``whole``: a tensor without the
    asked groups stands for all of them with its own best value.
    """
    for tensor in tensors:
        scratch[tensor.groups] = np.maximum(scratch[tensor.groups], tensor.best)
    result = scratch[groups]
    for tensor in tensors:
        scratch[tensor.groups] = _NOTHING
    if drop_axis:
        best = max((float(t.best.max(initial=_NOTHING)) for t in tensors), default=_NOTHING)
        return np.full(len(groups), best)
    if whole is not None and whole.groups[0] == 0:
        result = np.maximum(result, whole.best[0]) if len(whole.groups) == 1 else result
    return result


def _scatter_max(scratch: FloatArray, at: Ids, values: FloatArray, groups: Ids, rest: FloatArray) -> FloatArray:
    """Values of the groups: the best among ``values`` at ``at``; groups that are not there keep ``rest``."""
    np.maximum.at(scratch, at, values)
    result = scratch[groups]
    here = np.isin(groups, at)
    scratch[at] = _NOTHING
    return np.where(here, result, rest)


def _best_over_inputs(block: FloatArray | None, values: FloatArray, c: Contraction) -> FloatArray:
    """max over inputs of values[in] + block[out, in], group by group of a grouped convolution."""
    parts = values.reshape(c.groups, 1, -1)
    if block is None:
        return np.repeat(parts.max(axis=2).ravel(), len(c.outputs) // c.groups)
    if c.groups > 1:
        return np.asarray((block.reshape(c.groups, -1, block.shape[1]) + parts).max(axis=2).ravel())
    return np.asarray((block + values).max(axis=1, initial=_NOTHING))


def _best_over_outputs(block: FloatArray | None, values: FloatArray, c: Contraction) -> FloatArray:
    """max over outputs of values[out] + block[out, in]."""
    parts = values.reshape(c.groups, -1, 1)
    if block is None:
        return np.repeat(parts.max(axis=1).ravel(), len(c.inputs) // c.groups)
    if c.groups > 1:
        return np.asarray((block.reshape(c.groups, -1, block.shape[1]) + parts).max(axis=1).ravel())
    return np.asarray((block + values[:, None]).max(axis=0, initial=_NOTHING))


def _gains(channel_map: ChannelMap) -> dict[int, _Tensor]:
    """Log of |γ|/√(σ² + ε) for every BatchNormalization, by group."""
    found: dict[int, _Tensor] = {}
    graph = channel_map.graph
    for index, node in enumerate(graph.nodes):
        axes = channel_map.axes.get(node.output[0], ()) if node.op_type == "BatchNormalization" else ()
        ids = axes[1] if len(axes) > 1 else None
        if ids is not None:
            gamma, variance = (weight_values(graph, node.input[k]).astype(np.float64) for k in (1, 4))
            epsilon = attribute(node, "epsilon")
            with np.errstate(divide="ignore"):
                gain = np.log(np.abs(gamma) / np.sqrt(variance + (epsilon if isinstance(epsilon, float) else 1e-5)))
            groups, first = np.unique(ids, return_index=True)
            found[index] = _Tensor(groups, gain[first])
    return found
