"""Dead channels that stay: where a layer without them would be slower than with them.

Removing what is dead leaves whatever width is left, and on some widths a target's kernels are slower than on wider ones:
with 17 of 32 channels a depthwise convolution falls out of its blocks, and takes several times as long. Where, by the
model of latencies, the network would be slower than with all dead channels, every family of channels is rounded up, to
a width that is not slower than a wider one or to whole blocks; then each gives its dead channels back, unless the network
without them takes longer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import ChannelMap
from onnxprune.passes.families import families
from onnxprune.passes.latency import Target
from onnxprune.passes.layout import model_microseconds
from onnxprune.shapes import Shape

__all__ = ["kept_shapes", "worth_keeping"]

BoolArray = NDArray[np.bool_]

_LEAST = 10.0  # µs; less than that is no loss
_MOST = 200_000  # visits of a node


def worth_keeping(channel_map: ChannelMap, alive: BoolArray, rounded: Sequence[BoolArray], target: Target) -> BoolArray:
    """``alive`` (bool [groups]), and what else has to stay so that the model is not slower than it was; ``rounded``:
    with dead ones up to good widths, wider and wider."""
    ways = [alive, *(way for way in rounded if not np.array_equal(way, alive))]
    if len(ways) == 1:
        return alive

    def time(keep: BoolArray) -> float:
        return model_microseconds(target, channel_map.graph, kept_shapes(channel_map, keep))

    times = [time(way) for way in ways]
    best = min(times)
    if times[0] <= best + _LEAST or times[0] <= time(np.ones_like(alive)) + _LEAST:
        return alive
    keep, family = ways[times.index(best)], families(channel_map)
    odd = np.unique(family[np.any(ways, axis=0) & ~alive])
    for f in odd if len(ways) * len(odd) * len(channel_map.graph.nodes) <= _MOST else ():
        tried = [np.where(family == f, way, keep) for way in ways]
        times = [time(each) for each in tried]
        keep = next(way for way, t in zip(tried, times, strict=True) if t <= min(times) + _LEAST / len(odd))
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
