"""Where an axis of fixed size comes from.

"Coupled with an axis of fixed size" names the node at which channels meet an axis that has none, often far from the
cause: a state that the model takes as an input, a mean over the channels. The way back from that node along the
activations without channels ends at a model input, or at the operator that made an axis without channels: out of
others with them, or as one that freezes what it reads (an STFT).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from onnx import NodeProto

from onnxprune.channels import FIXED_SIZE, Axes, ChannelMap, Frozen
from onnxprune.graph import node_name

__all__ = ["Origins"]


@dataclass(frozen=True)
class Origins:
    """Explains the reasons of one channel map."""

    channel_map: ChannelMap

    def explained(self, cause: Frozen) -> Frozen:
        """The same cause with the origin of the fixed size added to its reason, where the way back finds one."""
        node = self._nodes.get((cause.operator, cause.node)) if cause.reason == FIXED_SIZE else None
        origin = None if node is None else self._origin(node)
        return cause if origin is None else replace(cause, reason=f"{cause.reason} {origin}")

    @cached_property
    def _nodes(self) -> dict[tuple[str, str], NodeProto]:
        return {(node.op_type, node_name(node)): node for node in self.channel_map.graph.nodes}

    @cached_property
    def _freezing(self) -> set[tuple[str, str]]:
        causes = dict.fromkeys(self.channel_map.reasons.values())
        return {(cause.operator, cause.node) for cause in causes if cause.reason != FIXED_SIZE}

    def _origin(self, node: NodeProto) -> str | None:
        """A clause that follows "an axis of fixed size"."""
        graph, found = self.channel_map.graph, self._plain(node)
        while found is not None and found in graph.producer:
            made_by = graph.nodes[graph.producer[found]]
            found = self._plain(made_by)
            if found is None or (made_by.op_type, node_name(made_by)) in self._freezing:
                return f"made by {made_by.op_type} '{node_name(made_by)}'"
        return None if found is None else f"of model input '{found}'"

    def _plain(self, node: NodeProto) -> str | None:
        """The first activation that a node reads without channels, unless it is broadcast to a larger one."""
        sizes = {name: self._size(name) for name in node.input if name and name not in self.channel_map.graph.constants}
        most = max(sizes.values(), default=0)
        plain = (name for name, size in sizes.items() if size == most and not _any(self.channel_map.axes.get(name, ())))
        return next(plain, None)

    def _size(self, name: str) -> int:
        return prod(self.channel_map.shapes.of.get(name, (0,)))


def _any(axes: Axes) -> bool:
    return any(ids is not None for ids in axes)
