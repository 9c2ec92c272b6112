"""Channel shuffles written as Reshape → Transpose → Reshape.

[N, C, …] → [N, g, C/g, …] → [N, C/g, g, …] → [N, C, …] permutes the channels. Node by node, the tensor in the middle
would have to stay rectangular, which couples all branches of a ShuffleNet with each other. As a whole it is a Gather of
the channels in another order, which is what the rewriter makes of it once channels are missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import Axes, NodeContext, Shuffle
from onnxprune.graph import Graph, attribute
from onnxprune.shapes import Shape, Shapes

__all__ = ["find_shuffles", "shuffled"]


def shuffled(context: NodeContext, shuffle: Shuffle) -> list[Axes]:
    """The axes of the last output: those of the source, permuted along one."""
    builder = context.builder
    axes = builder.axes.get(shuffle.source, (None,) * len(context.out_shape()))
    if shuffle.source in builder.zero:
        builder.zero.add(context.node.output[0])
    ids = axes[shuffle.axis]
    if any(held is not None for held in axes):
        builder.shuffles[context.index] = shuffle
    permuted = None if ids is None else ids[shuffle.order]
    return [(*axes[: shuffle.axis], permuted, *axes[shuffle.axis + 1 :])]


def find_shuffles(graph: Graph, shapes: Shapes) -> dict[int, Shuffle]:
    """Index of the last Reshape → shuffle. All three nodes feed only each other."""
    found = {}
    for index, node in enumerate(graph.nodes):
        if node.op_type == "Transpose":
            shuffle = _around(graph, shapes, index)
            if shuffle is not None:
                found[graph.consumers[node.output[0]][0][0]] = shuffle
    return found


def _around(graph: Graph, shapes: Shapes, index: int) -> Shuffle | None:
    node = graph.nodes[index]
    if not node.input or not node.output:
        return None
    first, last = graph.producer.get(node.input[0]), graph.consumers.get(node.output[0], [])
    if first is None or graph.nodes[first].op_type != "Reshape" or len(last) != 1 or last[0][1] != 0:
        return None
    outside = graph.captured.union(graph.outputs)
    if len(graph.consumers[node.input[0]]) != 1 or outside & {node.input[0], node.output[0]}:
        return None
    closing = graph.nodes[last[0][0]]
    source = next(iter(graph.nodes[first].input), "")
    if not source or not closing.output or closing.op_type != "Reshape" or source in graph.constants:
        return None
    names, perm = (source, node.input[0], closing.output[0]), attribute(node, "perm")
    if not isinstance(perm, list) or any(name not in shapes.of for name in names):
        return None
    found = _permutation([shapes.of[name] for name in names], perm)
    again = _permutation([shapes.second(name) for name in names], perm)
    if found is None or again is None or found[0] != again[0] or not np.array_equal(found[1], again[1]):
        return None
    return Shuffle(source, *found, (first, index))


def _permutation(shapes: Sequence[Shape], perm: list[int]) -> tuple[int, NDArray[np.int64]] | None:
    """Axis and order, where the first Reshape splits one axis, the Transpose moves only its parts, and the last
    Reshape joins them. ``shapes``: before, between and after the Reshapes."""
    before, middle, after = shapes
    extra = len(middle) - len(before)
    if extra < 1 or before != after:
        return None
    moved = [a for a, p in enumerate(perm) if a != p]
    if not moved:
        return None
    for axis in range(len(before)):
        parts = range(axis, axis + extra + 1)
        plain = before[:axis] == middle[:axis] and before[axis + 1 :] == middle[axis + extra + 1 :]
        if plain and set(moved) <= set(parts):
            sizes = [middle[a] for a in parts]
            order = np.arange(before[axis]).reshape(sizes).transpose([perm[a] - axis for a in parts]).ravel()
            return axis, order
    return None
