"""The two papers' comparisons in one frame: what each method keeps of a trained net at kernel granularity.

Every net is pruned by every method to a share of its kernel slices, without retraining, and measured: accuracy on its
test set; A-C, the share of the chosen slices that are accessible and co-accessible (the others do nothing and are
cut); the kernel slices and multiply-accumulates (MACs) that are left; and the latency on ONNX Runtime, one thread, in
turns with the original. Slices of layers that are left alone do not count. Rows are printed as they are measured.

Two rows are equal where two methods are the same there. ``lean`` takes single slices, like ``sv``, as soon as no chain
has a product above 1, and few have in nets of small gains: the share of a net's slices in such chains is printed with
its name. ``topology`` is ``magnitude`` as long as that is connected (A-C 100 %). A slice of one number has one norm.

The nets of ``models/`` bring their test sets. The mixed-scale dense net of the LEAN authors and its test set come from
their repository (schoonhovenrichard/LEAN_CNN_pruning), as ONNX and as an .npz of ``images`` and ``labels``.

Example:
    $ python benchmarks/papers.py --msd msd_trained_dynamo.onnx --msd-test cs_test.npz --json papers.json
    $ python benchmarks/papers.py models/unet_circles.onnx --methods lean topology --sparsities 0.9
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.data import RECIPES
from models.evaluate import data_of
from onnxprune.bench import benchmark
from onnxprune.bodies import flatten
from onnxprune.errors import UnreachableError
from onnxprune.graph import Graph
from onnxprune.ops import build_map
from onnxprune.passes.chains import chains, log_weights
from onnxprune.passes.kernel_slices import Kernels, kernels_of
from onnxprune.passes.norms import operator_block
from onnxprune.pipeline import prune

MODELS = Path(__file__).resolve().parent.parent / "models"
METHODS = ("lean", "lean-anchored", "sv", "l1", "topology", "magnitude", "random")
HEADINGS = ("accuracy", "    A-C", "slices left", "MACs left", "     ms", "original ms", "× faster")
SPARSITIES = (0.5, 0.8, 0.9, 0.95)

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Net:
    """A trained model file and its test set."""

    path: Path
    images: Images
    labels: Labels
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One net pruned once.

    Attributes:
        net: its name.
        method: what chose the kernel slices; 'original' for none.
        sparsity: share of kernel slices that was to go, of those that may.
        kernels: share of them that is left.
        accuracy: share of labels (of pixels, where the net labels pixels) that are right, without retraining.
        connected: share of the chosen slices that are accessible and co-accessible (A-C).
        macs: share of multiply-accumulates left.
        before_ms: median time of a run of the original.
        after_ms: and of the pruned net.
        seconds: that pruning took.
        problem: why it was not to be had.
    """

    net: str
    method: str
    sparsity: float
    kernels: float = 1.0
    accuracy: float | None = None
    connected: float | None = None
    macs: float = 1.0
    before_ms: float | None = None
    after_ms: float | None = None
    seconds: float = 0.0
    problem: str = ""


def nets(paths: Sequence[Path], limit: int) -> Iterator[Net]:
    """Models of the project with their test sets, of which ``limit`` samples are used at most."""
    for path in paths:
        recipe = RECIPES[data_of(path)]
        images, labels = recipe.make(**recipe.test)
        yield Net(path, images[:limit], labels[:limit])


def dense_net(path: Path, test: Path, keep: Sequence[str], limit: int) -> Net:
    """The LEAN authors' net."""
    with np.load(test) as held:
        return Net(path, held["images"][:limit, None].astype(np.float32), held["labels"][:limit].astype(np.int64),
                   tuple(keep))  # fmt: skip


def accuracy(path: Path, images: Images, labels: Labels) -> float:
    """Share of right labels; the classes lie along axis 1."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    batch = source.shape[0] if isinstance(source.shape[0], int) else 50 if images.size < 1e7 else 5
    starts = range(0, len(images), batch)
    found = [session.run(None, {source.name: images[start : start + batch]})[0].argmax(axis=1) for start in starts]
    return float(np.mean(np.concatenate(found) == labels))


def measured(net: Net, method: str, sparsity: float, seconds: float, scratch: Path) -> Row:
    """Prune, evaluate and time one net."""
    name, begin, fixed = net.path.stem, time.perf_counter(), left_alone(net)
    try:
        result = prune(net.path, sparsity=sparsity * (1 - fixed), method=method, measure="kernels",
                       granularity="kernel", keep=net.keep)  # fmt: skip
    except UnreachableError as error:
        most = math.floor(error.reachable / (1 - fixed) * 1e4) / 1e4  # never rounded up
        return Row(name, method, sparsity, problem=f"cannot be reached, at most {most:.2%} can")
    took = time.perf_counter() - begin
    out = scratch / f"{name}-{method}-{sparsity:g}.onnx"
    result.save(out)
    one = {v.name: (1, *net.images.shape[1:]) for v in result.model.graph.input}
    timed = benchmark([net.path, out], threads=1, provider="cpu", seconds=seconds, memory=False, shapes=one)
    assert result.connected is not None
    return Row(
        net=name,
        method=method,
        sparsity=sparsity,
        kernels=(result.after.kernels / result.before.kernels - fixed) / (1 - fixed),
        accuracy=accuracy(out, net.images, net.labels),
        connected=result.connected.method,
        macs=result.after.macs / result.before.macs,
        before_ms=timed[0].p50_ms,
        after_ms=timed[1].p50_ms,
        seconds=took,
    )


def kernels(net: Net) -> Kernels:
    return kernels_of(build_map(Graph(flatten(onnx.load(net.path)))), net.keep)


def left_alone(net: Net) -> float:
    """The share of a net's kernel slices that always stay."""
    found = kernels(net)
    return found.fixed / found.total


