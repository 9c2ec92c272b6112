"""Which of several ways to compute the same thing: nodes of a graph, or others laid over it.

A node costs what it takes at run time, once, as long as anybody reads it. Choices are taken and taken back one by one;
a count of the readers of every tensor tells which nodes come and go with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from onnxprune.passes.latency import Target, microseconds
from onnxprune.passes.overlay import Made, Overlay

__all__ = ["Choice", "Settlement"]


@dataclass(frozen=True)
class Choice:
    """Another node in place of the one at ``index``, with outputs of the same names."""

    index: int
    node: NodeProto


class Settlement:
    """``readers``: tensor → how many read it; ``replaced``: index of a node → what is in its place; ``cost``: of all
    nodes that are read, in µs. ``pinned``: tensors that are read in any case."""

    def __init__(self, overlay: Overlay, target: Target, pinned: Collection[str] = ()) -> None:
        self.overlay, self.graph, self.target = overlay, overlay.graph, target
        self.readers: Counter[str] = Counter()
        self.cost = 0.0
        self.replaced: dict[int, NodeProto] = {}
        self._maker: dict[str, int | Made] = dict(self.graph.producer)
        self._maker |= {name: made for made in overlay.made for name in made.node.output}
        outside = {*self.graph.outputs, *self.graph.captured}
        read = outside | set(self.graph.consumers)
        self._unread = {i for i, node in enumerate(self.graph.nodes) if not any(n in read for n in node.output)}
        self._read(sorted(outside | (self._maker.keys() & set(pinned))))
        for index in sorted(self._unread):  # nobody read them before, so they stay as they are
            self._read(self.graph.nodes[index].input)

    def settle(self, choices: Sequence[Choice], take_back: bool) -> list[Choice]:
        """Take all choices, then (``take_back``) back those that cost more than they save."""
        before, taken = self.cost, {choice.index for choice in choices}
        for choice in choices:
            self._swap(choice.index, choice.node)
        for choice in [*reversed(choices), *choices] if take_back else ():
            if choice.index in taken and self._is_better_without(choice):
                taken.remove(choice.index)
        pays = not take_back or self.cost < before
        return [choice for choice in choices if choice.index in taken and pays]

    def is_alive(self, maker: int | Made) -> bool:
        """Whether anybody reads what a node makes (a node of the graph by its index)."""
        if isinstance(maker, int) and maker in self._unread:
            return True
        return any(self.readers[name] for name in self.node(maker).output)

    def node(self, maker: int | Made) -> NodeProto:
        """The node in this place now."""
        return maker.node if isinstance(maker, Made) else self.replaced.get(maker, self.graph.nodes[maker])

    def _is_better_without(self, choice: Choice) -> bool:
        """Take a choice back if that costs less."""
        cost = self.cost
        self._swap(choice.index, self.graph.nodes[choice.index])
        if self.cost < cost:
            return True
        self._swap(choice.index, choice.node)
        return False

    def _swap(self, index: int, node: NodeProto) -> None:
        old, alive = self.node(index), self.is_alive(index)
        self.replaced[index] = node
        if alive:
            self.cost += self._cost(node) - self._cost(old)
            self._read(node.input)
            self._release(old.input)

    def _read(self, names: Iterable[str]) -> None:
        pending = [name for name in names if name]
        while pending:
            name = pending.pop()
            maker = self._maker.get(name)
            starts = maker is not None and not self.is_alive(maker)
            self.readers[name] += 1
            if starts and maker is not None:
                self.cost += self._cost(self.node(maker))
                pending += [read for read in self.node(maker).input if read]

    def _release(self, names: Iterable[str]) -> None:
        pending = [name for name in names if name]
        while pending:
            name = pending.pop()
            self.readers[name] -= 1
            maker = self._maker.get(name)
            if maker is not None and not self.is_alive(maker):
                self.cost -= self._cost(self.node(maker))
                pending += [read for read in self.node(maker).input if read]

    def _cost(self, node: NodeProto) -> float:
        before = self._maker.get(node.input[0]) if node.input else None
        operator = "" if before is None else self.node(before).op_type
        return microseconds(self.target, node, self.overlay.shape, operator)
