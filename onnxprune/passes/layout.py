"""What a whole model takes at run time, with the ways into and out of blocks.

ONNX Runtime's CPU kernels compute convolutions in blocks of 8 or 16 channels, and leave an image in blocks as long as
they can: through activations, pools, sums of images alike, joints of whole blocks. A convolution that cannot be computed
in blocks, because it has a width that is no multiple of 4, is slower by itself (much slower, if it is depthwise), and
takes the images around it out of their blocks and back again. So what one width costs shows only in all nodes together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Mapping, Sequence
from math import ceil, prod

from onnx import NodeProto

from onnxprune.graph import Graph, attribute
from onnxprune.passes.latency import Convolution, Target, convolution, is_fused, microseconds
from onnxprune.shapes import Shape

__all__ = ["Runs", "model_microseconds"]

_CONVOLUTIONS = frozenset(("Conv", "FusedConv"))
_ACTIVATIONS = frozenset("BatchNormalization Clip HardSigmoid LeakyRelu Relu Sigmoid Tanh".split())
_POOLS = frozenset("AveragePool GlobalAveragePool GlobalMaxPool MaxPool".split())
_SUMS = frozenset("Add Mul Sum".split())
_RESIZED = frozenset("Resize Upsample".split())
_PLAIN = 4.0  # times as long without blocks: pools, images resized


def model_microseconds(target: Target, graph: Graph, shapes: Mapping[str, Shape]) -> float:
    """Time of one run, in µs, with tensors of these shapes; those of stored constants included."""
    return Runs(target, shapes, graph.overridable).microseconds(graph.nodes, graph.outputs)


class Runs:
    """The times of runs that have most of their nodes in common: what a node takes by itself is found once."""

    def __init__(self, target: Target, shapes: Mapping[str, Shape], open_weights: Container[str]) -> None:
        self.target, self.shapes, self.open_weights = target, shapes, open_weights
        self._simple: dict[int, tuple[NodeProto, float]] = {}  # by identity, of nodes that are held on to
        self._convolutions: dict[int, tuple[NodeProto, Convolution]] = {}

    def microseconds(self, nodes: Sequence[NodeProto], outputs: Collection[str]) -> float:
        """Time of one run of these nodes, in this order."""
        walk = _Walk(self, nodes)
        return sum(map(walk.time, nodes)) + sum(map(walk.leaving, outputs))

    def simple(self, node: NodeProto) -> float:
        """What a node takes that is computed by itself."""
        if id(node) not in self._simple:
            self._simple[id(node)] = node, microseconds(self.target, node, self.shapes, open_weights=self.open_weights)
        return self._simple[id(node)][1]

    def convolution(self, node: NodeProto) -> Convolution:
        if id(node) not in self._convolutions:
            self._convolutions[id(node)] = node, convolution(self.target, node, self.shapes, self.open_weights)
        return self._convolutions[id(node)][1]


class _Walk:
    """``blocked``: tensors that were made in blocks; ``both``: tensors that are there in blocks and without."""

    def __init__(self, runs: Runs, nodes: Sequence[NodeProto]) -> None:
        self.runs, self.target, self.shapes = runs, runs.target, runs.shapes
        self.readers = Counter(name for node in nodes for name in node.input)
        self.maker = {name: node.op_type for node in nodes for name in node.output}
        self.blocked: set[str] = set()
        self.both: set[str] = set()

    def time(self, node: NodeProto) -> float:
        """Of a node, and of bringing what it reads into the layout that it reads."""
        op = node.op_type
        if op in _CONVOLUTIONS:
            return self._convolution(node)
        data = node.input[0] if node.input else ""
        if op in _ACTIVATIONS:
            return self._kept(node, 0.0 if self._is_fused(node) else self.runs.simple(node))
        if op in _POOLS:
            return self._kept(node, self._pooling(node, data in self.blocked))
        if op in _RESIZED and len(self.shapes.get(data, ())) == 4:
            return self._kept(node, self.runs.simple(node) * (1 if data in self.blocked else _PLAIN))
        if self._stays_blocked(node):
            self.blocked.update(node.output)
            return self.runs.simple(node)
        return self.runs.simple(node) + sum(self.leaving(name) for name in dict.fromkeys(node.input))

    def leaving(self, name: str) -> float:
        """What it takes to read a tensor without blocks; once for all who do."""
        return self._crossing(name) if name in self.blocked else 0.0

    def _entering(self, name: str) -> float:
        return self._crossing(name) if name not in self.blocked else 0.0

    def _crossing(self, name: str) -> float:
        if name in self.both:
            return 0.0
        self.both.add(name)
        shape, block = self.shapes.get(name, ()), self.target.block
        whole = ceil(shape[1] / block) * block / max(shape[1], 1) if len(shape) > 1 and block else 1.0
        return self.target.start + whole * prod(shape) / self.target.ordered

    def _convolution(self, node: NodeProto) -> float:
        found = self.runs.convolution(node)
        if found.makes_blocks:
            self.blocked.update(node.output)
        crossing = self._entering(node.input[0]) if found.reads_blocks else self.leaving(node.input[0])
        return self.target.start + found.time + crossing

    def _kept(self, node: NodeProto, time: float) -> float:
        """A node that reads and makes blocks, or neither."""
        if node.input[0] in self.blocked:
            self.blocked.update(node.output)
        return time

    def _is_fused(self, node: NodeProto) -> bool:
        return is_fused(node, self.maker.get(node.input[0], "")) and self.readers[node.input[0]] == 1

    def _pooling(self, node: NodeProto, blocked: bool) -> float:
        kernel = attribute(node, "kernel_shape")
        made = prod(self.shapes.get(node.output[0], ()))
        looked = made * prod(kernel) if isinstance(kernel, list) else prod(self.shapes.get(node.input[0], ()))
        return self.target.start + (1 if blocked else _PLAIN) * looked / self.target.near

    def _stays_blocked(self, node: NodeProto) -> bool:
        """Whether a sum or joint reads and makes blocks."""
        if not node.input or any(name not in self.blocked for name in node.input):
            return False
        sizes = [self.shapes.get(name, ()) for name in node.input]
        if node.op_type == "Concat":
            return attribute(node, "axis") == 1 and all(s[1] % self.target.block == 0 for s in sizes)
        return node.op_type in _SUMS and len(set(sizes)) == 1
