"""The channel graph as the chain search wants it: stages of rows, strongest kernel slice first.

Vertices that one link leads to (a ReLU's output, an operand inside a Concat) are not worth a look of their own: they
are the vertex at the other end (their *root*), times the gains on the way. What remains are *nodes*, numbered stage by
stage: those that a block's slices end in, and those where several links meet. Node 0 stands for every vertex that
nothing leads to. A row of a block stage lists the in-edges of a node by falling weight, which lets a search stop early.

Layers that are left alone are links from all of their inputs to all of their outputs, through a node of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxprune.passes.channel_graph import Block, ChannelGraph, Vertices

__all__ = ["BlockStage", "Chain", "LinkStage", "Stage", "Stages", "stages_of"]

Floats = NDArray[np.float64]

_HEAD = 16  # edges of a row that are looked at first
_GAPS = 8  # of them that may be missing


@dataclass(frozen=True)
class Chain:
    """A path: the logarithm of its product, and its kernel slices from its start to its end as (node of the
    contraction, output, input within the group)."""

    value: float
    slices: tuple[tuple[int, int, int], ...]


@dataclass
class BlockStage:
    """Nodes ``low`` … ``low + rows − 1``, the outputs of a block.

    ``source``, ``offset`` [groups·in]: the node of every input and the log gain on the way from it. ``order`` [rows,
    in]: places in ``source``, by falling ``weight`` (ties: as stored); ``weight`` [rows, in + 1]: log weights, closed
    by −∞. ``head_order``, ``head_weight`` [rows, few]: the first of them once more, and ``beyond`` [rows]: the weight of
    the next. As edges leave, their weight becomes −∞; ``gaps`` [rows] counts those among the first.
    """

    low: int
    block: Block
    source: Vertices
    offset: Floats
    order: NDArray[np.int32]
    weight: Floats
    head_order: Vertices = field(init=False)
    head_weight: Floats = field(init=False)
    beyond: Floats = field(init=False)
    gaps: Vertices = field(init=False)

    def __post_init__(self) -> None:
        width = min(_HEAD, self.order.shape[1])
        self.head_order = self.order[:, :width].astype(np.int64)
        self.head_weight = self.weight[:, :width].copy()
        self.beyond = self.weight[:, width].copy()
        self.gaps = np.zeros(len(self.order), np.int64)

    @property
    def rows(self) -> int:
        return len(self.order)

    def remove(self, row: int, column: int) -> None:
        """An edge leaves."""
        self.weight[row, column] = -np.inf
        if column < self.head_weight.shape[1]:
            self.head_weight[row, column] = -np.inf
            self.gaps[row] += 1
            if self.gaps[row] == _GAPS:
                self._close_up(row)

    def _close_up(self, row: int) -> None:
        """Move what is left of a row to its front."""
        left = (self.weight[row] > -np.inf).nonzero()[0]
        self.order[row, : len(left)] = self.order[row, left]
        self.weight[row, : len(left)] = self.weight[row, left]
        self.weight[row, len(left) :] = -np.inf
        width = self.head_weight.shape[1]
        self.head_order[row] = self.order[row, :width]
        self.head_weight[row] = self.weight[row, :width]
        self.beyond[row] = self.weight[row, width]
        self.gaps[row] = 0


@dataclass
class LinkStage:
    """Nodes where links meet: ``source``, ``weight`` [rows, most links]; filled up with node 0 and −∞."""

    low: int
    source: Vertices
    weight: Floats

    @property
    def rows(self) -> int:
        return len(self.source)


Stage: TypeAlias = BlockStage | LinkStage


@dataclass(frozen=True)
class Stages:
    """``stages`` in topological order. ``vertex``: node → its vertex (−1: none). ``root``, ``offset``: vertex → its
    node and the log gain on the way. ``bonus``: node → the largest log gain that a path may still collect behind it
    without another kernel slice, at least 0. ``readers``: stage → the stages that read its nodes."""

    stages: tuple[Stage, ...]
    size: int
    vertex: Vertices
    root: Vertices
    offset: Floats
    bonus: Floats
    readers: tuple[tuple[int, ...], ...]


def stages_of(graph: ChannelGraph, weights: Mapping[int, Floats]) -> Stages:
    """``weights``: node of a contraction → log weights of its slices, float64 [out, in per group]; blocks that are
    not listed are left alone."""
    return _Builder(graph, weights).finished()


class _Builder:
    def __init__(self, graph: ChannelGraph, weights: Mapping[int, Floats]) -> None:
        self.graph = graph
        self.root: Vertices = np.zeros(graph.size, np.int64)
        self.offset = np.zeros(graph.size)
        self.stages: list[Stage] = []
        self.vertex: list[Vertices] = [np.full(1, -1)]
        self.size = 1
        for span, held, blocks in graph.stages():
            links = (graph.link_source[held], graph.link_target[held] - span.first, graph.link_gain[held])
            self._span(span.first, span.size, links, blocks, weights)

    def _nodes(self, vertices: Vertices) -> Vertices:
        self.vertex.append(vertices)
        self.size += len(vertices)
        return np.arange(self.size - len(vertices), self.size)

    def _span(self, first: int, size: int, links: tuple[Vertices, Vertices, Floats], blocks: Sequence[Block],
              weights: Mapping[int, Floats]) -> None:  # fmt: skip
        """The nodes of a span. Its own block may make them directly; all else arrives by links."""
        arriving = [(self.root[links[0]], links[1], self.offset[links[0]] + links[2])]
        for block in blocks:
            own = len(blocks) == 1 and not len(links[0]) and len(block.targets) == size
            if block.node in weights and own:
                self.root[first : first + size] = self._block(block, weights[block.node])
                return
            if block.node in weights:
                made = self._block(block, weights[block.node])
                arriving.append((made, block.targets - first, np.zeros(len(made))))
            else:
                arriving.append(self._left_alone(block, first))
        source, target, gain = (np.concatenate(parts) for parts in zip(*arriving, strict=True))
        real = source > 0  # nothing arrives from where no path can
        self._meet(first, size, source[real], target[real], gain[real])

    def _block(self, block: Block, weight: Floats) -> Vertices:
        order = np.argsort(-weight, axis=1, kind="stable").astype(np.int32)
        ranked = np.concatenate([np.take_along_axis(weight, order, 1), np.full((len(weight), 1), -np.inf)], axis=1)
        group = np.arange(len(weight)) // max(1, len(weight) // block.groups)
        order += (group * block.shape[1]).astype(np.int32)[:, None]
        sources = block.sources.ravel()
        low = self.size
        made = self._nodes(block.targets)
        self.stages.append(BlockStage(low, block, self.root[sources], self.offset[sources], order, ranked))
        return made

    def _left_alone(self, block: Block, first: int) -> tuple[Vertices, Vertices, Floats]:
        """A node for each group, behind all its inputs; the links from there."""
        root, offset = self.root[block.sources], self.offset[block.sources]
        low = self.size
        made = self._nodes(np.full(block.groups, -1))
        self.stages.append(LinkStage(low, root, np.where(root > 0, offset, -np.inf)))
        return np.repeat(made, len(block.targets) // block.groups), block.targets - first, block.gain

    def _meet(self, first: int, size: int, source: Vertices, target: Vertices, gain: Floats) -> None:
        """A vertex that one link leads to has its root there; where several meet is a node."""
        count = np.bincount(target, minlength=size)
        alone = count[target] == 1
        self.root[first + target[alone]] = source[alone]
        self.offset[first + target[alone]] = gain[alone]
        several = np.flatnonzero(count > 1)
        if not len(several):
            return
        order = np.lexsort((source, target))
        order = order[count[target[order]] > 1]
        row = np.searchsorted(several, target[order])
        place = np.arange(len(order)) - (np.cumsum(count[several]) - count[several])[row]
        shape = len(several), int(count[several].max())
        sources, weight = np.zeros(shape, np.int64), np.full(shape, -np.inf)
        sources[row, place], weight[row, place] = source[order], gain[order]
        low = self.size
        self.root[first + several] = self._nodes(first + several)
        self.stages.append(LinkStage(low, sources, weight))

    def finished(self) -> Stages:
        bonus = np.zeros(self.size)
        np.maximum.at(bonus, self.root, self.offset)
        bonus[0] = 0.0
        lows = np.array([stage.low for stage in self.stages], np.int64)
        readers: list[list[int]] = [[] for _ in self.stages]
        for number, stage in enumerate(self.stages):
            read = np.unique(np.searchsorted(lows, stage.source[stage.source > 0], "right")) - 1
            for place in read.tolist():
                readers[place].append(number)
        return Stages(tuple(self.stages), self.size, np.concatenate(self.vertex), self.root, self.offset, bonus,
                      tuple(tuple(found) for found in readers))  # fmt: skip
