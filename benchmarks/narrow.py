"""What narrowing is worth: networks with zero kernel slices, as they are, and narrowed.

Every dense convolution loses the kernel slices of a random share of its inputs ('inputs': another share for every
consumer, so that hardly a channel dies), or a random share of all its slices ('slices'). Channels that are dead leave
in any case ('never'). 'auto' is what the model of latencies chose, and must not be slower than 'never'; 'always' is
every narrowing that can be done, which shows what the model is for. All take turns on the same input, batch 1, one
thread; times are medians in milliseconds. Models given as files are taken as they are.

Example:
    $ python benchmarks/narrow.py --networks densenet121 --image 96
    $ python benchmarks/narrow.py --models masked.onnx
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
from networks import export
from onnx import ModelProto, numpy_helper
from rich.console import Console
from rich.table import Table

from onnxprune.bench import benchmark
from onnxprune.graph import Graph
from onnxprune.ops import build_map
from onnxprune.passes.narrow import Restructure
from onnxprune.pipeline import prune

DEFAULT = ("densenet121", "unet", "resnet50", "mobilenet_v2")
SHARES = {"inputs": (0.3, 0.6, 0.9), "slices": (0.9, 0.99)}
SLOWER = 1.05  # times as long as before that counts as slower: what such a measurement can tell


def with_zeros(model: ModelProto, kind: str, share: float, seed: int = 0) -> ModelProto:
    """A copy of which dense convolutions have zero kernel slices."""
    rng = np.random.default_rng(seed)
    channel_map = build_map(Graph(model))
    result = ModelProto()
    result.CopyFrom(model)
    held = {tensor.name: tensor for tensor in result.graph.initializer}
    for c in channel_map.contractions:
        node = channel_map.graph.nodes[c.node]
        name = node.input[c.weight]
        if c.groups > 1 or name not in held or node.op_type not in ("Conv", "ConvTranspose"):
            continue
        values = np.array(numpy_helper.to_array(held[name]))
        places = np.moveaxis(values, (c.in_axis, c.out_axis), (0, 1))
        gone = rng.random(places.shape[: 1 if kind == "inputs" else 2]) < share
        places[gone] = 0
        held[name].CopyFrom(numpy_helper.from_array(values, name))
    return result


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, ModelProto]]:
    for path in arguments.models:
        yield path.stem, onnx.load(path)
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{name}.onnx")
            export(name, path, image=arguments.image, width=arguments.width)
            model = onnx.load(path)
        yield name, model
        for kind, shares in SHARES.items():
            for share in shares:
                yield f"{name}, {share:.0%} of {kind} zero", with_zeros(model, kind, share)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=DEFAULT)
    parser.add_argument("--models", nargs="*", type=Path, default=[])
    parser.add_argument("--image", type=int, help="side of the image")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the channels")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing for each model")
    arguments = parser.parse_args(given)
    modes = get_args(Restructure)
    order = ("never", "auto", "always")
    assert set(order) == set(modes)
    table = Table("model", "original", *order, "narrowed", "blocks", "auto is faster than original", "than never")
    slower = []
    for name, model in cases(arguments):
        results = {mode: prune(model, restructure=mode, check=False) for mode in order}
        timed = benchmark([model, *(results[mode].model for mode in order)], seconds=arguments.seconds, memory=False)
        times = [each.p50_ms for each in timed]
        found = results["auto"]
        table.add_row(name, *(f"{t:.3g}" for t in times), str(len(found.narrowed)), str(len(found.blocks)),
                      f"{times[0] / times[2]:.2f} ×", f"{times[1] / times[2]:.2f} ×")  # fmt: skip
        slower += [name] if times[2] > SLOWER * times[1] else []
    Console(width=150).print(table)
    print("slower than without narrowing:", ", ".join(slower) or "none")


if __name__ == "__main__":
    main()
