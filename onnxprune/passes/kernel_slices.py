"""Kernel slices as things that may be removed: which there are, where their numbers are stored, and without which.

An *edge mask* says for every contraction which kernel slices stay (see ``channel_graph``). A slice may be chosen where
its numbers are a stored constant that only contractions of activations read, all in the same layout; a constant that
several nodes read has one mask for all of them. Slices of other weights, and of layers left alone, always stay.

Zeroing slices leaves every shape as it is, so the result (the masked reference) is the original network with some
connections cut, and removing what is dead in it is lossless.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune.channels import ChannelMap, Contraction
from onnxprune.graph import Edge, Graph, attribute, node_name
from onnxprune.messages import with_numbers
from onnxprune.passes.channel_edges import channel_graph
from onnxprune.passes.channel_graph import BoolArray, ChannelGraph, EdgeMask, consistent_edges
from onnxprune.passes.fold import nonzero_slices
from onnxprune.passes.masked import with_constants, zeros
from onnxprune.passes.norms import laid_out

__all__ = ["BoolArray", "EdgeMask", "Kernels", "StoredKernels", "cut_kernels", "kernels_of", "on_paths"]

_RESHAPING = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze"))
_FOLLOWED = frozenset((*_RESHAPING, "Cast", "DequantizeLinear", "Identity", "Transpose"))


@dataclass(frozen=True)
class StoredKernels:
    """A stored constant that holds the kernels of one contraction or, shared, of several alike.

    ``way``: the uses from the first contraction's weight input back to the constant.
    """

    name: str
    contractions: tuple[Contraction, ...]
    way: tuple[Edge, ...]

    @property
    def node(self) -> int:
        """The contraction whose mask speaks for all that share the constant."""
        return self.contractions[0].node

    @property
    def nodes(self) -> tuple[int, ...]:
        return tuple(c.node for c in self.contractions)


@dataclass(frozen=True)
class Kernels:
    """``nonzero``: which slices are not all zero. ``free``: the stored constants whose slices may be chosen."""

    channel_map: ChannelMap
    graph: ChannelGraph
    nonzero: EdgeMask
    free: tuple[StoredKernels, ...]

    @cached_property
    def fixed(self) -> int:
        """How many non-zero slices always stay."""
        chosen = {node for held in self.free for node in held.nodes}
        return sum(int(np.count_nonzero(block)) for node, block in self.nonzero.items() if node not in chosen)

    @cached_property
    def total(self) -> int:
        """How many slices are not zero; those of a shared constant count once for every node that reads it."""
        return self.count(self.nonzero)

    def count(self, mask: EdgeMask) -> int:
        """How many non-zero slices stay."""
        return sum(int(np.count_nonzero(block & mask[node])) for node, block in self.nonzero.items())

    def mask(self, chosen: Mapping[int, BoolArray]) -> dict[int, BoolArray]:
        """The edge mask of a choice: ``StoredKernels.node`` → bool [out, in per group]; zero slices never stay."""
        found = dict(self.nonzero)
        for held in self.free:
            for node in held.nodes:
                found[node] = self.nonzero[node] & chosen[held.node]
        return found


def kernels_of(channel_map: ChannelMap, left_alone: Collection[str] = ()) -> Kernels:
    """The kernel slices of a model. ``left_alone``: names of nodes and tensors whose layers keep all of theirs."""
    found = channel_graph(channel_map)
    return Kernels(channel_map, found, nonzero_slices(channel_map), _stored(channel_map, found, left_alone))


def on_paths(kernels: Kernels, mask: EdgeMask) -> EdgeMask:
    """What of a mask lies on a path from an input to an output; slices that may not be chosen stay.

    Cutting the others changes no path, so once is enough.
    """
    alive = consistent_edges(kernels.graph, mask)
    return kernels.mask({held.node: np.logical_or.reduce([alive[node] for node in held.nodes]) for held in kernels.free})


def _stored(channel_map: ChannelMap, channels: ChannelGraph, left_alone: Collection[str]) -> tuple[StoredKernels, ...]:
    graph = channel_map.graph
    by_name: dict[str, list[tuple[Contraction, list[Edge]]]] = {}
    for c in channel_map.contractions:
        way = _way(channel_map, c)
        if way and c.node in channels.block_of and not _is_left_alone(graph, c, left_alone):
            by_name.setdefault(graph.nodes[way[-1][0]].input[way[-1][1]], []).append((c, way))
    found = (_stored_as(channel_map, name, held) for name, held in by_name.items())
    return tuple(held for held in found if held is not None)


def _is_left_alone(graph: Graph, c: Contraction, names: Collection[str]) -> bool:
    node = graph.nodes[c.node]
    return any(name in names for name in (node_name(node), node.input[c.weight], *node.output))


def _way(channel_map: ChannelMap, c: Contraction) -> list[Edge]:
    """The uses from a contraction's weight input back to the stored constant; none where its layout is lost."""
    graph, way = channel_map.graph, [(c.node, c.weight)]
    while (name := graph.nodes[way[-1][0]].input[way[-1][1]]) not in graph.constants:
        maker = graph.producer.get(name)
        if maker is None or not (graph.nodes[maker].op_type in _FOLLOWED and name in channel_map.shapes.of):
            return []
        way.append((maker, 0))
    return way


