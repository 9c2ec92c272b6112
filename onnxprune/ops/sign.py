"""Tensors that are never negative, or always positive, whatever the model is fed.

A function with a pole or a limited domain (Log, Reciprocal, Sqrt, a denominator) may only carry channels through if it
is finite at removed channels too: what is infinite or NaN there would reach the outputs of the masked reference as
0·∞. What a removed channel holds depends on the masks, so only the structure of the graph counts: Exp is positive,
x·x + 1 is, and so is their sum; a constant that the masked reference sets to zero is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.channels import MapBuilder, NodeContext
from onnxprune.graph import attribute

__all__ = ["Sign", "sign"]

_DEPTH = 12  # operators followed backwards from the one that asks


class Sign(IntEnum):
    """What is known of a tensor; a greater value says more."""

    ANY = 0
    NOT_NEGATIVE = 1
    POSITIVE = 2


def sign(ctx: NodeContext, k: int) -> Sign:
    """What is known of the sign of input k of a node."""
    return _Node(ctx.builder, ctx.index, _DEPTH).sign(k)


@dataclass(frozen=True)
class _Node:
    """A node on the way backwards, and how many more operators are followed."""

    builder: MapBuilder
    index: int
    depth: int

    @property
    def proto(self) -> NodeProto:
        return self.builder.graph.nodes[self.index]

    def sign(self, k: int) -> Sign:
        """The sign of input k."""
        name = self.proto.input[k] if k < len(self.proto.input) else ""
        graph = self.builder.graph
        least = graph.least(name) if name in graph.constants else self._size(name)
        if least is not None:
            return self._sign_of(least, k)
        maker = self.builder.graph.producer.get(name)
        if maker is None or not self.depth:
            return Sign.ANY
        node = _Node(self.builder, maker, self.depth - 1)
        rule = _RULES.get(node.proto.op_type) if node.proto.domain in ("", "ai.onnx") else None
        return Sign.ANY if rule is None else rule(node)

    def signs(self) -> list[Sign]:
        """The signs of all inputs."""
        return [self.sign(k) for k in range(len(self.proto.input))]

    def constant(self, k: int) -> NDArray[np.generic] | None:
        """The numbers of input k, if it is a stored constant."""
        name = self.proto.input[k] if k < len(self.proto.input) else ""
        return self.builder.graph.values(name) if name in self.builder.graph.constants else None

    def _size(self, name: str) -> float | None:
        """A single number computed from the sizes of activations, such as the count that a variance divides by.

        What is computed from stored constants is left out: the masked reference may make it zero.
        """
        held = self.builder.shapes.values.get(name)
        if held is None or held.size != 1 or held.dtype.kind not in "fiu" or name in self.builder.derived:
            return None
        return float(held.item())

    def _sign_of(self, least: float, k: int) -> Sign:
        stays = (self.index, k) not in self.builder.masked
        if least > 0:
            return Sign.POSITIVE if stays else Sign.NOT_NEGATIVE
        return Sign.NOT_NEGATIVE if least == 0 else Sign.ANY


_Rule = Callable[[_Node], Sign]


def _always(found: Sign) -> _Rule:
    return lambda node: found


def _same(node: _Node) -> Sign:
    return node.sign(0)


def _least(node: _Node) -> Sign:
    return min(node.signs())


def _greatest(node: _Node) -> Sign:
    return max(node.signs())


def _sum(node: _Node) -> Sign:
    signs = node.signs()
    return Sign.ANY if Sign.ANY in signs else max(signs)


def _product(node: _Node) -> Sign:
    square = node.proto.input[0] == node.proto.input[1]
    return max(min(node.signs()), Sign.NOT_NEGATIVE if square else Sign.ANY)


def _quotient(node: _Node) -> Sign:
    return node.sign(0) if node.sign(1) == Sign.POSITIVE else Sign.ANY


def _power(node: _Node) -> Sign:
    exponent = node.constant(1)
    even = exponent is not None and bool(np.all(np.asarray(exponent, np.float64) % 2 == 0))
    if node.sign(0) == Sign.POSITIVE:
        return Sign.POSITIVE
    return Sign.NOT_NEGATIVE if even else Sign.ANY


def _clip(node: _Node) -> Sign:
    """At least the lower bound: an attribute before opset 11."""
    held = attribute(node.proto, "min")
    if not isinstance(held, float):
        return node.sign(1)
    return Sign.POSITIVE if held > 0 else Sign.NOT_NEGATIVE if held == 0 else Sign.ANY


def _where(node: _Node) -> Sign:
    return min(node.sign(1), node.sign(2))


def _rows(names: str, rule: _Rule) -> dict[str, _Rule]:
    return dict.fromkeys(names.split(), rule)


_RULES: dict[str, _Rule] = {
    **_rows("Exp Sigmoid Softplus Cosh", _always(Sign.POSITIVE)),
    **_rows("Abs HardSigmoid ReduceL1 ReduceL2 ReduceSumSquare Relu Softmax", _always(Sign.NOT_NEGATIVE)),
    **_rows("Cast Dropout Expand Flatten Gather GlobalAveragePool GlobalMaxPool Identity MaxPool ReduceMax ReduceMean "
            "ReduceMin ReduceSum Reshape Slice Split Sqrt Squeeze Tile Transpose Unsqueeze", _same),
    **_rows("Concat Mean Min", _least),
    **_rows("Add Sum", _sum),
    **_rows("Max", _greatest),
    **_rows("Mul", _product),
    **_rows("Div", _quotient),
    **_rows("Pow", _power),
    **_rows("Clip", _clip),
    **_rows("Where", _where),
}
