"""How much faster pruned networks run: ONNX Runtime on the CPU, one thread, original beside pruned.

Every network is pruned to a share of its multiply-accumulates (MACs), once with kept widths on the steps of
this CPU's kernels ('aligned') and once with whatever widths the scores ask for ('none'). The original and all
its pruned versions take turns on the same input, batch 1, so that whatever else the machine does meets all of
them alike. Times are medians over the rounds, in milliseconds; 'faster' is the original's median by the
pruned model's; 'MACs' is the share that was really removed.

Example:
    $ python benchmarks/latency.py --json latency.json
    $ python benchmarks/latency.py mobilenet_v2 --width 0.5 --image 96 --seconds 0.5
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from networks import NETWORKS, export
from rich.console import Console
from rich.table import Table

from onnxprune.bench import Latency, benchmark
from onnxprune.errors import UnreachableError
from onnxprune.passes.scores import METHODS
from onnxprune.pipeline import prune

DEFAULT = ("resnet50", "mobilenet_v2", "densenet121", "unet")
SPARSITIES = (0.3, 0.5, 0.75, 0.9)
ALIGNMENTS = ("auto", "none")
TARGET_SPARSITY = 0.75
TARGETS = {"resnet50": 2.5, "unet": 2.5, "mobilenet_v2": 1.8}
"""How many times as fast the aligned network should be at ``TARGET_SPARSITY``."""


@dataclass(frozen=True)
class Row:
    """One pruned network beside its original.

    Attributes:
        network: its name in ``networks.NETWORKS``.
        method: the score that chose the channels.
        align: 'auto' or 'none'.
        sparsity: share of MACs that was asked for.
        macs: share of MACs removed; None where it could not be reached.
        weights: share of weights removed.
        before_ms: median time of a run of the original.
        after_ms: and of the pruned network.
        speedup: their ratio.
        problem: why it could not be reached.
    """

    network: str
    method: str
    align: str
    sparsity: float
    macs: float | None = None
    weights: float | None = None
    before_ms: float | None = None
    after_ms: float | None = None
    speedup: float | None = None
    problem: str | None = None


def pruned(model: onnx.ModelProto, row: Row) -> tuple[Row, onnx.ModelProto | None]:
    """The row with what was removed, and the model; no model where the sparsity cannot be reached."""
    asked = vars(row)
    try:
        found = prune(model, sparsity=row.sparsity, measure="macs", method=row.method, align=row.align, check=False)
    except UnreachableError as error:
        return Row(**asked | {"problem": str(error)}), None
    macs = 1 - found.after.macs / found.before.macs
    weights = 1 - found.after.weights / found.before.weights
    return Row(**asked | {"macs": macs, "weights": weights}), found.model


def timed(row: Row, before: Latency, after: Latency) -> Row:
    """The row with the times of one benchmark."""
    times = {"before_ms": before.p50_ms, "after_ms": after.p50_ms, "speedup": after.speedup}
    return Row(**vars(row) | times)


def rows(name: str, model: onnx.ModelProto, options: argparse.Namespace) -> Iterator[Row]:
    """Prune one network in every way asked for, then time all of them in turns."""
    wanted = [Row(name, options.method, align, sparsity) for sparsity in options.sparsity for align in options.align]
    made = [pruned(model, row) for row in wanted]
    models = [model, *(each for _, each in made if each is not None)]
    latencies = iter(benchmark(models, provider="cpu", threads=1, seconds=options.seconds, memory=False))
    before = next(latencies)
    for row, each in made:
        yield row if each is None else timed(row, before, next(latencies))


def table(measured: Sequence[Row]) -> Table:
    """The rows, as the terminal shows them."""
    shown = Table(title=f"method {measured[0].method}, 1 thread, batch 1, medians")
    for heading in ("network", "sparsity", "align", "MACs", "weights", "before ms", "after ms", "faster"):
        shown.add_column(heading, justify="left" if heading in ("network", "align") else "right", no_wrap=True)
    for row in measured:
        head = (row.network, f"{row.sparsity:g}", row.align)
        if row.speedup is None:
            shown.add_row(*head, "unreachable")
            continue
        shares = (f"−{row.macs:.1%}", f"−{row.weights:.1%}")
        times = (f"{row.before_ms:.2f}", f"{row.after_ms:.2f}", f"{row.speedup:.2f} ×")
        shown.add_row(*head, *shares, *times)
    return shown


def verdicts(measured: Sequence[Row]) -> Iterator[str]:
    """Whether aligned was ever slower, and the speed-ups that are aimed at."""
    aligned = [row for row in measured if row.align == "auto" and row.speedup is not None]
    slower = [f"{row.network} at {row.sparsity:g} ({row.speedup:.2f} ×)" for row in aligned if _slower(row)]
    yield f"aligned slower than the original: {', '.join(slower) or 'never'}"
    for row in aligned:
        target = TARGETS.get(row.network)
        if target is not None and row.sparsity == TARGET_SPARSITY:
            met = "met" if row.speedup is not None and row.speedup >= target else "MISSED"
            yield f"{row.network} at {row.sparsity:g}: {row.speedup:.2f} ×, aim {target:g} ×: {met}"


def _slower(row: Row) -> bool:
    return row.speedup is not None and row.speedup < 1


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "onnxruntime": ort.__version__}


def report(measured: Sequence[Row], options: argparse.Namespace) -> dict[str, Any]:
    """What ``--json`` writes."""
    settings = {"width": options.width, "image": options.image, "seconds": options.seconds, "threads": 1}
    lines = list(verdicts(measured))
    return machine() | settings | {"verdicts": lines, "rows": [asdict(row) for row in measured]}


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time networks before and after pruning on the CPU.")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"default: {', '.join(DEFAULT)}")
    parser.add_argument("--sparsity", type=float, nargs="+", default=SPARSITIES, metavar="S")
    parser.add_argument("--align", nargs="+", default=ALIGNMENTS, metavar="A", help="auto, none or a step")
    parser.add_argument("--method", choices=list(METHODS), default="lean")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the networks' channels")
    parser.add_argument("--image", type=int, help="height and width of the input (default: the paper's)")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each model (at least 5 rounds)")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args(given)
    options.networks = options.networks or DEFAULT
    if unknown := [name for name in options.networks if name not in NETWORKS]:
        parser.error(f"unknown network '{unknown[0]}', expected some of {', '.join(NETWORKS)}")
    return options


def main(given: Sequence[str] | None = None) -> None:
    """Measure, and print one table and the verdicts."""
    options = arguments(given)
    console = Console() if sys.stdout.isatty() else Console(width=110)
    measured: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            path = Path(folder) / "network.onnx"
            with console.status(f"measuring {name}"):
                export(name, path, width=options.width, image=options.image)
                measured += rows(name, onnx.load(path), options)
    console.print(table(measured))
    for line in verdicts(measured):
        console.print(line, highlight=False, soft_wrap=True)
    if options.json is not None:
        options.json.write_text(json.dumps(report(measured, options), indent=1))


if __name__ == "__main__":
    main()
