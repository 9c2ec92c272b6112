"""Editing one node for the channels that remain.

graphsurgeon is the editing view of the model (see ``onnxprune.passes.rewrite``); a ``NodeEditor`` joins a
graphsurgeon node to what the channel map says of it, for the ``resize_…`` functions of ``onnxprune.ops``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxprune.channels import Axes, ChannelMap, Ids, MapBuilder, NodeContext

__all__ = ["Edits", "NodeEditor"]


@dataclass
class Edits:
    """What the editors of a graph share: names already taken, and nodes to insert before or after others."""

    names: set[str]
    before: dict[int, list[gs.Node]] = field(default_factory=dict)
    after: dict[int, list[gs.Node]] = field(default_factory=dict)

    def name(self, stem: str) -> str:
        """A tensor name that is not taken yet."""
        found, count = f"{stem}_kept", 1
        while found in self.names:
            count += 1
            found = f"{stem}_kept{count}"
        self.names.add(found)
        return found


class NodeEditor:
    """One node, the axes of its inputs and outputs, and the groups that are kept (bool [groups])."""

    def __init__(self, channel_map: ChannelMap, keep: NDArray[np.bool_], edits: Edits, index: int, node: gs.Node) -> None:
        self.map = channel_map
        self.keep = keep
        self.edits = edits
        self.index = index
        self.node = node
        self.opset = channel_map.graph.opset
        self.context = NodeContext(MapBuilder(channel_map.graph, channel_map.shapes), index)

    def axes(self, k: int) -> Axes:
        """Group numbers along each axis of input k as it was."""
        found = self.map.uses.get((self.index, k))
        if found is not None:
            return found
        name = self.map.graph.nodes[self.index].input[k]
        return self.map.axes.get(name, (None,) * len(self.map.shapes.of.get(name, ())))

    def out_axes(self, k: int) -> Axes:
        name = self.map.graph.nodes[self.index].output[k]
        return self.map.axes.get(name, (None,) * len(self.map.shapes.of.get(name, ())))

    def kept(self, ids: Ids) -> NDArray[np.bool_]:
        """Which indices of an axis remain."""
        return self.keep[ids]

    def kept_count(self, ids: Ids) -> int:
        return int(np.count_nonzero(self.keep[ids]))

    def changed(self, ids: Ids) -> bool:
        return not bool(np.all(self.keep[ids]))

    def emptied(self, k: int) -> bool:
        """Whether nothing is left of input k."""
        return any(ids is not None and not np.any(self.keep[ids]) for ids in self.axes(k))

    def replace(self, k: int, value: NDArray[np.generic]) -> None:
        """Make input k a new constant."""
        name = self.map.graph.nodes[self.index].input
        stem = name[k] if k < len(name) and name[k] else f"{self.node.outputs[0].name}_input{k}"
        constant = gs.Constant(self.edits.name(stem), np.array(value))
        if k < len(self.node.inputs):
            self.node.inputs[k] = constant
        else:
            self.node.inputs.append(constant)

    def override(self, k: int, entries: Mapping[int, int], keep: Sequence[int] = ()) -> None:
        """Set entries of a 1-D integer input; entries whose old value is in ``keep`` follow by themselves.

        A stored constant is replaced. A computed one stays, and its entries are overridden behind it:
        value·mask + sizes, which every opset has for int64.
        """
        name = self.map.graph.nodes[self.index].input[k]
        if name in self.map.graph.constants:
            value = np.array(self.map.graph.values(name))
            for entry, size in entries.items():
                if int(value.flat[entry]) not in keep:
                    value.flat[entry] = size
            self.replace(k, value)
            return
        length = self.map.shapes.of[name][0]
        mask, sizes = np.ones(length, np.int64), np.zeros(length, np.int64)
        for entry, size in entries.items():
            mask[entry], sizes[entry] = 0, size
        self.node.inputs[k] = self._override_computed(self.node.inputs[k], mask, sizes, self.edits.before)

    def _override_computed(self, old: gs.Tensor, mask: NDArray[np.int64], sizes: NDArray[np.int64],
                           place: dict[int, list[gs.Node]]) -> gs.Variable:  # fmt: skip
        masked, final = (gs.Variable(self.edits.name(old.name)) for _ in range(2))
        nodes = place.setdefault(self.index, [])
        for op, inputs, output, value in (("Mul", old, masked, mask), ("Add", masked, final, sizes)):
            constant = gs.Constant(self.edits.name(f"{old.name}_{op.lower()}"), value)
            nodes.append(gs.Node(op, self.edits.name(f"{old.name}_{op}"), inputs=[inputs, constant], outputs=[output]))
        return final

    def gather_after(self, axis: int, indices: NDArray[np.int64]) -> None:
        """Pick indices of the node's output along an axis by a Gather behind it."""
        old = self.node.outputs[0]
        inner = gs.Variable(self.edits.name(old.name))
        self.node.outputs = [inner]
        picked = gs.Constant(self.edits.name(f"{old.name}_indices"), np.asarray(indices, np.int64))
        self.edits.after.setdefault(self.index, []).append(
            gs.Node("Gather", self.edits.name(f"{old.name}_Gather"), {"axis": axis}, [inner, picked], [old])
        )

    def restore_output(self, entries: Mapping[int, int], length: int) -> None:
        """Let a Shape node go on reporting the original sizes, so that arithmetic on them stays as it was."""
        old = self.node.outputs[0]
        inner = gs.Variable(self.edits.name(old.name))
        self.node.outputs = [inner]
        mask, sizes = np.ones(length, np.int64), np.zeros(length, np.int64)
        for entry, size in entries.items():
            mask[entry], sizes[entry] = 0, size
        self._override_computed(inner, mask, sizes, self.edits.after)
        self.edits.after[self.index][-1].outputs = [old]
