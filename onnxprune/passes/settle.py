"""Which of several ways to compute the same thing: nodes of a graph, or others laid over it.

A node costs what it takes at run time, once, as long as anybody reads it. Choices are taken and taken back one by one;
a count of the readers of every tensor tells which nodes come and go with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from onnxprune.passes.layout import Runs
from onnxprune.passes.latency import Target, microseconds, unfused
from onnxprune.passes.overlay import Made, Overlay

__all__ = ["Choice", "Settlement"]

_FAIR = 0.1  # of a node's cost; less may be nothing, as costs are rough
_FAIR_RUN = 0.01  # of a whole run
_MOST = 1_000_000  # nodes looked at to polish a choice


@dataclass(frozen=True)
class Choice:
    """Another node in place of the one at ``index``, with outputs of the same names. ``apart``: whether what follows
    can no longer be computed along with it. ``reads``: channels it reads, if those are fewer than before, else 0."""

    index: int
    node: NodeProto
    apart: bool = False
    reads: int = 0


class Settlement:
    """``readers``: tensor → how many read it; ``replaced``: index of a node → what is in its place; ``cost``: of all
    nodes that are read, in µs. ``pinned``: tensors that are read in any case."""

    def __init__(self, overlay: Overlay, target: Target, pinned: Collection[str] = ()) -> None:
        self.overlay, self.graph, self.target = overlay, overlay.graph, target
        self.readers: Counter[str] = Counter()
        self.cost = 0.0
        self.replaced: dict[int, Choice] = {}
        self._maker: dict[str, int | Made] = dict(self.graph.producer)
        self._outputs = [tuple(node.output) for node in self.graph.nodes]
        self._laid = 0  # nodes laid over the graph that are in there
        self._open = set(self.graph.overridable)
        self._see_laid()
        outside = {*self.graph.outputs, *self.graph.captured}
        read = outside | set(self.graph.consumers)
        self._unread = {i for i, node in enumerate(self.graph.nodes) if not any(n in read for n in node.output)}
        self._read(sorted(outside | (self._maker.keys() & set(pinned))))
        for index in sorted(self._unread):  # nobody read them before, so they stay as they are
            self._read(self.graph.nodes[index].input)

    def settle(self, choices: Sequence[Choice], take_back: bool) -> list[Choice]:
        """Take all choices, then (``take_back``) back those that cost more than they save; those that are left."""
        self._see_laid()
        before, taken = self.cost, {choice.index: self.choice(choice.index) for choice in choices}
        for choice in choices:
            self._swap(choice)
        for choice in [*reversed(choices), *choices] if take_back else ():
            if choice.index in taken and self._is_better_without(choice, taken[choice.index]):
                del taken[choice.index]
        if take_back and self.cost >= before:
            for former in taken.values():
                self._swap(former)
            taken = {}
        return [choice for choice in choices if choice.index in taken]

    def polish(self, choices: Iterable[Choice]) -> None:
        """Try each of these choices, and that of doing nothing, by the time of a whole run; all that runs better is
        taken. What is left changes nothing where that is as good."""
        self._see_laid()
        runs, nodes = Runs(self.target, self.overlay.shape, self._open), self.graph.nodes
        best = runs.microseconds(self.nodes(), self.graph.outputs)
        tries = [*choices, *(Choice(index, nodes[index]) for index in sorted(self.replaced))]
        for choice in tries[: _MOST // max(len(self._order), 1)]:
            before = self.choice(choice.index)
            if choice.node is before.node or not self.is_alive(choice.index):
                continue
            self._swap(choice)
            time = runs.microseconds(self.nodes(), self.graph.outputs)
            if time < best or (time == best and choice.node is nodes[choice.index]):
                best = time
            else:
                self._swap(before)
        if best > (1 - _FAIR_RUN) * runs.microseconds(nodes, self.graph.outputs):
            for index in sorted(self.replaced):
                self._swap(Choice(index, nodes[index]))

    def nodes(self) -> list[NodeProto]:
        """All nodes that are read: those of the graph in their order, each followed by those laid over it."""
        read, unread = self.readers.get, self._unread
        alive = (maker for maker, names in self._order if any(map(read, names)) or maker in unread)
        return [self.choice(maker).node if isinstance(maker, int) else maker.node for maker in alive]

    def is_alive(self, maker: int | Made) -> bool:
        """Whether anybody reads what a node makes (a node of the graph by its index)."""
        if isinstance(maker, Made):
            return any(self.readers[name] for name in maker.node.output)
        if maker in self._unread:
            return True
        for name in self._outputs[maker]:  # asked of all nodes for each choice
            if self.readers[name]:
                return True
        return False

    def node(self, maker: int | Made) -> NodeProto:
        """The node in this place now."""
        if isinstance(maker, Made):
            return maker.node
        return self.replaced[maker].node if maker in self.replaced else self.graph.nodes[maker]

    def choice(self, index: int) -> Choice:
        """What was chosen for a node of the graph; at first, the node itself."""
        return self.replaced.get(index) or Choice(index, self.graph.nodes[index])

    def replaced_outputs(self) -> dict[int, str]:
        """Index → first output, of the nodes that have another one in their place."""
        nodes = self.graph.nodes
        return {i: nodes[i].output[0] for i, choice in self.replaced.items() if choice.node is not nodes[i]}

    def _see_laid(self) -> None:
        """Note who makes what was laid over the graph since."""
        for made in self.overlay.made[self._laid :]:
            self._maker |= dict.fromkeys(made.node.output, made)
        self._laid = len(self.overlay.made)
        self._order = self._in_order()
        self._open |= {name for name, source in self.overlay.sources.items() if source in self.graph.overridable}

    def _in_order(self) -> list[tuple[int | Made, tuple[str, ...]]]:
        """Nodes in the order they are written in, those of the graph by their index, and what each makes."""
        laid = sorted(self.overlay.made, key=lambda made: made.place)
        found: list[tuple[int, int | Made]] = [(made.place, made) for made in laid]
        found = sorted([*enumerate(range(len(self.graph.nodes))), *found], key=lambda pair: pair[0])
        return [(maker, tuple(self.node(maker).output)) for _, maker in found]

    def _is_better_without(self, choice: Choice, before: Choice) -> bool:
        """Take a choice back unless it saves a fair share of what the node cost before."""
        cost = self.cost
        self._swap(before)
        if self.cost < cost + _FAIR * self._cost(choice.index):
            return True
        self._swap(choice)
        return False

    def _swap(self, choice: Choice) -> None:
        index, old = choice.index, self.node(choice.index)
        alive, before = self.is_alive(index), self._cost(index)
        self.replaced[index] = choice
        if alive:
            self.cost += self._cost(index) - before
            self._read(choice.node.input)
            self._release(old.input)

    def _read(self, names: Iterable[str]) -> None:
        pending = [name for name in names if name]
        while pending:
            name = pending.pop()
            maker = self._maker.get(name)
            starts = maker is not None and not self.is_alive(maker)
            self.readers[name] += 1
            if starts and maker is not None:
                self.cost += self._cost(maker)
                pending += [read for read in self.node(maker).input if read]

    def _release(self, names: Iterable[str]) -> None:
        pending = [name for name in names if name]
        while pending:
            name = pending.pop()
            self.readers[name] -= 1
            maker = self._maker.get(name)
            if maker is not None and not self.is_alive(maker):
                self.cost -= self._cost(maker)
                pending += [read for read in self.node(maker).input if read]

    def _cost(self, maker: int | Made) -> float:
        node, shapes = self.node(maker), self.overlay.shape
        after = self._followed(node.input[0]) if node.input else ""
        cost = microseconds(self.target, node, shapes, after, self._open)
        if not isinstance(maker, Made) and self.choice(maker).apart:
            readers = self.graph.consumers.get(node.output[0], [])
            cost += sum(unfused(self.target, self.graph.nodes[reader], shapes) for reader, _ in readers)
        return cost

    def _followed(self, name: str) -> str:
        """The operator that makes a tensor in the graph as it was."""
        index = self.graph.producer.get(name)
        return "" if index is None else self.graph.nodes[index].op_type
