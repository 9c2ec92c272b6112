"""LEAN's selection, both variants, against an enumeration of all paths of random graphs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.passes.anchored_chains import anchored_edges
from onnxprune.passes.chain_stages import stages_of
from onnxprune.passes.chains import LeanOrder, NumpySearch, chains, lean_edges, lean_mask
from onnxprune.passes.channel_graph import Block, ChannelGraph, Span

Weights = dict[int, NDArray[np.float64]]
Slice = tuple[int, int, int]
Kept = set[Slice]
GRAPHS = 2000


@dataclass(frozen=True)
class Edge:
    """An edge as the definition sees it; ``slice`` is None for one that is travelled but not taken."""

    source: int
    target: int
    value: float
    slice: Slice | None


def random_graph(rng: np.random.Generator) -> tuple[ChannelGraph, Weights]:
    """A few tensors: blocks, some of them grouped or left alone, sums, concatenations and gains."""
    spans, blocks, weights = [Span("t0", 0, 0, 2)], [], {}
    links: list[tuple[int, int, float]] = []
    size = 2
    for number in range(1, int(rng.integers(3, 6))):
        data = spans[int(rng.integers(len(spans)))]
        kind = rng.choice(["block", "block", "block", "grouped", "sum", "concat", "scaled"])
        if kind in ("block", "grouped"):
            groups = 2 if kind == "grouped" and data.size == 2 else 1
            out, width = groups * int(rng.integers(1, 3)), data.size // groups
            sources = np.arange(data.first, data.first + data.size).reshape(groups, width)
            block = Block(number, sources, np.arange(size, size + out), np.zeros(out))
            if rng.random() < 0.8:
                weights[number] = np.where(rng.random((out, width)) < 0.15, -np.inf, rng.normal(0, 1, (out, width)))
            blocks.append(block)
        elif kind == "sum":
            other = next(s for s in spans if s.size == data.size)
            out = data.size
            links += [(s.first + i, size + i, 0.0) for s in {other, data} for i in range(out)]
        elif kind == "concat":
            other = spans[int(rng.integers(len(spans)))]
            out = data.size + other.size
            links += [(data.first + i, size + i, 0.0) for i in range(data.size)]
            links += [(other.first + i, size + data.size + i, 0.0) for i in range(other.size)]
        else:
            out = data.size
            links += [(data.first + i, size + i, float(rng.normal())) for i in range(out)]
        spans.append(Span(f"t{number}", 0, size, out))
        size += out
    links.sort(key=lambda link: (link[1], link[0]))
    source, target = (np.array([link[k] for link in links], np.int64) for k in (0, 1))
    none = np.zeros(0, np.int64)
    last = spans[-1]
    graph = ChannelGraph(tuple(spans), tuple(blocks), source, target, np.array([link[2] for link in links]), none, none,
                         np.arange(2), np.arange(last.first, last.first + last.size))  # fmt: skip
    return graph, weights


def edges_of(graph: ChannelGraph, weights: Mapping[int, NDArray[np.float64]]) -> list[Edge]:
    found = [Edge(int(a), int(b), float(g), None)
             for a, b, g in zip(graph.link_source, graph.link_target, graph.link_gain, strict=True)]  # fmt: skip
    for block in graph.blocks:
        for out, target in enumerate(block.targets.tolist()):
            for i, source in enumerate(block.sources[out // (block.shape[0] // block.groups)].tolist()):
                if block.node not in weights:
                    found.append(Edge(source, target, 0.0, None))
                elif weights[block.node][out, i] > -np.inf:
                    found.append(Edge(source, target, float(weights[block.node][out, i]), (block.node, out, i)))
    return found


def every_path(edges: list[Edge]) -> Iterator[list[Edge]]:
    """All paths of at least one edge."""
    out: dict[int, list[Edge]] = {}
    for edge in edges:
        out.setdefault(edge.source, []).append(edge)
    pending = [[edge] for edge in edges]
    while pending:
        path = pending.pop()
        yield path
        pending += [[*path, edge] for edge in out.get(path[-1].target, [])]


def value(path: list[Edge]) -> float:
    return sum(edge.value for edge in path)


def taken(path: list[Edge]) -> Kept:
    return {edge.slice for edge in path if edge.slice is not None}


def published(edges: list[Edge], keep: int) -> Kept:
    """The rule, word by word."""
    kept: Kept = set()
    while len(kept) < keep:
        paths = [path for path in every_path(edges) if path[0].slice is not None and value(path) > 0]
        if not paths:
            break
        best = taken(max(paths, key=value))
        kept |= best
        edges = [edge for edge in edges if edge.slice not in best]
    left = sorted((edge for edge in edges if edge.slice is not None), key=lambda edge: -edge.value)
    return kept | {edge.slice for edge in left[: max(0, keep - len(kept))] if edge.slice is not None}


def anchored(edges: list[Edge], graph: ChannelGraph, keep: int) -> Kept:
    starts, ends = set(graph.inputs.tolist()), set(graph.outputs.tolist())
    paths = [path for path in every_path(edges) if path[0].source in starts and path[-1].target in ends]
    kept: Kept = set()
    while len(kept) < keep:
        fresh = [path for path in paths if not taken(path) <= kept]
        if not fresh:
            break
        kept |= taken(max(fresh, key=value))
    return kept


def as_set(mask: Mapping[int, NDArray[np.bool_]]) -> Kept:
    return {(node, int(out), int(i)) for node, held in mask.items() for out, i in zip(*held.nonzero(), strict=True)}


@pytest.mark.parametrize("part", range(4))
def test_both_variants_equal_the_enumeration_of_all_paths(part: int) -> None:
    rng = np.random.default_rng(part)
    seen = 0
    for _ in range(GRAPHS // 4):
        graph, weights = random_graph(rng)
        edges = edges_of(graph, weights)
        keep = int(rng.integers(1, 2 + sum(held.size for held in weights.values())))
        assert as_set(lean_edges(graph, weights, keep)) == published(edges, keep)
        expected = anchored(edges, graph, keep)
        assert as_set(anchored_edges(graph, weights, keep)) == expected
        seen += len(expected) > 0
    assert seen > GRAPHS // 8


def layered(rng: np.random.Generator, widths: list[int], up: float) -> tuple[ChannelGraph, Weights]:
    """Dense layers; ``up``: share of the slices with a norm above 1."""
    first = np.cumsum([0, *widths])
    spans = tuple(Span(f"t{i}", 0, int(first[i]), n) for i, n in enumerate(widths))
    blocks, weights = [], {}
    for i, (a, b) in enumerate(pairwise(widths)):
        sources = np.arange(first[i], first[i] + a)[None]
        blocks.append(Block(i, sources, np.arange(first[i + 1], first[i + 1] + b), np.zeros(b)))
        norm = np.where(rng.random((b, a)) < up, 1 + rng.random((b, a)), rng.random((b, a)))
        weights[i] = np.log(norm)
    none = np.zeros(0, np.int64)
    last = np.arange(first[-2], first[-1])
    return ChannelGraph(spans, tuple(blocks), none, none, np.zeros(0), none, none, np.arange(widths[0]), last), weights


def test_wide_layers_give_what_evaluating_everything_anew_gives() -> None:
    """Here rows are longer than what a search looks at first, and most of them change after each path."""
    graph, weights = layered(np.random.default_rng(0), [40, 50, 60, 30, 50], 0.2)
    work = {node: held.copy() for node, held in weights.items()}
    for count, chain in enumerate(chains(graph, weights)):
        ahead = np.zeros(40)
        best = -np.inf
        for node in sorted(work):
            ahead = (np.maximum(ahead, 0) + work[node]).max(axis=1)
            best = max(best, float(ahead.max()))
        assert chain.value == best
        for node, out, i in chain.slices:
            assert work[node][out, i] > -np.inf
            work[node][out, i] = -np.inf
        if count == 300:
            return
    pytest.fail("the graph has more paths than that")


def test_the_compiled_search_takes_the_same_paths() -> None:
    """Random graphs, some with equal weights all over, and wide layers."""
    from onnxprune.passes.compiled_search import CompiledSearch

    rng = np.random.default_rng(0)
    graphs = [random_graph(rng) for _ in range(400)]
    graphs += [(graph, {n: np.round(held) for n, held in weights.items()}) for graph, weights in graphs]
    graphs.append(layered(rng, [40, 50, 60, 30, 50], 0.2))
    seen = 0
    for graph, weights in graphs:
        plain, compiled = NumpySearch(stages_of(graph, weights)), CompiledSearch(stages_of(graph, weights))
        while (expected := plain.take()) is not None:
            assert compiled.take() == expected
            seen += 1
        assert compiled.take() is None
    assert seen > 1000


def test_large_graphs_are_searched_by_the_compiled_search(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, weights = layered(np.random.default_rng(0), [30, 40, 50, 30], 0.2)
    plain = as_set(lean_edges(graph, weights, 500))
    monkeypatch.setattr("onnxprune.passes.chains._COMPILED_FROM", 0)
    monkeypatch.setattr("onnxprune.passes.chains.NumpySearch", None)
    assert as_set(lean_edges(graph, weights, 500)) == plain


@pytest.mark.parametrize("problem", [ImportError, OSError])
def test_without_a_working_numba_nothing_changes(problem: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    graph, weights = layered(np.random.default_rng(0), [30, 40, 50, 30], 0.2)
    plain = as_set(lean_edges(graph, weights, 500))

    class Missing:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "numba":
                raise problem(name)

    monkeypatch.setattr("onnxprune.passes.chains._COMPILED_FROM", 0)
    monkeypatch.setattr("sys.meta_path", [Missing(), *sys.meta_path])
    for name in [name for name in sys.modules if name.split(".")[0] == "numba" or ".compiled" in name]:
        monkeypatch.delitem(sys.modules, name)
    assert as_set(lean_edges(graph, weights, 500)) == plain


def test_a_compiled_search_needs_no_place_to_write_to(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    compiler: Any = numba.njit

    def njit(*function: Any, cache: bool = False, **options: Any) -> Any:
        if cache and not function:
            return lambda function: njit(function, cache=True)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compiler(*function, **options)

    monkeypatch.setattr(numba, "njit", njit)
    monkeypatch.delitem(sys.modules, "onnxprune.passes.compiled_search", raising=False)
    from onnxprune.passes.compiled_search import CompiledSearch

    graph, weights = layered(np.random.default_rng(0), [5, 6, 7, 3], 0.5)
    assert CompiledSearch(stages_of(graph, weights)).take() == NumpySearch(stages_of(graph, weights)).take()


def test_a_budget_may_be_a_limit() -> None:
    graph, weights = layered(np.random.default_rng(0), [5, 6, 7, 3], 0.5)
    for keep in range(1, 60):
        assert len(as_set(lean_edges(graph, weights, keep))) >= keep
        assert len(as_set(lean_edges(graph, weights, keep, exceed=False))) == keep
        assert len(as_set(anchored_edges(graph, weights, keep, exceed=False))) <= keep


def test_equal_weights_are_taken_in_the_order_they_are_stored() -> None:
    graph, weights = layered(np.random.default_rng(0), [3, 3, 3], 1.0)
    same = {node: np.full_like(held, np.log(2)) for node, held in weights.items()}
    first = [chain.slices for chain, _ in zip(chains(graph, same), range(4), strict=False)]
    assert first == [
        ((0, 0, 0), (1, 0, 0)), ((0, 1, 0), (1, 0, 1)), ((0, 2, 0), (1, 0, 2)), ((0, 0, 1), (1, 1, 0))
    ]  # fmt: skip
    assert as_set(lean_edges(graph, {n: held * 0 - 1 for n, held in same.items()}, 4)) == {
        (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0)}  # fmt: skip


def test_what_reads_an_emptied_channel_is_dropped() -> None:
    graph, _ = layered(np.random.default_rng(0), [1, 2, 1], 1.0)
    norms = {0: np.array([[0.1], [0.9]]), 1: np.array([[0.8, 0.7]])}
    assert as_set(lean_mask(graph, norms, 2)) == set()  # 0→1 and 0→0 by weight: no path
    assert as_set(lean_mask(graph, norms, 3)) == {(0, 1, 0), (1, 0, 1)}
    assert as_set(lean_mask(graph, norms, 2, anchored=True)) == {(0, 1, 0), (1, 0, 1)}


def test_ranks_tell_the_order_in_which_slices_are_taken() -> None:
    graph, weights = layered(np.random.default_rng(0), [5, 6, 7, 3], 0.3)
    weights[1][2] = -np.inf
    total, gone = sum(held.size for held in weights.values()), weights[1].shape[1]
    lean = LeanOrder(graph, weights)
    place = np.empty(total, np.int64)
    place[lean.order(total)] = np.arange(total)
    ranks = lean.blocks(place)
    assert sorted(np.concatenate([held.ravel() for held in ranks.values()]).tolist()) == list(range(total))
    assert as_set({node: held >= total - gone for node, held in ranks.items()}) == {(1, 2, i) for i in range(gone)}
    for keep in range(1, total - gone):
        kept = as_set(lean_edges(graph, weights, keep))
        assert as_set({node: held < len(kept) for node, held in ranks.items()}) == kept


def test_asking_for_more_slices_does_not_change_the_first() -> None:
    graph, weights = layered(np.random.default_rng(1), [5, 6, 7, 3], 0.3)
    lean = LeanOrder(graph, weights)
    total = sum(held.size for held in weights.values())
    for upto in (0, 3, 2, 20, total):
        assert lean.order(upto)[:upto].tolist() == LeanOrder(graph, weights).order(upto)[:upto].tolist()
    assert lean.order(0).tolist() == LeanOrder(graph, weights).order(total).tolist()
