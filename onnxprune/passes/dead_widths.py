"""Dead channels that stay: where a layer without them would be slower than with them.

Removing what is dead leaves whatever width is left, and on some widths a target's kernels are slower than on wider ones:
with 17 of 32 channels a depthwise convolution falls out of its blocks, and takes several times as long. Every family of
channels is rounded up to a width that is not slower than a wider one; then each gives its dead channels back, unless
the model of latencies says that the network without them takes longer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import ChannelMap
from onnxprune.passes.families import families
from onnxprune.passes.latency import Target
from onnxprune.passes.layout import model_microseconds
from onnxprune.shapes import Shape

__all__ = ["kept_shapes", "worth_keeping"]

BoolArray = NDArray[np.bool_]

_SHARE, _LEAST = 0.03, 10.0  # what has to be gained by dead channels: of the time, and µs
_MOST = 200_000  # visits of a node


def worth_keeping(channel_map: ChannelMap, alive: BoolArray, rounded: BoolArray, target: Target) -> BoolArray:
    """``alive`` (bool [groups]), and those of ``rounded`` without which the model would be slower."""
    if np.array_equal(alive, rounded):
        return alive

    def time(keep: BoolArray) -> float:
        graph = channel_map.graph
        return model_microseconds(target, graph.nodes, graph.outputs, kept_shapes(channel_map, keep))

    slow, keep = time(alive), rounded
    best = time(keep)
    if best > slow - max(_SHARE * slow, _LEAST):
        return alive
    family = families(channel_map)
    odd = np.unique(family[rounded & ~alive])
    for f in odd if len(odd) * len(channel_map.graph.nodes) <= _MOST else ():
        tried = np.where(family == f, alive, keep)
        if (found := time(tried)) <= best:
            keep, best = tried, found
    return keep


def kept_shapes(channel_map: ChannelMap, keep: BoolArray) -> dict[str, Shape]:
    """The shapes of tensors and stored constants once only these groups are left."""
    axes = {channel_map.graph.nodes[i].input[k]: axes for (i, k), axes in channel_map.uses.items()} | channel_map.axes
    sizes = dict(channel_map.shapes.of)
    for name, labels in axes.items():
        shape = sizes.get(name, ())
        if len(shape) == len(labels):
            sizes[name] = tuple(
                size if ids is None else int(np.count_nonzero(keep[ids]))
                for size, ids in zip(shape, labels, strict=True)
            )
    return sizes
