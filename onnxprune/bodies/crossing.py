"""Shapes across the edge of a body: what a formal makes of what goes in, and a result of what the body makes.

    If     result   the shape of its branches, where they have one and the same, or one is always taken
    Loop   state    the shape of its initial value, as long as the body gives back a tensor of that shape
           output   [iterations, …]; how many there are is as open as a dimension of an input
    Scan   state    the shape of its initial value; input: without the axis that is cut; output: with it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import NodeProto, TensorProto

from onnxprune.bodies.markers import FORMAL, RESULT, number

__all__ = ["Crossing"]

Shape = tuple[int, ...]


@dataclass
class Crossing:
    """``iterations``: taken for the trip count of loops. ``unstable``: states (owner, place of the output) whose shape
    is not the same in every iteration."""

    iterations: int
    unstable: set[tuple[int, int]] = field(default_factory=set)
    taken: Mapping[int, int] = field(default_factory=dict)  # owner of an If → the input of its results that is taken
    slices: dict[int, int] = field(default_factory=dict)  # owner of a Scan → its iterations

    def shape(self, node: NodeProto, of: Mapping[str, Shape]) -> Shape | None:
        """The shape of what a marker makes, None where it is not known."""
        if node.domain == FORMAL:
            return self._formal(node, of)
        if node.domain != RESULT or node.op_type == "SequenceMap":
            return None
        made = of.get(node.input[-1])
        if node.op_type == "If":
            taken = self.taken.get(number(node, "owner"))
            return of.get(node.input[taken]) if taken else made if made == of.get(node.input[1]) else None
        owner = number(node, "owner")
        if number(node, "state"):
            stable = (owner, number(node, "place")) not in self.unstable
            return made if stable and made == of.get(node.input[-2]) else None
        count = self.iterations if node.op_type == "Loop" else self.slices.get(owner)
        if made is None or count is None:
            return None
        axis = number(node, "axis") if node.op_type == "Scan" else 0
        at = axis % (len(made) + 1)
        return (*made[:at], count, *made[at:])

    def _formal(self, node: NodeProto, of: Mapping[str, Shape]) -> Shape | None:
        if node.op_type == "Loop" and number(node, "place") < 2:
            return of.get(node.output[0], ())  # a scalar, unless declared otherwise
        given = of.get(node.input[0])
        if given is None or node.op_type == "SequenceMap":
            return None
        if number(node, "state"):
            place = number(node, "place") - (2 if node.op_type == "Loop" else 0)
            return None if (number(node, "owner"), place) in self.unstable else given
        if not given:
            return None
        axis = number(node, "axis") % len(given)
        self.slices[number(node, "owner")] = given[axis]
        return (*given[:axis], *given[axis + 1 :])

    def type(self, node: NodeProto, types: Mapping[str, int]) -> int | None:
        """The element type of what a marker makes."""
        if node.op_type == "SequenceMap":
            return None
        if node.domain == FORMAL and node.op_type == "Loop" and number(node, "place") < 2:
            return TensorProto.BOOL if number(node, "place") else TensorProto.INT64
        return types.get(node.input[-1])

    def learn(self, nodes: Sequence[NodeProto], of: Mapping[str, Shape]) -> bool:
        """Find states that came out in another shape than they went in; whether there were new ones."""
        before = len(self.unstable)
        for node in nodes:
            if node.domain == RESULT and node.op_type in ("Loop", "Scan") and number(node, "state"):
                made = of.get(node.input[-1])
                if made is None or made != of.get(node.input[-2]):
                    self.unstable.add((number(node, "owner"), number(node, "place")))
        return len(self.unstable) > before
