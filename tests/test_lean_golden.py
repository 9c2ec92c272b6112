"""The kernels that LEAN's authors kept, from their own nets (not part of the project; see ``real_models``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.graph import Graph
from onnxprune.ops import build_map
from onnxprune.passes.chains import lean_mask
from onnxprune.passes.channel_edges import channel_graph
from onnxprune.passes.norms import operator_block

LAYERS = 50
KERNELS = LAYERS * (LAYERS + 1) // 2
GRID = 128  # points of their transform
LEFT, STEPS = 0.05, 15  # share of the kernels after so many steps
AGREEING = 0.995


@pytest.mark.parametrize(("before", "step"), [("msd_step00", 1), ("msd_step14", 15)])
def test_the_published_kernels_are_kept(real_models: Path, before: str, step: int) -> None:
    """A mixed-scale dense net; its first and last convolution (1×1) are left alone. All 1275 kernels agreed when this
    was written; the tolerance is for a runtime library that rounds a norm differently."""
    folder = real_models.parent / "lean"
    if not (folder / f"{before}.onnx").exists():
        pytest.skip(f"'{before}.onnx' is not in {folder}")
    channel_map = build_map(Graph(onnx.load(folder / f"{before}.onnx")))
    dense = channel_map.contractions[1:-1]
    assert len(dense) == LAYERS
    norms = {c.node: operator_block(channel_map, c, GRID) for c in dense}
    kept = lean_mask(channel_graph(channel_map), norms, int(LEFT ** (step / STEPS) * KERNELS))
    found = np.zeros((LAYERS, LAYERS), np.bool_)
    for row, c in enumerate(dense):
        found[row, : row + 1] = kept[c.node][0]
    published = np.load(folder / f"msd_step{step:02d}_mask.npy")
    below = np.tril_indices(LAYERS)
    assert np.count_nonzero(found[below] == published[below]) >= AGREEING * KERNELS
    assert np.count_nonzero(found) == np.count_nonzero(published)
