"""Families: groups that appear along exactly the same axes of the same constants, such as all channels between two
convolutions. The groups of a family are interchangeable in what they cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import ChannelMap

__all__ = ["families"]

IntArray = NDArray[np.int64]


def families(channel_map: ChannelMap) -> IntArray:
    """Family number of every group, int64 [groups]: equal iff the groups lie along the same axes equally often."""
    signature = np.zeros(channel_map.groups, np.uint64)
    vectors = [ids for axes in channel_map.uses.values() for ids in axes if ids is not None]
    with np.errstate(over="ignore"):
        marks = _mixed(np.arange(1, len(vectors) + 1, dtype=np.uint64))
        for mark, ids in zip(marks, vectors, strict=True):
            np.add.at(signature, ids, mark)
    return np.unique(signature, return_inverse=True)[1].astype(np.int64)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64: well-spread marks from consecutive numbers."""
    x = x * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.asarray(x ^ (x >> np.uint64(27)))
