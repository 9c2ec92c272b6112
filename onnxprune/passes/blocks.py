"""Independent blocks: a contraction whose kernel slices fall apart becomes several smaller ones, or a grouped one.

Inputs and outputs of a contraction are the two sides of a graph, its non-zero kernel slices the edges. Where that graph has
several components, no output of one reads an input of another:

    y[O₁] = W[O₁, I₁] · x[I₁],  y[O₂] = W[O₂, I₂] · x[I₂], …

Each component may be a contraction of its own, the results joined and, if need be, put in order. Components of a
convolution that are all equally large may be the groups of one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto
from scipy.sparse import bmat, csr_array
from scipy.sparse.csgraph import connected_components

from onnxprune.channels import Contraction
from onnxprune.graph import attribute
from onnxprune.messages import set_attributes
from onnxprune.ops.parts import IntArray
from onnxprune.passes.overlay import Overlay, Part
from onnxprune.passes.settle import Choice

__all__ = ["Block", "blocks_of", "in_blocks", "is_connected"]

BoolArray = NDArray[np.bool_]

_MOST = 16  # blocks of one contraction; the smallest are put together beyond that


@dataclass(frozen=True)
class Block:
    """Outputs and the inputs they read, indices in ascending order."""

    outputs: IntArray
    inputs: IntArray


def is_connected(block: BoolArray) -> bool:
    """Whether the non-zero slices [out, in] join all outputs and inputs that have any; a few sweeps over the block."""
    if np.any(np.all(block, axis=1)):
        return True  # an output that reads all inputs
    rows, columns = np.any(block, axis=1), np.any(block, axis=0)
    if not np.any(rows):
        return True
    reached, before = np.arange(len(rows)) == int(np.argmax(rows)), 0
    while int(np.count_nonzero(reached)) > before:
        before = int(np.count_nonzero(reached))
        seen = np.any(block[reached], axis=0)
        if np.array_equal(seen, columns):
            return True
        reached = np.any(block[:, seen], axis=1)
    return False


def blocks_of(block: BoolArray) -> list[Block]:
    """The components of the non-zero slices [out, in], by their first output. Outputs that read nothing go to the first."""
    sides = csr_array(block)
    _, label = connected_components(bmat([[None, sides], [sides.T, None]]), directed=False)
    rows, columns = label[: len(block)].copy(), label[len(block) :]
    read = np.unique(columns[np.any(block, axis=0)])
    if not len(read):
        return []
    size = np.bincount(rows, minlength=label.max() + 1)[read] * np.bincount(columns, minlength=label.max() + 1)[read]
    small = read[np.argsort(-size, kind="stable")][_MOST - 1 :]
    rows, columns = (np.where(np.isin(side, small), small[-1:].sum(), side) for side in (rows, columns))
    rows[~np.any(block, axis=1)] = read[0]
    used = np.any(block, axis=0)
    found = [Block(np.flatnonzero(rows == k), np.flatnonzero((columns == k) & used)) for k in np.unique(columns[used])]
    return sorted(found, key=lambda b: int(b.outputs[0]))


@dataclass(frozen=True)
class _Place:
    """Axes of a contraction: of its data, weight (in, out) and output."""

    data: int
    weight_in: int
    weight_out: int
    made: int


def _place(overlay: Overlay, node: NodeProto, c: Contraction) -> _Place | None:
    """None for what is not split: computed or shared weights, other operators, biases of another kind."""
    if node.domain not in ("", "ai.onnx") or (c.data, c.weight) != (0, 1) or c.groups > 1:
        return None
    weight, made = node.input[1], overlay.shape.get(node.output[0], ())
    if node.op_type not in ("Conv", "Gemm", "MatMul") or attribute(node, "transA") or not made:
        return None
    if weight not in overlay.graph.constants or overlay.is_shared(weight) or node.input[0] not in overlay.shape:
        return None
    if len(overlay.shape[weight]) != 2 and node.op_type != "Conv":
        return None
    if c.bias is not None and overlay.shape.get(node.input[c.bias]) != (len(c.outputs),):
        return None
    axis = 1 if node.op_type == "Conv" else len(made) - 1
    data = 1 if node.op_type == "Conv" else len(overlay.shape[node.input[0]]) - 1
    return _Place(data, c.in_axis, c.out_axis, axis)


def separate(overlay: Overlay, c: Contraction, blocks: Sequence[Block]) -> Choice | None:
    """A contraction for each block, joined."""
    node = overlay.graph.nodes[c.node]
    place = _place(overlay, node, c)
    if place is None:
        return None
    names = [_of_block(overlay, c, place, node, block, k) for k, block in enumerate(blocks)]
    made, order = node.output[0], np.concatenate([block.outputs for block in blocks])
    joined = onnx.helper.make_node("Concat", names, [made], node.name, axis=place.made)
    return Choice(c.node, _in_order(overlay, c.node, joined, order, place.made), True, _fewer(c, blocks))


def _of_block(overlay: Overlay, c: Contraction, place: _Place, node: NodeProto, block: Block, k: int) -> str:
    result = NodeProto()
    result.CopyFrom(node)
    weight = overlay.cut(node.input[1], {place.weight_in: block.inputs, place.weight_out: block.outputs})
    data = overlay.part(Part(node.input[0], place.data, block.inputs))
    result.input[0], result.input[1] = data, weight
    if c.bias is not None:
        result.input[c.bias] = overlay.part(Part(node.input[c.bias], 0, block.outputs))
    result.output[0], result.name = f"{node.output[0]}_block{k}", f"{node.name or node.output[0]}_block{k}"
    shape = overlay.shape[node.output[0]]
    return overlay.lay(result, c.node - 1, (*shape[: place.made], len(block.outputs), *shape[place.made + 1 :]))


def grouped(overlay: Overlay, c: Contraction, blocks: Sequence[Block]) -> Choice | None:
    """Blocks that are equally large as the groups of one convolution."""
    node = overlay.graph.nodes[c.node]
    place = _place(overlay, node, c)
    sizes = {(len(block.outputs), len(block.inputs)) for block in blocks}
    if place is None or node.op_type != "Conv" or len(sizes) > 1:
        return None
    inputs, outputs = (np.concatenate([getattr(b, side) for b in blocks]) for side in ("inputs", "outputs"))
    result = NodeProto()
    result.CopyFrom(node)
    values = overlay.graph.values(node.input[1])
    parts = [values[np.ix_(block.outputs, block.inputs)] for block in blocks]
    result.input[0] = overlay.part(Part(node.input[0], place.data, inputs))
    result.input[1] = overlay.stored(node.input[1], np.concatenate(parts))
    if c.bias is not None:
        result.input[c.bias] = overlay.part(Part(node.input[c.bias], 0, outputs))
    set_attributes(result, {"group": len(blocks)})
    ordered = _in_order(overlay, c.node, result, outputs, place.made)
    return Choice(c.node, ordered, ordered is not result, _fewer(c, blocks))


def _fewer(c: Contraction, blocks: Sequence[Block]) -> int:
    """Channels that the blocks read; 0 where these are all."""
    read = sum(len(block.inputs) for block in blocks)
    return read if read < len(c.inputs) else 0


def _in_order(overlay: Overlay, index: int, node: NodeProto, order: IntArray, axis: int) -> NodeProto:
    """The node, or a Gather behind it where its outputs are not in their order."""
    if np.array_equal(order, np.arange(len(order))):
        return node
    made = node.output[0]
    node.output[0] = f"{made}_unordered"
    inner = overlay.lay(node, index - 1, overlay.shape[made])
    places = overlay.constant(f"{made}_order", np.argsort(order))
    return onnx.helper.make_node("Gather", [inner, places], [made], overlay.name(f"{made}_Gather"), axis=axis)


def in_blocks(overlay: Overlay, contractions: Collection[Contraction], nonzero: Mapping[int, BoolArray]
              ) -> tuple[list[Choice], list[Choice], dict[int, int]]:  # fmt: skip
    """Contractions that fall apart: each block by itself, as groups of a convolution; node → number of blocks."""
    apart, groups, counts = [], [], {}
    for c in contractions:
        block = nonzero[c.node]
        found = [] if c.groups > 1 or block.all() or is_connected(block) else blocks_of(block)
        if len(found) > 1:
            counts[c.node] = len(found)
            apart += [choice for choice in (separate(overlay, c, found),) if choice]
            groups += [choice for choice in (grouped(overlay, c, found),) if choice]
    return apart, groups, counts

