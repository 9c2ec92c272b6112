"""What a whole model takes at run time, with the ways into and out of blocks.

ONNX Runtime's CPU kernels compute convolutions in blocks of 8 or 16 channels, and leave an image in blocks as long as
they can: through activations, pools, sums of images alike, joints of whole blocks. A convolution that cannot be computed
in blocks, because it has a width that is no multiple of 4, is slower by itself (much slower, if it is depthwise), and
takes the images around it out of their blocks and back again. So what one width costs shows only in all nodes together.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from onnx import NodeProto

from onnxprune.graph import Graph, attribute
from onnxprune.passes.latency import Target, convolution, is_fused, microseconds
from onnxprune.shapes import Shape

__all__ = ["model_microseconds"]

_ACTIVATIONS = frozenset("Clip HardSigmoid LeakyRelu Relu Sigmoid Tanh".split())
_POOLS = frozenset("AveragePool GlobalAveragePool GlobalMaxPool MaxPool".split())
_SUMS = frozenset("Add Mul Sum".split())
_RESIZED = frozenset("Resize Upsample".split())


def model_microseconds(target: Target, graph: Graph, shapes: Mapping[str, Shape]) -> float:
    """Time of one run, in µs, with tensors of these shapes; those of stored constants included."""
    walk = _Walk(target, graph, shapes)
    time = sum(walk.time(index, node) for index, node in enumerate(graph.nodes))
    return time + sum(map(walk.leaving, graph.outputs))


class _Walk:
    """``blocked``: tensors that were made in blocks; ``both``: tensors that are there in blocks and without."""

    def __init__(self, target: Target, graph: Graph, shapes: Mapping[str, Shape]) -> None:
        self.target, self.graph, self.shapes = target, graph, shapes
        self.blocked: set[str] = set()
        self.both: set[str] = set()

    def time(self, index: int, node: NodeProto) -> float:
        """Of a node, and of bringing what it reads into the layout that it reads."""
        op = node.op_type
        if op in ("Conv", "FusedConv"):
            return self._convolution(node)
        data = node.input[0] if node.input else ""
        if op in _ACTIVATIONS or op == "BatchNormalization":
            return self._kept(node, 0.0 if self._is_fused(index, node) else self._simple(node))
        if op in _POOLS:
            return self._kept(node, self._pooling(node, data in self.blocked))
        if op in _RESIZED and len(self.shapes.get(data, ())) == 4:
            return self._kept(node, self._simple(node) if data in self.blocked else 4 * self._simple(node))
        if self._stays_blocked(node):
            self.blocked.update(node.output)
            return self._simple(node)
        return self._simple(node) + sum(self.leaving(name) for name in dict.fromkeys(node.input))

    def leaving(self, name: str) -> float:
        """What it takes to read a tensor without blocks; once for all who do."""
        return self._crossing(name) if name in self.blocked else 0.0

    def _entering(self, name: str) -> float:
        return self._crossing(name) if name not in self.blocked else 0.0

    def _crossing(self, name: str) -> float:
        if name in self.both:
            return 0.0
        self.both.add(name)
        return self.target.start + prod(self.shapes.get(name, ())) / self.target.ordered

    def _convolution(self, node: NodeProto) -> float:
        found = convolution(self.target, node, self.shapes)
        if found.makes_blocks:
            self.blocked.update(node.output)
        crossing = self._entering(node.input[0]) if found.reads_blocks else self.leaving(node.input[0])
        return self.target.start + found.time + crossing

    def _kept(self, node: NodeProto, time: float) -> float:
        """A node that reads and makes blocks, or neither."""
        if node.input[0] in self.blocked:
            self.blocked.update(node.output)
        return time

    def _simple(self, node: NodeProto) -> float:
        return microseconds(self.target, node, self.shapes)

    def _is_fused(self, index: int, node: NodeProto) -> bool:
        maker = self.graph.producer.get(node.input[0])
        after = "" if maker is None else self.graph.nodes[maker].op_type
        return is_fused(node, after) and len(self.graph.consumers[node.input[0]]) == 1

    def _pooling(self, node: NodeProto, blocked: bool) -> float:
        kernel = attribute(node, "kernel_shape")
        made = prod(self.shapes.get(node.output[0], ()))
        looked = made * prod(kernel) if isinstance(kernel, list) else prod(self.shapes.get(node.input[0], ()))
        return self.target.start + (1 if blocked else 4) * looked / self.target.near

    def _stays_blocked(self, node: NodeProto) -> bool:
        """Whether a sum or joint reads and makes blocks."""
        if not node.input or any(name not in self.blocked for name in node.input):
            return False
        sizes = [self.shapes.get(name, ()) for name in node.input]
        if node.op_type == "Concat":
            return attribute(node, "axis") == 1 and all(s[1] % self.target.block == 0 for s in sizes)
        return node.op_type in _SUMS and len(set(sizes)) == 1