def _stored_as(channel_map: ChannelMap, name: str,
               held: list[tuple[Contraction, list[Edge]]]) -> StoredKernels | None:  # fmt: skip
    """None where somebody else reads the constant, or the readers lay it out differently."""
    (first, way), *others = held
    if way[-1] not in channel_map.masked or not _only_read_by(channel_map.graph, {use for _, w in held for use in w}):
        return None
    if any(not np.array_equal(_places(channel_map, c, w), _places(channel_map, first, way)) for c, w in others):
        return None
    return StoredKernels(name, tuple(c for c, _ in held), tuple(way))


def _only_read_by(graph: Graph, uses: set[Edge]) -> bool:
    """Whether these are all uses of the tensors they read."""
    read = {graph.nodes[index].input[k] for index, k in uses}
    elsewhere = graph.captured | set(graph.outputs)
    return not read & elsewhere and all(set(graph.consumers[name]) <= uses for name in read)


def _places(channel_map: ChannelMap, c: Contraction, way: Sequence[Edge]) -> NDArray[np.int64]:
    """The flat index in the stored constant of every kernel element, [out, in per group, elements]."""
    graph = channel_map.graph
    dims = tuple(graph.constants[graph.nodes[way[-1][0]].input[way[-1][1]]].dims)
    return _by_slice(channel_map, c, way, np.arange(np.prod(dims, dtype=np.int64)).reshape(dims))


def _by_slice(channel_map: ChannelMap, c: Contraction, way: Sequence[Edge], stored: NDArray[Any]) -> NDArray[Any]:
    """What is laid out as the stored constant, as kernels [out, in per group, elements]; a view where that can be."""
    graph = channel_map.graph
    for index, _ in reversed(way[1:]):
        node = graph.nodes[index]
        if node.op_type == "Transpose":
            order = attribute(node, "perm")
            stored = stored.transpose(order if isinstance(order, list) else None)
        elif node.op_type in _RESHAPING:
            stored = stored.reshape(channel_map.shapes.of[node.output[0]])
    found = laid_out(stored, graph.nodes[c.node].op_type, c)
    return found.reshape(*found.shape[:2], -1)


def cut_kernels(kernels: Kernels, mask: EdgeMask) -> ChannelMap:
    """The masked reference: the model with the slices that do not stay set to zero, under the same channel map."""
    changed: dict[str, TensorProto] = {}
    for held in kernels.free:
        gone = kernels.nonzero[held.node] & ~mask[held.node]
        if np.any(gone):
            changed[held.name] = _without(kernels.channel_map, held, gone)
    graph = kernels.channel_map.graph
    return replace(kernels.channel_map, graph=Graph(with_constants(graph.model, changed), graph.folder))


def _without(channel_map: ChannelMap, held: StoredKernels, gone: BoolArray) -> TensorProto:
    values = np.array(channel_map.graph.values(held.name))
    nothing = zeros(channel_map, held.way[-1], values.shape)
    first = held.contractions[0]
    slices = _by_slice(channel_map, first, held.way, values)
    if np.may_share_memory(slices, values):
        zero = _by_slice(channel_map, first, held.way, nothing)
        np.copyto(slices, zero, where=gone[:, :, None], casting="unsafe")  # a zero of whatever type
    else:
        places = _places(channel_map, first, held.way)[gone].ravel()
        values.reshape(-1)[places] = nothing.reshape(-1)[places]
    return with_numbers(channel_map.graph.constants[held.name], values)
