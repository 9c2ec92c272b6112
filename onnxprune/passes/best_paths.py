"""Best paths through the channel graph, for any way of joining a path's value with the weight of one more slice.

With ``join`` = minimum a path is worth its weakest slice (the widest path), with ``join`` = addition of negative costs
the cheapest path is the best. Links pass a value on as it is. A slice of weight −∞ is not there.

    ahead[v]  = max over u of join(ahead[u], w(u, v))        from a model input to v
    behind[u] = max over v of join(behind[v], w(u, v))       from u to a model output

A path is found again from these values: the next vertex is one that gives the value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxprune.passes.channel_graph import Block, ChannelGraph

__all__ = ["BestPaths", "Slice", "Wiring"]

Floats = NDArray[np.float64]
Slice = tuple[int, int, int]
"""Node of a contraction, output, input within its group."""

_NOTHING = -np.inf


@dataclass(frozen=True)
class Wiring:
    """A channel graph, and what leads into and out of each vertex."""

    graph: ChannelGraph

    def links_out(self, vertex: int) -> NDArray[np.int64]:
        """The vertices that links from a vertex lead to."""
        order, sources = self.by_source
        low, high = np.searchsorted(sources, (vertex, vertex + 1))
        return self.graph.link_target[order[low:high]]

    def links_into(self, vertex: int) -> NDArray[np.int64]:
        """The vertices that links into a vertex come from."""
        low, high = np.searchsorted(self.graph.link_target, (vertex, vertex + 1))
        return self.graph.link_source[low:high]

    @cached_property
    def by_source(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The links in the order of their sources, and these."""
        order = np.argsort(self.graph.link_source, kind="stable")
        return order, self.graph.link_source[order]

    @cached_property
    def into(self) -> dict[int, list[tuple[Block, int]]]:
        """Vertex → the blocks that make it, each with the output it is."""
        found: dict[int, list[tuple[Block, int]]] = {}
        for block in self.graph.blocks:
            for out, vertex in enumerate(block.targets.tolist()):
                found.setdefault(vertex, []).append((block, out))
        return found

    @cached_property
    def out_of(self) -> dict[int, list[tuple[Block, int, int]]]:
        """Vertex → the blocks that read it, each with the group and the input it is."""
        found: dict[int, list[tuple[Block, int, int]]] = {}
        for block in self.graph.blocks:
            for group, row in enumerate(block.sources.tolist()):
                for k, vertex in enumerate(row):
                    found.setdefault(vertex, []).append((block, group, k))
        return found


@dataclass(frozen=True)
class BestPaths:
    """``weights``: node of a contraction → float64 [out, in per group]; ``start``: the value of a path without slices;
    ``join``: monotone in both arguments."""

    wiring: Wiring
    weights: Mapping[int, Floats]
    join: np.ufunc
    start: float

    @property
    def graph(self) -> ChannelGraph:
        return self.wiring.graph

    @cached_property
    def ahead(self) -> Floats:
        """float64 [vertices]; −∞ where no model input leads to."""
        best = np.full(self.graph.size, _NOTHING)
        best[self.graph.inputs] = self.start
        for _, links, blocks in self.graph.stages():
            np.maximum.at(best, self.graph.link_target[links], best[self.graph.link_source[links]])
            for block in blocks:
                np.maximum.at(best, block.targets, self._joined(block, best[block.sources]).max(axis=2).ravel())
        return best

    @cached_property
    def behind(self) -> Floats:
        """float64 [vertices]; −∞ where nothing leads to a model output."""
        best = np.full(self.graph.size, _NOTHING)
        best[self.graph.outputs] = self.start
        for span, links, blocks in reversed(list(self.graph.stages())):
            if span.is_hub:  # what ends here matters as much as what goes on beside it
                best[span.first] = best[self.graph.beside(span.first)].max(initial=best[span.first])
            for block in blocks:
                values = self.join(self._split(block), best[block.targets].reshape(block.groups, -1, 1))
                np.maximum.at(best, block.sources.ravel(), values.max(axis=1).ravel())
            np.maximum.at(best, self.graph.link_source[links], best[self.graph.link_target[links]])
        return best

    def prefix(self, vertex: int) -> list[Slice]:
        """The slices of the best path from a model input to a vertex, without those at its start that cost nothing."""
        return list(self._backwards(vertex))

    def suffix(self, vertex: int) -> list[Slice]:
        """The slices of the best path from a vertex to a model output, without those at its end that cost nothing."""
        return list(self._forwards(vertex))

    def _split(self, block: Block) -> Floats:
        return self.weights[block.node].reshape(block.groups, -1, block.shape[1])

    def _joined(self, block: Block, values: Floats) -> Floats:
        """[groups, out per group, in per group]"""
        return np.asarray(self.join(self._split(block), values[:, None, :]))

    def _backwards(self, vertex: int) -> Iterator[Slice]:
        ahead = self.ahead
        while ahead[vertex] != self.start:
            sources = self.wiring.links_into(vertex)
            same = sources[ahead[sources] == ahead[vertex]]
            if len(same):
                vertex = int(same[0])
                continue
            node, out, k, vertex = next(self._steps_into(vertex))
            yield node, out, k

    def _steps_into(self, vertex: int) -> Iterator[tuple[int, int, int, int]]:
        for block, out in self.wiring.into.get(vertex, ()):
            sources = block.sources[out * block.groups // len(block.targets)]
            values = self.join(self.weights[block.node][out], self.ahead[sources])
            k = int(values.argmax())
            if values[k] == self.ahead[vertex]:
                yield block.node, out, k, int(sources[k])

    def _forwards(self, vertex: int) -> Iterator[Slice]:
        graph, behind = self.graph, self.behind
        while behind[vertex] != self.start:
            targets = np.concatenate((self.wiring.links_out(vertex), graph.beside(vertex)))
            same = targets[behind[targets] == behind[vertex]]
            if len(same):
                vertex = int(same[0])
                continue
            node, out, k, vertex = next(self._steps_out(vertex))
            yield node, out, k

    def _steps_out(self, vertex: int) -> Iterator[tuple[int, int, int, int]]:
        for block, group, k in self.wiring.out_of.get(vertex, ()):
            width = len(block.targets) // block.groups
            rows = slice(group * width, (group + 1) * width)
            values = self.join(self.weights[block.node][rows, k], self.behind[block.targets[rows]])
            best = int(values.argmax())
            if values[best] == self.behind[vertex]:
                yield block.node, group * width + best, k, int(block.targets[group * width + best])