def chained(net: Net) -> float:
    """The share of a net's kernel slices that LEAN takes in chains, and not one by one."""
    found = kernels(net)
    graph = found.graph
    norms = {c.node: operator_block(found.channel_map, c) for held in found.free for c in held.contractions}
    taken = sum(len(chain.slices) for chain in chains(graph, log_weights(graph, norms)))
    return taken / (found.total - found.fixed)


def line(row: Row) -> str:
    """A row under the headings."""
    start = f"{row.sparsity:4g}  {row.method:13}"
    if row.problem:
        return f"{start}  {row.problem}"
    shares = (row.connected, row.kernels, row.macs)
    cells = [f"{row.accuracy:.4f}", *("" if share is None else f"{share:.2%}" for share in shares)]
    if row.before_ms and row.after_ms:
        cells += [f"{row.after_ms:.3g}", f"{row.before_ms:.3g}", f"{row.before_ms / row.after_ms:.2f}"]
    return "  ".join([start, *(f"{cell:>{len(head)}}" for cell, head in zip(cells, HEADINGS, strict=False))])


def compared(net: Net, methods: Sequence[str], sparsities: Sequence[float], seconds: float) -> Iterator[Row]:
    """All rows of a net, the original first."""
    yield Row(net.path.stem, "original", 0.0, accuracy=accuracy(net.path, net.images, net.labels))
    with tempfile.TemporaryDirectory(prefix="papers-") as scratch:
        for sparsity in sparsities:
            for method in methods:
                yield measured(net, method, sparsity, seconds, Path(scratch))


def shown(net: Net, rows: Iterable[Row], console: Console) -> Iterator[Row]:
    """The rows, each printed as soon as it is measured."""
    console.print(f"{net.path.stem} ({len(net.images)} test samples; {chained(net):.1%} in chains above 1)")
    console.print("  ".join([f"{'S':>4}  {'method':13}", *HEADINGS]))
    for row in rows:
        console.print(line(row))
        yield row


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table: a line for each net and sparsity, a column for each method."""
    methods = list(dict.fromkeys(row.method for row in rows if row.method != "original"))
    whole = {row.net: row.accuracy for row in rows if row.method == "original"}
    lines = [f"| net (accuracy) | S | {' | '.join(methods)} |", "|---" * (2 + len(methods)) + "|"]
    for net, sparsity in dict.fromkeys((row.net, row.sparsity) for row in rows if row.method != "original"):
        own = {row.method: row for row in rows if (row.net, row.sparsity) == (net, sparsity)}
        cells = [cell(own[method]) if method in own else "" for method in methods]
        lines.append(f"| {net} ({whole[net]:.3f}) | {sparsity:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(row: Row) -> str:
    """Accuracy, A-C (rounded down: 100 % is all), multiply-accumulates left, how many times as fast."""
    if row.problem or row.before_ms is None or row.after_ms is None:
        return row.problem
    faster = row.before_ms / row.after_ms
    shares = f"{math.floor(100 * (row.connected or 0))} · {100 * row.macs:.0f}"
    return f"{row.accuracy:.3f} · {shares} · {faster:.{0 if faster >= 10 else 1}f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Kernel granularity: methods side by side, without retraining.")
    parser.add_argument("models", type=Path, nargs="*", help="models of models/; default: all")
    parser.add_argument("--msd", type=Path, help="the LEAN authors' net as ONNX")
    parser.add_argument("--msd-test", type=Path, help="its test set (.npz: images, labels)")
    parser.add_argument("--msd-keep", nargs="*", default=(), help="layers of it to leave alone, as the authors do")
    parser.add_argument("--only-msd", action="store_true", help="skip the models of models/")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES)
    parser.add_argument("--images", type=int, default=10_000, help="of each test set at most")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing per model")
    parser.add_argument("--json", type=Path, help="write all numbers here, again after every row")
    parser.add_argument("--markdown", nargs="+", type=Path, metavar="JSON", help="print these as a table and end")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(table([Row(**held) for path in arguments.markdown for held in json.loads(path.read_text())]))
        return
    console = Console(width=160, highlight=False)
    rows: list[Row] = []
    found = [p for p in sorted(MODELS.glob("*.onnx")) if not p.stem.endswith("_zeroed")]
    chosen = [] if arguments.only_msd else arguments.models or found
    every = list(nets(chosen, arguments.images))
    if arguments.msd and arguments.msd.is_file() and arguments.msd_test and arguments.msd_test.is_file():
        every.insert(0, dense_net(arguments.msd, arguments.msd_test, arguments.msd_keep, arguments.images))
    else:
        console.print("without the LEAN authors' net (--msd and --msd-test name no files)")
    for net in every:
        for row in shown(net, compared(net, arguments.methods, arguments.sparsities, arguments.seconds), console):
            rows.append(row)
            if arguments.json:
                arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
