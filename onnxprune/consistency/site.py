"""One node, and what a rule may ask and say of it.

A rule speaks by ``expect_…``. What it does not know is None: a shape that could not be inferred, a size that depends on
what is fed. To expect something of None, or to expect None, says nothing: a rule that is unsure is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.graph import attribute, node_name
from onnxprune.shapes import Shapes

__all__ = ["Fault", "Site"]

Size = int | None
Shape = tuple[Size, ...]


@dataclass(frozen=True)
class Fault:
    """Something that does not fit.

    ``place``: a tensor name that stays the same however the node is edited (its first output). ``where``: the node
    as a report calls it. ``tensor``: what has the wrong size; ``found`` and ``expected``: in words.
    """

    place: str
    where: str
    tensor: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.where}: '{self.tensor}' has {self.found}, expected {self.expected}"


class Site:
    """A node with the shapes of its tensors.

    ``shapes``: with two guesses of the sizes that are open; where they disagree a size is open. ``values``: tensor →
    its numbers, where known and not too many.
    """

    def __init__(self, node: NodeProto, opset: int, shapes: Shapes,
                 values: Callable[[str], NDArray[np.generic] | None]) -> None:  # fmt: skip
        self.node = node
        self.opset = opset
        self.shapes = shapes
        self.values = values
        self.faults: list[Fault] = []

    # -- asking

    def has(self, k: int) -> bool:
        """Whether input k is given."""
        return k < len(self.node.input) and bool(self.node.input[k])

    def shape(self, k: int) -> Shape | None:
        return self._known(self.node.input[k]) if self.has(k) else None

    def out(self, k: int = 0) -> Shape | None:
        return self._known(self.node.output[k]) if k < len(self.node.output) else None

    def _known(self, name: str) -> Shape | None:
        first = self.shapes.of.get(name)
        if first is None or not self.shapes.other:
            return first
        second = self.shapes.other.get(name)
        if second is None or len(second) != len(first):
            return None
        return tuple(a if a == b else None for a, b in zip(first, second, strict=True))

    def elements(self, name: str) -> tuple[int, int]:
        """How many elements a tensor of known shape has under either guess."""
        first = self.shapes.of[name]
        return prod(first), prod(self.shapes.other.get(name, first))

    def rank(self, k: int) -> Size:
        shape = self.shape(k)
        return None if shape is None else len(shape)

    def size(self, k: int, axis: int) -> Size:
        """The size of an axis of input k; None where it is unknown or there is no such axis."""
        shape = self.shape(k)
        return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None

    def integer(self, name: str, default: int) -> int:
        value = attribute(self.node, name)
        return int(value) if isinstance(value, int) else default

    def integers(self, name: str) -> list[int] | None:
        value = attribute(self.node, name)
        return [int(v) for v in value] if isinstance(value, list) else None

    def numbers(self, k: int) -> list[int] | None:
        """The integers that input k holds, if they are known."""
        value = self.values(self.node.input[k]) if self.has(k) else None
        return None if value is None or value.dtype.kind not in "iu" else [int(v) for v in value.ravel()]

    def axes(self, k: int) -> list[int] | None:
        """Axes, given as an attribute (older opsets) or as input k; None where they are absent or unknown."""
        held = self.integers("axes")
        return self.numbers(k) if held is None else held

    # -- saying

    def fault(self, tensor: str, found: str, expected: str) -> None:
        place = next((name for name in self.node.output if name), self.node.name)
        where = f"{self.node.op_type} '{node_name(self.node)}'"
        self.faults.append(Fault(place, where, tensor, found, expected))

    def expect(self, k: int, holds: bool, found: str, expected: str) -> None:
        if not holds:
            self.fault(self.node.input[k] if self.has(k) else next(iter(self.node.output), ""), found, expected)

    def expect_rank(self, k: int, rank: Size, why: str) -> None:
        shape = self.shape(k)
        if shape is not None and rank is not None:
            self.expect(k, len(shape) == rank, f"shape {list(shape)}", f"rank {rank} ({why})")

    def expect_size(self, k: int, axis: int, size: Size, why: str) -> None:
        """An axis of input k has this size."""
        found = self.size(k, axis)
        if found is not None and size is not None:
            self.expect(k, found == size, f"size {found} along axis {axis}", f"{size} ({why})")

    def expect_multiple(self, k: int, axis: int, divisor: int, why: str) -> None:
        found = self.size(k, axis)
        if found is not None and divisor > 0:
            self.expect(k, found % divisor == 0, f"size {found} along axis {axis}", f"a multiple of {divisor} ({why})")

    def expect_shape(self, k: int, shape: Sequence[Size], why: str) -> None:
        """Input k has this shape; None is any size."""
        found = self.shape(k)
        if found is not None:
            pairs = zip(found, shape, strict=False)
            fits = len(found) == len(shape) and all(None in pair or pair[0] == pair[1] for pair in pairs)
            self.expect(k, fits, f"shape {_shown(found)}", f"{_shown(shape)} ({why})")

    def expect_vector_or_one(self, k: int, size: Size, why: str) -> None:
        """Input k holds one number, or one for each of ``size``."""
        found = self.shape(k)
        if found is not None and size is not None and None not in found:
            count = prod(n for n in found if n is not None)
            self.expect(k, count in (1, size), f"{count} elements", f"1 or {size} ({why})")

    def expect_onto(self, k: int, target: Sequence[Size] | None, why: str) -> None:
        """Input k broadcasts to a shape, without making it any larger."""
        found = self.shape(k)
        if found is not None and target is not None:
            pairs = zip((1,) * (len(target) - len(found)) + found, target, strict=False)
            fits = len(found) <= len(target) and all(a in (1, None, b) or b is None for a, b in pairs)
            self.expect(k, fits, f"shape {_shown(found)}", f"one that broadcasts to {_shown(target)} ({why})")

    def expect_broadcast(self, *inputs: int) -> None:
        """These inputs broadcast together."""
        joint: Shape = ()
        for k in inputs:
            shape = self.shape(k)
            if shape is not None:
                self.expect_pairs(k, shape, joint)
                rank = max(len(joint), len(shape))
                pairs = zip(_padded(joint, rank), _padded(shape, rank), strict=True)
                joint = tuple(b if a == 1 else a if b == 1 or a is not None else b for a, b in pairs)

    def expect_pairs(self, k: int, shape: Shape, other: Shape) -> None:
        """Two shapes broadcast; input k is named where they do not."""
        rank = max(len(shape), len(other))
        pairs = zip(_padded(shape, rank), _padded(other, rank), strict=True)
        fits = all(1 in pair or None in pair or pair[0] == pair[1] for pair in pairs)
        self.expect(k, fits, f"shape {_shown(shape)}", f"one that broadcasts with {_shown(other)}")


def _padded(shape: Shape, rank: int) -> Shape:
    return (1,) * (rank - len(shape)) + shape


def _shown(shape: Sequence[Size]) -> str:
    return f"[{', '.join('?' if n is None else str(n) for n in shape)}]"
