"""The path search of ``onnxprune.passes.chains`` for large graphs, compiled by numba.

It takes the very same paths, but is lazy. As edges leave, distances only fall: what was once a distance stays an upper
bound. A bound is exact if the edge that gave it is still there and its source still has, exactly, the value it had
then; else the row is evaluated again with the bounds of its sources, until that holds. So only what could be the end
of the best path, and what such ends rest on, is looked at; the candidate ends stand in a tournament of their bounds.

Python's own loop would take too long for this, and numpy has nothing to do at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.passes.chain_stages import BlockStage, Chain, Floats, Stage, Stages
from onnxprune.passes.channel_graph import Vertices
from onnxprune.passes.compiled import compiled

__all__ = ["CompiledSearch"]

_SCANS = 4  # a stage's best source is looked up anew after that many times its size was looked through


class _State(NamedTuple):
    """All rows, one after another.

    ``first``, ``stop`` [nodes]: the edges of a node; ``place``, ``weight`` [edges]: place of an edge's source, log
    weight, by falling weight in a block. ``source``, ``offset`` [places]: its node and the log gain on the way;
    ``bounds`` [stages + 1]: the places of a stage. ``stage`` [nodes]. ``least`` [stages]: a path may begin at a kernel
    slice (0), not at a link (−∞). ``reach`` [stages]: at least what the best source has; ``looked`` [stages]: edges
    looked at since that was found. ``distance`` (upper bounds), ``best`` (edge that gives it, −1: to be found),
    ``exact`` (number of the path before which it was known to be exact), ``bonus``: of nodes. ``tree``: the
    tournament, its root at 1. ``stack`` [nodes]: room for the nodes in question.
    """

    first: Vertices
    stop: Vertices
    place: NDArray[np.int32]
    weight: Floats
    source: Vertices
    offset: Floats
    bounds: Vertices
    stage: Vertices
    least: Floats
    reach: Floats
    looked: Vertices
    distance: Floats
    best: Vertices
    exact: Vertices
    bonus: Floats
    tree: Floats
    stack: Vertices


class CompiledSearch:
    """See ``onnxprune.passes.chains.chains``."""

    def __init__(self, found: Stages) -> None:
        self.state = _state(found)
        self.number = 0
        self.nodes, self.places = np.zeros((2, len(found.stages)), np.int64)
        self.blocks = [_naming(stage) for stage in found.stages]
        _begin(self.state)

    def take(self) -> Chain | None:
        """The best path, whose edges leave; None where no product is above 1."""
        count, value = _take(self.state, self.number, self.nodes, self.places)
        self.number += 1
        if not count:
            return None
        nodes = self.nodes[:count][::-1]
        stages = self.state.stage[nodes]
        places = self.places[:count][::-1] - self.state.bounds[stages]
        named = [self.blocks[stage] for stage in stages.tolist()]
        steps = zip(named, nodes.tolist(), places.tolist(), strict=True)
        return Chain(value, tuple((node, end - low, place % width) for (node, low, width), end, place in steps))


def _naming(stage: Stage) -> tuple[int, int, int]:
    """Node of the contraction, number of its first output's node, inputs per group."""
    return (stage.block.node, stage.low, stage.block.shape[1]) if isinstance(stage, BlockStage) else (-1, 0, 1)


def _state(found: Stages) -> _State:
    size, stages = found.size, found.stages
    bounds = np.cumsum([0, *(stage.source.size for stage in stages)])
    first, stop, number = np.zeros((3, size), np.int64)
    places: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
    weights, offsets, edges = [np.zeros(0)], [np.zeros(0)], 0
    for k, (stage, low) in enumerate(zip(stages, bounds.tolist(), strict=False)):
        if isinstance(stage, BlockStage):
            weight, place, offset = stage.weight[:, :-1], stage.order + np.int32(low), stage.offset
            length = np.count_nonzero(weight > -np.inf, axis=1)
        else:
            weight, offset = stage.weight, np.zeros(stage.source.size)
            place = np.arange(low, low + weight.size, dtype=np.int32)
            length = np.full(stage.rows, weight.shape[1])
        own = slice(stage.low, stage.low + stage.rows)
        first[own] = edges + np.arange(stage.rows) * weight.shape[1]
        stop[own] = first[own] + length
        number[own] = k
        places.append(place.ravel())
        weights.append(weight.ravel())
        offsets.append(offset)
        edges += weight.size
    leaves = 1 << (size - 1).bit_length()
    least = np.array([0.0 if isinstance(stage, BlockStage) else -np.inf for stage in stages])
    sources = np.concatenate([np.zeros(0, np.int64), *(stage.source.ravel() for stage in stages)])
    return _State(first, stop, np.concatenate(places), np.concatenate(weights), sources, np.concatenate(offsets), bounds,
                  number, least, np.full(len(stages), np.inf), np.zeros(len(stages), np.int64),
                  np.full(size, -np.inf), np.full(size, -1), np.full(size, -1), found.bonus,
                  np.full(2 * leaves, -np.inf), np.zeros(size, np.int64))  # fmt: skip


