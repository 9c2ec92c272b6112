"""The masked reference: the original model with the planned weights set to zero; same nodes, same shapes.

Every stored constant that makes or reads channels (weights, biases, BatchNorm gain and shift, added constants) is zero
at the indices of removed channels. A removed channel is then written by nothing and read by nothing, so what it would
have carried does not matter, and the pruned model must agree with this one on every output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnxprune.bodies import restore
from onnxprune.channels import ChannelMap
from onnxprune.deferred import Deferred, can_wait, promise, row_blocks
from onnxprune.graph import Edge, constant_of
from onnxprune.messages import set_constant, with_numbers
from onnxprune.quantised import spread

__all__ = ["masked_deferred", "masked_reference", "with_constants", "zeros"]


def masked_reference(channel_map: ChannelMap, keep: NDArray[np.bool_]) -> ModelProto:
    """The model with stored constants set to zero at channels whose group is not kept (bool [groups])."""
    model = channel_map.graph.model
    return restore(with_constants(model, dict(_masked(channel_map, _cuts(channel_map, keep)))))


def masked_deferred(channel_map: ChannelMap, keep: NDArray[np.bool_]) -> Deferred:
    """See ``masked_reference``; weights in data files get their zeros when they are wanted."""
    graph, cuts = channel_map.graph, _cuts(channel_map, keep)
    if restore(graph.model) is not graph.model:  # the weights of bodies have other names there
        return Deferred(masked_reference(channel_map, keep))
    pending = {
        tensor.name: partial(_masked_blocks, channel_map, tensor.name, cuts.pop(tensor.name))
        for tensor in graph.model.graph.initializer
        if tensor.name in cuts and can_wait(tensor)
    }
    changed = dict(_masked(channel_map, cuts))
    for name in pending:
        changed[name] = promise(graph.constants[name], name, graph.constants[name].dims)
    return Deferred(with_constants(graph.model, changed), pending)


def with_constants(model: ModelProto, changed: Mapping[str, TensorProto]) -> ModelProto:
    """A copy of the model with other numbers in these constants, initializers or Constant nodes."""
    result = ModelProto()
    result.CopyFrom(model)
    for i, tensor in enumerate(result.graph.initializer):
        if tensor.name in changed:
            result.graph.initializer[i].CopyFrom(changed[tensor.name])
    for node in result.graph.node:
        if constant_of(node) is not None and node.output[0] in changed:
            set_constant(node, changed[node.output[0]])
    return result


@dataclass(frozen=True)
class _Cut:
    """``gone``: which indices of an axis of a constant leave (bool), for the node that reads it."""

    edge: Edge
    axis: int
    gone: NDArray[np.bool_]


def _cuts(channel_map: ChannelMap, keep: NDArray[np.bool_]) -> dict[str, list[_Cut]]:
    """Constant → what of it is set to zero; constants without anything that is are left out."""
    found: dict[str, list[_Cut]] = {}
    for edge in sorted(channel_map.masked):
        for axis, ids in enumerate(channel_map.uses.get(edge, ())):
            if ids is not None and not np.all(keep[ids]):
                name = channel_map.graph.nodes[edge[0]].input[edge[1]]
                found.setdefault(name, []).append(_Cut(edge, axis, ~keep[ids]))
    return found


def _masked(channel_map: ChannelMap, cuts: Mapping[str, Sequence[_Cut]]) -> Iterator[tuple[str, TensorProto]]:
    """Constants with zeros at removed channels."""
    for name in sorted(cuts):
        values = channel_map.graph.values(name)
        zeroed = _zeroed(channel_map, values, cuts[name], slice(None))
        yield name, with_numbers(channel_map.graph.constants[name], zeroed)


def _masked_blocks(channel_map: ChannelMap, name: str, cuts: Sequence[_Cut]) -> Iterator[NDArray[np.generic]]:
    values = channel_map.graph.values(name)
    return (_zeroed(channel_map, values, cuts, rows) for rows in row_blocks(values))


def _zeroed(
    channel_map: ChannelMap, values: NDArray[np.generic], cuts: Sequence[_Cut], rows: slice
) -> NDArray[np.generic]:
    """Some rows of a constant, with zeros at removed channels."""
    result = np.array(values[rows])
    for cut in cuts:
        index = (slice(None),) * cut.axis + (cut.gone[rows] if cut.axis == 0 else cut.gone,)
        result[index] = zeros(channel_map, cut.edge, values.shape)[rows][index]
    return result


def zeros(channel_map: ChannelMap, edge: Edge, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Zero in the shape of a constant, which for a quantised weight is its zero point."""
    node, point = channel_map.graph.nodes[edge[0]], channel_map.masked[edge]
    if channel_map.graph.constants[node.input[edge[1]]].data_type == TensorProto.STRING:
        return np.full(shape, "", np.object_)
    held = channel_map.graph.values(point) if point else np.zeros((), np.int8)
    return np.broadcast_to(spread(node, edge[1], held, shape), shape)
