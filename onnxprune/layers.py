"""What a user wants to know of a model: its layers, what is frozen and by whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.channels import ChannelMap, Frozen, Ids
from onnxprune.graph import node_name, subgraphs
from onnxprune.measure import count_weights, is_weight, tensors_of
from onnxprune.origins import Origins

__all__ = ["Census", "Layer", "census", "layers", "what_remains"]

_NOT_UNDERSTOOD = Frozen("", "model", "stored where no rule reads it")


@dataclass(frozen=True)
class Layer:
    """A contraction: its operator, weight, and channels before and after.

    ``inputs``/``outputs`` count channels; ``groups_free`` and ``groups_frozen`` the coupled groups of its outputs;
    ``frozen_by`` says why, where any output is frozen.
    """

    name: str
    operator: str
    weight: str
    weights: int
    inputs: int
    outputs: int
    inputs_kept: int
    outputs_kept: int
    groups_free: int
    groups_frozen: int
    frozen_by: str


def layers(channel_map: ChannelMap, keep: NDArray[np.bool_] | None = None,
           narrowed: Mapping[str, int] | None = None) -> tuple[Layer, ...]:  # fmt: skip
    """The layers in the order of the nodes; ``keep`` (bool [groups]): what is left of them; ``narrowed``: output of a
    layer → how many of the channels that are left it reads, if not all."""
    kept = np.ones(channel_map.groups, np.bool_) if keep is None else keep
    origins = Origins(channel_map)
    found = []
    for c in channel_map.contractions:
        node = channel_map.graph.nodes[c.node]
        shape = channel_map.shapes.of.get(node.input[c.weight], ())
        groups = np.unique(c.outputs)
        frozen = groups[channel_map.frozen[groups]]
        cause = _cause(channel_map, frozen)
        found.append(
            Layer(
                name=node_name(node),
                operator=node.op_type,
                weight=node.input[c.weight],
                weights=prod(shape),
                inputs=len(c.inputs),
                outputs=len(c.outputs),
                inputs_kept=(narrowed or {}).get(node.output[0], int(np.count_nonzero(kept[c.inputs]))),
                outputs_kept=int(np.count_nonzero(kept[c.outputs])),
                groups_free=len(groups) - len(frozen),
                groups_frozen=len(frozen),
                frozen_by="" if cause is None else _in_words(origins.explained(cause)),
            )
        )
    return tuple(found)


def _in_words(cause: Frozen) -> str:
    return f"{cause.operator} '{cause.node}': {cause.reason}" if cause.node else cause.reason


def _briefly(cause: Frozen) -> str:
    return f"{cause.operator} ({cause.reason})"


def _cause(channel_map: ChannelMap, groups: Ids) -> Frozen | None:
    for group in groups.tolist():
        if group in channel_map.reasons:
            return channel_map.reasons[group]
    return None


@dataclass(frozen=True)
class Census:
    """Where the weights are: ``total`` = ``free`` + the sum of ``frozen``, by cause (weights counted once each).

    A weight element is frozen when every channel axis it lies on is frozen there.
    """

    total: int
    free: int
    frozen: Mapping[Frozen, int]

    def by_operator(self) -> dict[tuple[str, str], int]:
        """(operator, reason) → weights, most first."""
        sums: dict[tuple[str, str], int] = {}
        for cause, count in self.frozen.items():
            key = (cause.operator, cause.reason)
            sums[key] = sums.get(key, 0) + count
        return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))


def what_remains(channel_map: ChannelMap, keep: NDArray[np.bool_]) -> str:
    """One clause for an error message: what most of the weights left by ``keep`` (bool [groups]) hang on."""
    left: dict[str, int] = {}
    origins = Origins(channel_map)
    for name, edges in channel_map.constant_uses().items():
        axes = channel_map.uses[edges[0]]
        count = prod(
            size if ids is None else int(np.count_nonzero(keep[ids]))
            for size, ids in zip(channel_map.graph.constants[name].dims, axes, strict=True)
        )
        if is_weight(channel_map.graph.constants[name]) and count:
            cause = _weight_cause(channel_map, edges[0])
            words = f"channels frozen by {_briefly(origins.explained(cause))}" if cause else "one channel per layer"
            left[words] = left.get(words, 0) + count
    for cause, count in _unlabelled(channel_map).items():
        words = _briefly(cause)
        left[words] = left.get(words, 0) + count
    if not left:
        return "nothing can leave"
    words, count = max(left.items(), key=lambda item: (item[1], item[0]))
    share = count / sum(left.values())
    return f"of the weights that must stay, {share:.0%} hang on {words}; 'onnxprune inspect' lists all"


def census(channel_map: ChannelMap) -> Census:
    """Attribute every weight element that cannot leave to what freezes it."""
    total = count_weights(channel_map.graph.model)
    origins = Origins(channel_map)
    frozen: dict[Frozen, int] = {}
    free = 0
    for name, edges in channel_map.constant_uses().items():
        if not is_weight(channel_map.graph.constants[name]):
            continue
        axes = channel_map.uses[edges[0]]
        sizes = [
            size if ids is None else len(ids)
            for size, ids in zip(channel_map.graph.constants[name].dims, axes, strict=True)
        ]
        stuck = [
            size if ids is None else int(np.count_nonzero(channel_map.frozen[ids]))
            for size, ids in zip(sizes, axes, strict=True)
        ]
        held = prod(stuck)
        free += prod(sizes) - held
        if held:
            cause = origins.explained(_weight_cause(channel_map, edges[0]) or _NOT_UNDERSTOOD)
            frozen[cause] = frozen.get(cause, 0) + held
    for cause, count in _unlabelled(channel_map).items():
        frozen[cause] = frozen.get(cause, 0) + count
    missing = total - free - sum(frozen.values())
    if missing:
        frozen[_NOT_UNDERSTOOD] = frozen.get(_NOT_UNDERSTOOD, 0) + missing
    return Census(total, free, frozen)


def _weight_cause(channel_map: ChannelMap, edge: tuple[int, int]) -> Frozen | None:
    """Why a weight's channels may not leave: the reason of its longest frozen axis that is not a kernel's extent."""
    held = [ids for ids in channel_map.uses[edge] if ids is not None and np.any(channel_map.frozen[ids])]
    for ids in sorted(held, key=len, reverse=True):
        groups = np.unique(ids[channel_map.frozen[ids]])
        cause = _cause(channel_map, groups)
        if cause is not None and cause.reason != "spatial extent of a kernel":
            return cause
    return None


def _unlabelled(channel_map: ChannelMap) -> dict[Frozen, int]:
    """Weights that no rule labels (they reach operators that are not understood through their bodies, or nobody)."""
    found: dict[Frozen, int] = {}
    graph = channel_map.graph
    labelled = set(channel_map.constant_uses())
    for name, tensor in graph.constants.items():
        if is_weight(tensor) and name not in labelled:
            readers = graph.consumers.get(name, [])
            node = graph.nodes[readers[0][0]] if readers else None
            cause = (
                Frozen(node_name(node), node.op_type, "reads it as a whole")
                if node
                else Frozen("", "nobody", "not read")
            )
            found[cause] = found.get(cause, 0) + prod(tensor.dims)
    for node in graph.nodes:
        inside = _inside(node)
        if inside:
            cause = Frozen(node_name(node), node.op_type, "weights inside its bodies")
            found[cause] = found.get(cause, 0) + inside
    return found


def _inside(node: NodeProto) -> int:
    """Weights in the bodies of a control-flow node."""
    return sum(prod(tensor.dims) for body in subgraphs(node) for tensor in tensors_of(body) if is_weight(tensor))
