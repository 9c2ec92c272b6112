"""The masked reference: the original model with the planned weights set to zero; same nodes, same shapes.

Every stored constant that makes or reads channels (weights, biases, BatchNorm gain and shift, added constants) is zero
at the indices of removed channels. A removed channel is then written by nothing and read by nothing, so what it would
have carried does not matter, and the pruned model must agree with this one on every output.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnxprune.bodies import restore
from onnxprune.channels import Axes, ChannelMap
from onnxprune.graph import Edge, constant_of
from onnxprune.messages import set_constant, with_numbers
from onnxprune.quantised import spread

__all__ = ["masked_reference", "with_constants", "zeros"]


def masked_reference(channel_map: ChannelMap, keep: NDArray[np.bool_]) -> ModelProto:
    """The model with stored constants set to zero at channels whose group is not kept (bool [groups])."""
    changed = {name: tensor for name in _masked_names(channel_map) if (tensor := _masked(channel_map, keep, name))}
    return restore(with_constants(channel_map.graph.model, changed))


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


def _masked_names(channel_map: ChannelMap) -> list[str]:
    nodes = channel_map.graph.nodes
    return sorted({nodes[index].input[k] for index, k in channel_map.masked})


def _masked(channel_map: ChannelMap, keep: NDArray[np.bool_], name: str) -> TensorProto | None:
    """The constant with zeros at removed channels, or None where none of its channels is removed."""
    nodes = channel_map.graph.nodes
    edges = sorted(edge for edge in channel_map.masked if nodes[edge[0]].input[edge[1]] == name)
    cuts = [
        (edge, axis, ~keep[ids])
        for edge in edges
        for axis, ids in enumerate(_axes(channel_map, edge))
        if ids is not None and not np.all(keep[ids])
    ]
    if not cuts:
        return None
    values = np.array(channel_map.graph.values(name))
    for edge, axis, gone in cuts:
        index = (slice(None),) * axis + (gone,)
        values[index] = zeros(channel_map, edge, values.shape)[index]
    return with_numbers(channel_map.graph.constants[name], values)


def _axes(channel_map: ChannelMap, edge: Edge) -> Axes:
    return channel_map.uses.get(edge, ())


def zeros(channel_map: ChannelMap, edge: Edge, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Zero in the shape of a constant, which for a quantised weight is its zero point."""
    node, point = channel_map.graph.nodes[edge[0]], channel_map.masked[edge]
    if channel_map.graph.constants[node.input[edge[1]]].data_type == TensorProto.STRING:
        return np.full(shape, "", np.object_)
    held = channel_map.graph.values(point) if point else np.zeros((), np.int8)
    return np.broadcast_to(spread(node, edge[1], held, shape), shape)
