"""How long the papers' selections take: LEAN's path search on dense layers, and all of both on a ResNet-50.

``layers`` are those of the LEAN authors' own benchmark: L layers of C channels, every channel joined to every channel
of the next layer, a share of the edges above 1 (uniform in 1 … 2, the others in 0 … 1), a tenth of the edges kept. The
channel graph of such a chain is built directly. ``ResNet-50``: the channel graph of the exported model (random
weights), operator norms of all kernel slices, and the selection of 2 % of them; the norms are scaled layer by layer so
that the given share is above 1, as trained nets with normalisations between have them. ``topology``: the same by
connected magnitude. ``norms``: all kernel slices of its 3×3 layers at once, on the LEAN authors' grid of 128² points
and on the coarser one that is the default here, beside a loop as in their code, one ``np.fft.fft2`` and one maximum a
kernel (timed on a sample). The first row is a small search that also compiles, or loads, the compiled search.

Times are seconds of one core (user and system time of this process; run it with OMP_NUM_THREADS=1), so that other work
on the machine counts as little as possible. Rows are printed as they are measured. An exponent is the slope of log
time over log edges, for layers that get wider and for more layers. In the number of layers the search grows faster than
the edges do: each of L slices that a path takes away lowers what about L others have ahead of them.

Example:
    $ OMP_NUM_THREADS=1 python benchmarks/chains.py --json chains.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console

from onnxprune.graph import Graph
from onnxprune.ops import build_map
from onnxprune.passes.chains import lean_edges, lean_mask
from onnxprune.passes.channel_edges import channel_graph
from onnxprune.passes.channel_graph import Block, ChannelGraph, Span
from onnxprune.passes.kernel_scores import Topology
from onnxprune.passes.kernel_slices import kernels_of
from onnxprune.passes.norms import operator_block, operator_norms, slices

FIRST_USE = (2, 256)
WIDER = ((10, 128), (10, 256), (10, 512))
DEEPER = ((10, 256), (20, 256), (50, 256))
SHARES = (0.02, 0.2)
KEPT = 0.1
TARGETS = {"50 × 256": 20.0, "ResNet-50": 20.0}
LEAST_RATIO = 100.0
THEIR_GRID = 128  # points per axis
OUR_GRID = 32  # what 3×3 kernels have by default
SAMPLE = 2000  # kernels that the loop is timed on
HEAD = f"{'layers × channels':>17}  above 1  {'edges':>9}  {'kept':>7}  seconds  aim"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """``above``: share of the edges above 1, where that matters; ``seconds`` of one core; ``target``: at most so many,
    or None."""

    what: str
    above: float | None
    edges: int
    kept: int
    seconds: float
    target: float | None


def dense(layers: int, channels: int, above: float, seed: int = 0) -> tuple[ChannelGraph, dict[int, Floats]]:
    """A chain of dense layers and the log weights of its edges."""
    rng = np.random.default_rng(seed)
    spans = tuple(Span(f"t{i}", 0, i * channels, channels) for i in range(layers + 1))
    blocks, weights = [], {}
    for i in range(layers):
        first = np.arange(i * channels, (i + 1) * channels)
        blocks.append(Block(i, first[None], first + channels, np.zeros(channels)))
        low, high = rng.random((2, channels, channels))
        weights[i] = np.log(np.where(rng.random((channels, channels)) < above, 1 + high, low))
    none = np.zeros(0, np.int64)
    last = np.arange(layers * channels, (layers + 1) * channels)
    return ChannelGraph(spans, tuple(blocks), none, none, np.zeros(0), none, none, np.arange(channels), last), weights


def layout(layers: int, channels: int, above: float) -> Row:
    graph, weights = dense(layers, channels, above)
    edges = layers * channels**2
    start = time.process_time()
    kept = lean_edges(graph, weights, int(KEPT * edges))
    seconds = time.process_time() - start
    name = f"{layers} × {channels}"
    return Row(name, above, edges, sum(int(held.sum()) for held in kept.values()), seconds, TARGETS.get(name))


def resnet(path: Path, above: float, keep: float = 0.02) -> Row:
    """Everything from the model to the mask, reading the file apart."""
    model = onnx.load(path)
    start = time.process_time()
    channel_map = build_map(Graph(model))
    graph = channel_graph(channel_map)
    norms = {}
    for c in channel_map.contractions:
        norm = operator_block(channel_map, c).astype(np.float64)
        norms[c.node] = norm / max(float(np.quantile(norm, 1 - above)), 1e-300)
    edges = sum(norm.size for norm in norms.values())
    kept = lean_mask(graph, norms, int(keep * edges))
    seconds = time.process_time() - start
    return Row("ResNet-50", above, edges, sum(int(h.sum()) for h in kept.values()), seconds, TARGETS["ResNet-50"])


def topology(path: Path, keep: float = 0.02) -> Row:
    """Everything from the model to the mask, reading the file apart."""
    model = onnx.load(path)
    start = time.process_time()
    kernels = kernels_of(build_map(Graph(model)))
    mask = Topology().selection(kernels).choose(int(keep * kernels.total))
    seconds = time.process_time() - start
    return Row("topology", None, kernels.total, kernels.count(mask), seconds, TARGETS["ResNet-50"])


@dataclass(frozen=True)
class Norms:
    """Seconds for so many ``kernels``, [all at once, by a loop of transforms (from a sample)], on each grid."""

    kernels: int
    ours: tuple[float, float]
    theirs: tuple[float, float]


def norms(path: Path) -> Norms:
    """Operator norms of all 3×3 kernels of a model."""
    channel_map = build_map(Graph(onnx.load(path)))
    held = [slices(channel_map, c) for c in channel_map.contractions]
    held = [w for w in held if w.shape[2:] == (3, 3)]
    flat = np.concatenate([w.reshape(-1, 3, 3) for w in held])

    def seconds(grid: int) -> tuple[float, float]:
        start = time.process_time()
        for w in held:
            operator_norms(w, grid=grid)
        together, start = time.process_time() - start, time.process_time()
        for kernel in flat[:SAMPLE]:
            np.max(np.abs(np.fft.fft2(kernel, [grid, grid], axes=[0, 1])))
        return together, (time.process_time() - start) / min(SAMPLE, len(flat)) * len(flat)

    return Norms(len(flat), seconds(OUR_GRID), seconds(THEIR_GRID))


def print_norms(console: Console, found: Norms) -> None:
    loop = found.theirs[1]
    console.print(f"norms of {found.kernels} 3×3 kernels: {loop:.1f} s by a loop of transforms to {THEIR_GRID}² points")
    for grid, (together, own_loop) in ((THEIR_GRID, found.theirs), (OUR_GRID, found.ours)):
        met = "yes" if loop >= LEAST_RATIO * together else "NO"
        console.print(
            f"on {grid}² points at once: {together:.2f} s, {loop / together:.0f} × (≥ {LEAST_RATIO:g}: {met}); "
            f"{own_loop / together:.0f} × a loop on the same points"
        )


def exponent(rows: Sequence[Row]) -> float:
    logs = np.log([[row.edges, row.seconds] for row in rows])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def shown(console: Console, row: Row) -> Row:
    aim = "" if row.target is None else f"≤ {row.target:g}: {'yes' if row.seconds <= row.target else 'NO'}"
    above = "" if row.above is None else f"{row.above:.0%}"
    console.print(f"{row.what:>17}  {above:>7}  {row.edges:9}  {row.kept:7}  {row.seconds:7.2f}  {aim}")
    return row


def exported_resnet(folder: Path) -> Path | None:
    """The network of ``benchmarks/networks.py``; None without torch."""
    try:
        from networks import export
    except ImportError:
        return None
    export("resnet50", folder / "resnet50.onnx")
    return folder / "resnet50.onnx"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--resnet", type=Path, help="an exported ResNet-50; default: the one of networks.py")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    chosen = parser.parse_args()
    console = Console(width=160, highlight=False)
    console.print(HEAD)
    shown(console, layout(*FIRST_USE, SHARES[0]))
    layers = {shape: [shown(console, layout(*shape, above)) for above in SHARES] for shape in sorted({*WIDER, *DEEPER})}
    rows = [row for found in layers.values() for row in found]
    fits = {
        f"{how} with {above:.0%} above 1": exponent([layers[shape][k] for shape in shapes])
        for how, shapes in (("wider layers", WIDER), ("more layers", DEEPER))
        for k, above in enumerate(SHARES)
    }
    found = None
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.resnet or exported_resnet(Path(folder))
        if path is not None:
            rows += [shown(console, resnet(path, above)) for above in SHARES]
            rows.append(shown(console, topology(path)))
            found = norms(path)
            print_norms(console, found)
    for how, fit in fits.items():
        console.print(f"growth by {how}: time ~ edges^{fit:.2f}")
    if chosen.json:
        text = {"rows": [asdict(row) for row in rows], "exponents": fits, "norms": found and asdict(found)}
        chosen.json.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
