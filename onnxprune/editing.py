"""Editing one node for the channels that remain.

graphsurgeon is the editing view of the model (see ``onnxprune.passes.rewrite``); a ``NodeEditor`` joins a
graphsurgeon node to what the channel map says of it, for the ``resize_…`` functions of ``onnxprune.ops``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune.channels import Axes, ChannelMap, Ids, MapBuilder, NodeContext

__all__ = ["Edits", "NodeEditor"]


@dataclass
class Edits:
    """What the editors of a graph share: names already taken, constants that only one node reads and that get another
    value under the same name, and nodes to insert before or after others."""

    names: set[str]
    replaced: dict[str, NDArray[np.generic]] = field(default_factory=dict)
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

    def __init__(self, channel_map: ChannelMap, keep: NDArray[np.bool_], edits: Edits, index: int,
                 node: gs.Node) -> None:  # fmt: skip
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

    def shrunk(self) -> dict[int, tuple[int, int]]:
        """Axis of the first output → (what is left of it, what there was), for axes that lost channels."""
        held = enumerate(self.out_axes(0))
        return {a: (self.kept_count(ids), len(ids)) for a, ids in held if ids is not None and self.changed(ids)}

    @property
    def is_renormalised(self) -> bool:
        """Whether the node may be computed over fewer channels, so that nothing has to make up for them."""
        name = self.context.node.name or self.context.node.output[0]
        return any(held == name for held, _ in self.map.renormalised)

    def emptied(self, k: int) -> bool:
        """Whether nothing is left of input k."""
        return any(ids is not None and len(ids) > 0 and not np.any(self.keep[ids]) for ids in self.axes(k))

    def replace(self, k: int, value: NDArray[np.generic]) -> None:
        """Make input k a new constant: in place of the old one, where nobody else reads that."""
        held = self.map.graph.nodes[self.index].input
        old = held[k] if k < len(held) else ""
        if self._is_own(old):
            self.edits.replaced[old] = np.array(value)
            return
        constant = gs.Constant(self.edits.name(old or f"{self.node.outputs[0].name}_input{k}"), np.array(value))
        if k < len(self.node.inputs):
            self.node.inputs[k] = constant
        else:
            self.node.inputs.append(constant)

    def _is_own(self, name: str) -> bool:
        """Whether a stored constant is read once, by this node alone."""
        graph = self.map.graph
        elsewhere = name in graph.captured or name in graph.outputs
        return name in graph.constants and len(graph.consumers[name]) == 1 and not elsewhere

    def override(self, k: int, entries: Mapping[int, int]) -> None:
        """Set entries of a 1-D integer input whose value is known; a constant takes its place."""
        known = self.context.integers(k)
        assert known is not None
        name = self.map.graph.nodes[self.index].input[k]
        value = np.array([entries.get(i, v) for i, v in enumerate(known)], self._integer_type(name))
        self.replace(k, value.reshape(self.map.shapes.of[name]))

    def shrink(self, k: int, sizes: Mapping[int, tuple[int, int]]) -> None:
        """Let entries of a computed 1-D input follow the channels: entry → (what is left of it, what there was).

        value − value·gone / size, rounded towards zero, leaves the 0, 1 and −1 of a Reshape as they are, and is right
        for sizes that depend on what is fed (batch × heads).
        """
        name = self.map.graph.nodes[self.index].input[k]
        length = self.map.shapes.of[name][0]
        gone = [sizes[i][1] - sizes[i][0] if i in sizes else 0 for i in range(length)]
        size = [sizes[i][1] if i in sizes else 1 for i in range(length)]
        old, kind = self.node.inputs[k], self._integer_type(name)
        lost = self._computed(old, (("Mul", gone), ("Div", size)), kind, self.edits.before)
        self.node.inputs[k] = self._computed(old, (("Sub", lost),), kind, self.edits.before)

    def _integer_type(self, name: str) -> type[np.int32] | type[np.int64]:
        return np.int32 if self.map.shapes.types.get(name) == TensorProto.INT32 else np.int64

    def _computed(self, old: gs.Tensor, steps: Iterable[tuple[str, list[int] | gs.Variable]],
                  kind: type[np.int32] | type[np.int64], place: dict[int, list[gs.Node]]) -> gs.Variable:  # fmt: skip
        """Nodes that compute on a tensor of integers, one operator and operand after another; returns the result."""
        result, stem = old, old.name
        for op, operand in steps:
            if isinstance(operand, list):
                operand = gs.Constant(self.edits.name(f"{stem}_{op.lower()}"), np.array(operand, kind))
            made = gs.Variable(self.edits.name(stem))
            name = self.edits.name(f"{stem}_{op}")
            place.setdefault(self.index, []).append(gs.Node(op, name, inputs=[result, operand], outputs=[made]))
            result = made
        return result

    def gather_after(self, axis: int, indices: NDArray[np.int64]) -> None:
        """Pick indices of the node's output along an axis by a Gather behind it."""
        old = self.node.outputs[0]
        inner = gs.Variable(self.edits.name(old.name))
        self.node.outputs = [inner]
        picked = gs.Constant(self.edits.name(f"{old.name}_indices"), np.asarray(indices, np.int64))
        gather = gs.Node("Gather", self.edits.name(f"{old.name}_Gather"), {"axis": axis}, [inner, picked], [old])
        self.edits.after.setdefault(self.index, []).insert(0, gather)

    def scale(self, k: int, factor: float) -> None:
        """Multiply what is left of input k by a number: a stored constant in place, else by a Mul before the node."""
        name = self.map.graph.nodes[self.index].input[k]
        kind = onnx.helper.tensor_dtype_to_np_dtype(self.map.shapes.types[name])
        if name in self.map.graph.constants:
            values = self.map.graph.values(name)
            for axis, ids in enumerate(self.axes(k)):
                values = values if ids is None else np.compress(self.kept(ids), values, axis)
            self.replace(k, np.asarray(values.astype(np.float64) * factor, kind))
            return
        made = gs.Variable(self.edits.name(name))
        number = gs.Constant(self.edits.name(f"{name}_scale"), np.array(factor, kind))
        scaled = gs.Node("Mul", self.edits.name(f"{name}_Mul"), inputs=[self.node.inputs[k], number], outputs=[made])
        self.edits.before.setdefault(self.index, []).append(scaled)
        self.node.inputs[k] = made

    def scale_after(self, factor: float) -> None:
        """Multiply the node's output by a number, by a Mul behind it."""
        old = self.node.outputs[0]
        inner = gs.Variable(self.edits.name(old.name))
        self.node.outputs = [inner]
        kind = onnx.helper.tensor_dtype_to_np_dtype(self.map.shapes.types[old.name])
        number = gs.Constant(self.edits.name(f"{old.name}_scale"), np.array(factor, kind))
        scaled = gs.Node("Mul", self.edits.name(f"{old.name}_Mul"), inputs=[inner, number], outputs=[old])
        self.edits.after.setdefault(self.index, []).insert(0, scaled)

    def restore_output(self, entries: Mapping[int, tuple[int, int]], length: int) -> None:
        """Let a Shape node go on reporting the original sizes, so that arithmetic on them stays as it was.

        ``entries``: entry → (the size that is left, the size there was).
        """
        old = self.node.outputs[0]
        inner = gs.Variable(self.edits.name(old.name))
        self.node.outputs = [inner]
        left, was = ([entries[i][j] if i in entries else 1 for i in range(length)] for j in (0, 1))
        self._computed(inner, (("Mul", was), ("Div", left)), np.int64, self.edits.after)
        self.edits.after[self.index][-1].outputs = [old]
