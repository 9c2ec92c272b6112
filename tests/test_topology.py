"""Topologically consistent selection on random channel graphs, against reachability as it is defined.

A random graph has layers with skip connections (Add), joints (Concat), convolution groups, outputs at several depths.
Many graphs of one structure are one grouped graph: each convolution group is a graph of its own, with slices of its own
missing, so that thousands are cheap.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from onnxprune.passes.best_paths import Floats
from onnxprune.passes.channel_graph import Block, BoolArray, ChannelGraph, Span
from onnxprune.passes.topology import Connected, connected_selection

PARTS = 100
STRUCTURES = 100


@dataclass
class Wires:
    """A graph under construction. ``layers``: vertices of each tensor, [PARTS, width]."""

    rng: np.random.Generator
    parts: int = PARTS
    size: int = 0
    spans: list[Span] = field(default_factory=list)
    layers: list[np.ndarray] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    links: list[np.ndarray] = field(default_factory=list)
    strength: dict[int, Floats] = field(default_factory=dict)

    def tensor(self, width: int) -> np.ndarray:
        vertices = np.arange(self.size, self.size + self.parts * width).reshape(self.parts, width)
        self.spans.append(Span(f"t{len(self.spans)}", 1, self.size, vertices.size))
        self.size += vertices.size
        self.layers.append(vertices)
        return vertices

    def link(self, source: np.ndarray, target: np.ndarray) -> None:
        self.links.append(np.stack((source.ravel(), target.ravel()), axis=1))

    def contraction(self, source: np.ndarray, width: int, groups: int, missing: float) -> np.ndarray:
        target = self.tensor(width)
        sources = source.reshape(self.parts * groups, -1)
        block = Block(len(self.spans), sources, target.ravel(), np.zeros(target.size))
        self.blocks.append(block)
        values = self.rng.integers(1, 30, block.shape).astype(np.float64)  # with ties
        self.strength[block.node] = np.where(self.rng.random(block.shape) < missing, -np.inf, values)
        return target

    def add(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        total = self.tensor(a.shape[1])
        self.link(a, total)
        self.link(b, total)
        return total

    def concat(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        joint = self.tensor(a.shape[1] + b.shape[1])
        self.link(a, joint[:, : a.shape[1]])
        self.link(b, joint[:, a.shape[1] :])
        return joint

    def finished(self, outputs: list[np.ndarray]) -> ChannelGraph:
        links = np.concatenate([np.zeros((0, 2), np.int64), *self.links])
        links = links[np.lexsort((links[:, 0], links[:, 1]))]
        nothing = np.zeros(0, np.int64)
        return ChannelGraph(tuple(self.spans), tuple(self.blocks), links[:, 0], links[:, 1], np.zeros(len(links)),
                            nothing, nothing, self.layers[0].ravel(),
                            np.unique(np.concatenate([o.ravel() for o in outputs])))  # fmt: skip


def random_graph(seed: int, parts: int = PARTS, largest: int = 3) -> tuple[ChannelGraph, dict[int, Floats]]:
    rng = np.random.default_rng(seed)
    wires = Wires(rng, parts)
    x = wires.tensor(int(rng.integers(1, largest + 1)))
    outputs = []
    for _ in range(int(rng.integers(2, 5))):
        groups = 2 if x.shape[1] % 2 == 0 and rng.random() < 0.3 else 1
        y = wires.contraction(x, groups * int(rng.integers(1, largest + 1)), groups, float(rng.choice([0.0, 0.3, 0.6])))
        before = wires.layers[int(rng.integers(len(wires.layers)))]
        if rng.random() < 0.5 and before is not y:
            y = wires.add(before, y) if before.shape == y.shape else wires.concat(before, y)
        if rng.random() < 0.3:
            outputs.append(y)
        x = y
    outputs.append(wires.contraction(x, int(rng.integers(1, largest + 1)), 1, 0.2))
    return wires.finished(outputs), wires.strength


# ---- reachability as it is defined ----------------------------------------------------------------------------------


def edges(graph: ChannelGraph, mask: dict[int, BoolArray]) -> list[tuple[int, int]]:
    """Source and target of every kept slice."""
    found = []
    for block in graph.blocks:
        width = len(block.targets) // len(block.sources)
        for out, k in zip(*np.nonzero(mask[block.node]), strict=True):
            found.append((int(block.sources[out // width, k]), int(block.targets[out])))
    return found


def reached(pairs: list[tuple[int, int]], start: list[int]) -> set[int]:
    """Everything that a walk along the pairs gets to."""
    ways: dict[int, list[int]] = {}
    for a, b in pairs:
        ways.setdefault(a, []).append(b)
    found, pending = set(start), list(start)
    while pending:
        for vertex in ways.get(pending.pop(), ()):
            if vertex not in found:
                found.add(vertex)
                pending.append(vertex)
    return found


def is_consistent(graph: ChannelGraph, strength: dict[int, Floats], mask: dict[int, BoolArray]) -> bool:
    """Whether every kept slice is on a path of kept ones, and every output that can be reached is."""
    links = list(zip(graph.link_source.tolist(), graph.link_target.tolist(), strict=True))
    everything = {node: values > -np.inf for node, values in strength.items()}
    kept, inputs, outputs = edges(graph, mask), graph.inputs.tolist(), graph.outputs.tolist()
    ahead = reached(kept + links, inputs)
    behind = reached([(b, a) for a, b in kept + links], outputs)
    possible = reached(edges(graph, everything) + links, inputs)
    return all(a in ahead and b in behind for a, b in kept) and possible & set(outputs) <= ahead


def assert_consistent(graph: ChannelGraph, strength: dict[int, Floats], mask: dict[int, BoolArray]) -> None:
    """Only slices that exist are kept, consistently."""
    assert all(not np.any(mask[node] & (values == -np.inf)) for node, values in strength.items())
    assert is_consistent(graph, strength, mask)


def count(mask: dict[int, BoolArray]) -> int:
    return sum(int(np.count_nonzero(kept)) for kept in mask.values())


# ---- the guarantee --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(0, STRUCTURES, 10))
def test_ten_thousand_random_graphs_stay_connected(first: int) -> None:
    for seed in range(first, first + 10):
        graph, strength = random_graph(seed)
        problem = Connected(graph, strength)
        alive = problem.cost(problem.core(problem.flat > -np.inf))
        budget = int(np.random.default_rng(seed).integers(problem.least, alive + 1))
        mask = connected_selection(problem, budget)
        assert_consistent(graph, strength, mask)
        assert count(mask) <= budget


@pytest.mark.parametrize("seed", range(20))
def test_the_budget_is_filled(seed: int) -> None:
    graph, strength = random_graph(seed)
    problem = Connected(graph, strength)
    alive = problem.cost(problem.core(problem.flat > -np.inf))
    for share in (0.3, 0.6, 0.9, 1.0):
        budget = max(int(share * alive), problem.least)
        assert count(connected_selection(problem, budget)) == budget


@pytest.mark.parametrize("seed", range(40))
def test_few_slices_reach_every_output(seed: int) -> None:
    """Against the smallest of all choices: it is met nearly always, and never by more than one slice missed."""
    graph, strength = random_graph(seed, parts=1, largest=2)
    problem = Connected(graph, strength)
    found = connected_selection(problem, problem.least)
    assert_consistent(graph, strength, found)
    assert count(found) == problem.least
    assert problem.least - smallest(graph, strength, problem.least) <= 1


def smallest(graph: ChannelGraph, strength: dict[int, Floats], known: int) -> int:
    """Fewest slices that reach every output that can be reached, by trying all smaller choices."""
    places = [(node, i) for node, values in strength.items() for i in np.flatnonzero(values > -np.inf).tolist()]
    links = list(zip(graph.link_source.tolist(), graph.link_target.tolist(), strict=True))
    everything = {node: values > -np.inf for node, values in strength.items()}
    wanted = reached(edges(graph, everything) + links, graph.inputs.tolist()) & set(graph.outputs.tolist())
    best = known
    for code in range(1 << min(len(places), 11)):
        if code.bit_count() >= best:
            continue
        mask = {node: np.zeros(values.shape, np.bool_) for node, values in strength.items()}
        for bit, (node, i) in enumerate(places):
            mask[node].flat[i] = bool(code >> bit & 1) if bit < 11 else False
        if wanted <= reached(edges(graph, mask) + links, graph.inputs.tolist()):
            best = code.bit_count()
    return best


def test_magnitude_stays_as_it_is_where_it_is_connected() -> None:
    """For every number of strongest slices that are all on paths and reach what can be reached: they are the choice."""
    met = 0
    for seed in range(60):
        graph, strength = random_graph(seed, parts=1)
        problem = Connected(graph, strength)
        for number in range(1, len(problem.order)):
            strongest = np.zeros(len(problem.flat), np.bool_)
            strongest[problem.order[:number]] = True
            mask = problem.mask(strongest)
            if not is_consistent(graph, strength, mask):
                continue
            met += 1
            found = connected_selection(problem, number)
            assert all(np.array_equal(found[node], kept) for node, kept in mask.items())
    assert met > 50


def test_the_strongest_stay_where_that_is_consistent() -> None:
    """A dense layer between two others: with room for the strong half, no weak slice is kept."""
    wires = Wires(np.random.default_rng(0), parts=1)
    x = wires.tensor(4)
    a = wires.contraction(x, 4, 1, 0.0)
    graph = wires.finished([wires.contraction(a, 4, 1, 0.0)])
    strong = np.eye(4) * 10 + 1 + np.arange(16).reshape(4, 4) / 100
    strength = {block.node: strong for block in graph.blocks}
    mask = connected_selection(Connected(graph, strength), 8)
    assert all(np.array_equal(kept, np.eye(4, dtype=np.bool_)) for kept in mask.values())


def test_a_strong_slice_is_connected_by_the_widest_path() -> None:
    """Three strong slices share a weak one: all together they do not fit, the strongest with what it needs does."""
    wires = Wires(np.random.default_rng(0), parts=1)
    a = wires.contraction(wires.tensor(1), 4, 1, 0.0)
    b = wires.contraction(a, 2, 1, 0.0)
    graph = wires.finished([wires.contraction(b, 1, 1, 0.0)])
    first, middle, last = (block.node for block in graph.blocks)
    strength = {first: np.array([[5.0], [8.0], [9.0], [7.0]]), last: np.array([[5.0, 1.0]])}
    strength[middle] = np.array([[5.0, -np.inf, -np.inf, -np.inf], [-np.inf, 6.0, 6.0, 6.0]])
    mask = connected_selection(Connected(graph, strength), 6)
    assert mask[first].ravel().tolist() == [True, False, True, False]
    assert mask[middle].tolist() == [[True, False, False, False], [False, False, True, False]]
    assert mask[last].all()


def test_a_shared_layer_is_chosen_as_one() -> None:
    wires = Wires(np.random.default_rng(0), parts=1)
    a = wires.contraction(wires.tensor(3), 3, 1, 0.0)
    graph = wires.finished([wires.contraction(a, 3, 1, 0.0)])
    first, last = (block.node for block in graph.blocks)
    problem = Connected(graph, wires.strength, leader={last: first})
    for budget in range(problem.least, 19):
        mask = connected_selection(problem, budget)
        assert np.array_equal(mask[first], mask[last])
        assert count(mask) <= budget


def test_fixed_layers_keep_all_and_cost_nothing() -> None:
    graph, strength = random_graph(3)
    fixed = frozenset({graph.blocks[0].node})
    problem = Connected(graph, strength, fixed)
    mask = connected_selection(problem, problem.least)
    for node in fixed:
        assert np.array_equal(mask[node], strength[node] > -np.inf)
    assert count({node: kept for node, kept in mask.items() if node not in fixed}) == problem.least
