"""``inspect --chains``: the strongest chains, by layer and channel."""

from __future__ import annotations

import json
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from exactness import model_of

from onnxprune.cli import main
from onnxprune.graph import Graph
from onnxprune.inspection import inspect
from onnxprune.listed_chains import Link, strongest_chains
from onnxprune.ops import build_map
from onnxprune.passes.anchored_chains import anchored_chains
from onnxprune.passes.chains import log_weights
from onnxprune.passes.channel_edges import channel_graph
from onnxprune.passes.channel_graph import consistent_edges
from onnxprune.passes.norms import operator_block


def test_chains_are_told_by_layer_and_channel() -> None:
    """Two ways through a block: 0 → 1 → 0 at 4 · 3 · gain 2, and the skip of channel 0 at 4."""
    w1 = np.array([[4.0], [0.5]], np.float32).reshape(2, 1, 1, 1)
    w2 = np.array([[0.25, 0.5], [3.0, 0.125]], np.float32).reshape(2, 2, 1, 1)
    model = model_of(
        "(float[1,1,4,4] x) => (float[A,B,C,D] y) "
        "{ a = Conv(x, w1) b = Conv(a, w2) c = BatchNormalization<epsilon=0.0>(b, g, s, m, v) y = Add(a, c) }",
        w1=w1, w2=w2, g=np.array([1, -2], np.float32), v=np.ones(2, np.float32), s=2, m=2,
    )  # fmt: skip
    channel_map = build_map(Graph(model))
    best, skip, *_ = strongest_chains(channel_map, channel_graph(channel_map), 10)
    assert best.product == pytest.approx(24)
    first, second = best.links
    assert best.links == (Link("Conv→a", "Conv", 0, 0, first.norm), Link("Conv→b", "Conv", 0, 1, second.norm))
    assert [link.norm for link in best.links] == pytest.approx([4, 6])
    assert skip.product == pytest.approx(1)  # the skip itself has nothing new; the next best slice is a0 → b0
    assert [(link.input, link.output) for link in skip.links] == [(0, 0), (0, 0)]


def test_every_chain_is_joined_and_none_is_stronger_than_the_one_before(models: Path) -> None:
    channel_map = build_map(Graph(onnx.load(models / "unet_circles.onnx")))
    graph = channel_graph(channel_map)
    norms = {c.node: operator_block(channel_map, c) for c in channel_map.contractions}
    found = list(islice(anchored_chains(graph, log_weights(graph, norms)), 50))
    assert len(found) == 50
    assert all(a.value >= b.value - 1e-9 for a, b in pairwise(found))
    seen: set[tuple[int, int, int]] = set()
    for chain in found:
        assert not set(chain.slices) <= seen
        seen |= set(chain.slices)
        mask = {node: np.zeros(weight.shape, np.bool_) for node, weight in norms.items()}
        for node, out, i in chain.slices:
            mask[node][out, i] = True
        assert all(np.array_equal(held, mask[node]) for node, held in consistent_edges(graph, mask).items())


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0
    return capsys.readouterr().out


def test_the_command_line_lists_them(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(models / "resnet_digits.onnx")
    assert printed(capsys, "inspect", path, "--chains", "3").count("\nchain ") == 3
    held = json.loads(printed(capsys, "inspect", path, "--chains", "2", "--json"))["chains"]
    assert len(held) == 2
    assert held[0]["product"] == pytest.approx(10 ** held[0]["log10_product"])
    assert held[0]["links"][0].keys() == {"layer", "operator", "input", "output", "norm"}


def test_none_are_listed_unless_asked_for(models: Path) -> None:
    assert inspect(models / "resnet_digits.onnx").chains == ()