@compiled()
def _evaluate(s: _State, node: int) -> None:
    """A node's distance from the bounds of its sources. Later edges have smaller weights: stop where none can win."""
    stage = s.stage[node]
    least, reach, first = s.least[stage], s.reach[stage], s.first[node]
    distance, best, edge = -np.inf, -1, first
    while edge < s.stop[node] and not s.weight[edge] + reach <= distance:
        place = s.place[edge]
        value = max(s.distance[s.source[place]] + s.offset[place], least) + s.weight[edge]
        if value > distance:
            distance, best = value, edge
        edge += 1
    s.distance[node], s.best[node] = distance, best
    s.looked[stage] += edge - first
    low, high = s.bounds[stage], s.bounds[stage + 1]
    if least == 0.0 and s.looked[stage] > _SCANS * (high - low):
        s.looked[stage] = 0
        reach = 0.0
        for place in range(low, high):
            reach = max(reach, s.distance[s.source[place]] + s.offset[place])
        s.reach[stage] = reach


@compiled()
def _make_exact(s: _State, node: int, number: int) -> None:
    """Lower a node's bound to its distance, given what left before this path."""
    top = 0
    s.stack[0] = node
    while top >= 0:
        node = s.stack[top]
        edge = s.best[node]
        if s.exact[node] == number:
            top -= 1
        elif edge < 0:
            _evaluate(s, node)
            if s.best[node] < 0:  # nothing leads here any more
                s.exact[node] = number
        else:
            place, least = s.place[edge], s.least[s.stage[node]]
            source, ahead = s.source[place], s.distance[s.source[place]] + s.offset[place]
            if ahead > least and s.exact[source] != number:
                top += 1
                s.stack[top] = source
            elif max(ahead, least) + s.weight[edge] == s.distance[node]:
                s.exact[node] = number
            else:
                _evaluate(s, node)


@compiled()
def _begin(s: _State) -> None:
    leaves = s.tree.size // 2
    for node in range(1, s.first.size):
        _evaluate(s, node)
        s.tree[leaves + node] = s.distance[node] + s.bonus[node]
    for i in range(leaves - 1, 0, -1):
        s.tree[i] = max(s.tree[2 * i], s.tree[2 * i + 1])


@compiled()
def _best_end(s: _State, number: int) -> int:
    """The end of the best path, of equal ones the first; 0 where no product is above 1."""
    leaves = s.tree.size // 2
    while s.tree[1] > 0.0:
        i = 1
        while i < leaves:
            i = 2 * i if s.tree[2 * i] >= s.tree[2 * i + 1] else 2 * i + 1
        node = i - leaves
        _make_exact(s, node, number)
        if s.distance[node] + s.bonus[node] == s.tree[i]:
            return node
        s.tree[i] = s.distance[node] + s.bonus[node]
        while i > 1:
            i //= 2
            s.tree[i] = max(s.tree[2 * i], s.tree[2 * i + 1])
    return 0


@compiled()
def _take(s: _State, number: int, nodes: Vertices, places: Vertices) -> tuple[int, float]:
    """Take the edges of the best path out, from its end to its start; their number (0: no path) and the path's value.

    ``nodes``, ``places``: where the slices go, as the nodes they end in and the places of their sources.
    """
    node, count, value = _best_end(s, number), 0, s.tree[1]
    while node > 0:
        edge = s.best[node]
        place = s.place[edge]
        source = s.source[place]
        if s.least[s.stage[node]] == 0.0:
            nodes[count], places[count] = node, place
            count += 1
            while edge > s.first[node]:  # what stands before it moves up
                s.place[edge], s.weight[edge] = s.place[edge - 1], s.weight[edge - 1]
                edge -= 1
            s.first[node] += 1
            s.best[node] = -1
            if s.distance[source] + s.offset[place] <= 0.0:
                break
        node = source
    return count, value
