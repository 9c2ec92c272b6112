"""How long pruning takes, beside reading and writing the same file.

Whole process: ``onnxprune MODEL --sparsity S --no-verify -q`` from start to exit, and a process that does
``onnx.load`` and ``onnx.save`` of the same file. Inside one process: the same two calls, the channel map (which
holds the channel graph), all of pruning without verification and file, and onnxsim's ``simplify`` where it is
installed. All take turns; times are medians in seconds, ratios are to load + save of the same kind.

``big_model.py`` does the same for models of gigabytes, and says how much memory that takes.

Example:
    $ python benchmarks/compile_time.py --json compile_time.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.table import Table

from onnxprune.graph import Graph
from onnxprune.measure import count_weights
from onnxprune.ops import build_map
from onnxprune.pipeline import prune

LOAD_AND_SAVE = "load + save"
CHANNEL_MAP = "channel map and graph"
WHOLE_TARGETS = {"magnitude": 4.0}
"""At most this many times load + save, as whole processes."""
INSIDE_TARGETS = {CHANNEL_MAP: 0.2, "magnitude": 0.5}
"""At most so many seconds, inside one process."""

Task = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One thing that was timed.

    Attributes:
        what: was timed.
        where: 'process' (a whole one) or 'call'.
        seconds: median.
        ratio: to load + save.
        aim: what is aimed at, '' for nothing.
        met: whether it is; None without an aim.
    """

    what: str
    where: str
    seconds: float
    ratio: float
    aim: str = ""
    met: bool | None = None


def medians(tasks: Mapping[str, Task], rounds: int) -> dict[str, float]:
    """Median seconds of each task; they take turns, after one turn that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for counted in [False, *[True] * rounds]:
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if counted:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments to its end; a failure ends the benchmark with the process's own words."""
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"a measured process failed:\n{done.stderr or done.stdout}")
    return done


# Time


def pruning(model: Path, out: Path, method: str, sparsity: float) -> list[str]:
    """The command line that is measured, without the program."""
    return [str(model), "-o", str(out), "--sparsity", str(sparsity), "--method", method, "--no-verify", "-q"]


def whole_processes(model: Path, methods: Sequence[str], sparsity: float) -> dict[str, Task]:
    """Load + save, then pruning by each method, each in a process of its own."""
    out = model.with_name("out.onnx")
    copy = "import sys, onnx; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])"
    tasks: dict[str, Task] = {LOAD_AND_SAVE: lambda: process("-c", copy, model, out)}
    for method in methods:
        command = ["-m", "onnxprune", *pruning(model, out, method, sparsity)]
        tasks[method] = lambda command=command: process(*command)  # type: ignore[misc]
    return tasks


def calls(path: Path, methods: Sequence[str], sparsity: float) -> dict[str, Task]:
    """Load + save, and what happens between them, in this process."""
    model = onnx.load(path)
    tasks: dict[str, Task] = {
        LOAD_AND_SAVE: lambda: onnx.save(onnx.load(path), path.with_name("out.onnx")),
        CHANNEL_MAP: lambda: build_map(Graph(model, None)),
    }
    for method in methods:
        tasks[method] = lambda method=method: prune(  # type: ignore[misc]
            model, sparsity=sparsity, method=method, check=False
        )
    if importlib.util.find_spec("onnxsim"):
        import onnxsim  # type: ignore[import-not-found, import-untyped, unused-ignore]

        tasks["onnxsim.simplify"] = lambda: onnxsim.simplify(model)
    return tasks


def judged(where: str, times: Mapping[str, float]) -> list[Row]:
    """Rows with ratios and whether the targets are met."""
    rows = []
    for what, seconds in times.items():
        ratio = seconds / times[LOAD_AND_SAVE]
        limit = (WHOLE_TARGETS if where == "process" else INSIDE_TARGETS).get(what)
        if limit is None:
            rows.append(Row(what, where, seconds, ratio))
        elif where == "process":
            rows.append(Row(what, where, seconds, ratio, f"≤ {limit:g} ×", ratio <= limit))
        else:
            rows.append(Row(what, where, seconds, ratio, f"≤ {limit:g} s", seconds <= limit))
    return rows


def time_table(rows: Sequence[Row], title: str) -> Table:
    """The rows, as the terminal shows them."""
    shown = Table(title=title)
    for heading in ("timed", "what", "median s", "× load + save", "aim", ""):
        shown.add_column(heading, justify="right" if heading in ("median s", "× load + save") else "left")
    for row in rows:
        verdict = "" if row.met is None else "met" if row.met else "MISSED"
        where = "whole process" if row.where == "process" else "call"
        what = f"prune, {row.what}" if row.what in ("magnitude", "lean", "random") else row.what
        shown.add_row(where, what, f"{row.seconds:.3f}", f"{row.ratio:.2f}", row.aim, verdict)
    return shown


# Command line


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time pruning beside reading and writing the same file.")
    parser.add_argument("--network", default="resnet50", help="one of networks.py's (default: resnet50)")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the network's channels")
    parser.add_argument("--sparsity", type=float, default=0.5, metavar="S")
    parser.add_argument("--method", nargs="+", default=("magnitude", "lean"), metavar="M")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of everything")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    return parser.parse_args(given)


def times(path: Path, options: argparse.Namespace, console: Console) -> list[Row]:
    """Measure whole processes, then calls."""
    with console.status("timing whole processes"):
        rows = judged("process", medians(whole_processes(path, options.method, options.sparsity), options.rounds))
    with console.status("timing calls"):
        return rows + judged("call", medians(calls(path, options.method, options.sparsity), options.rounds))


def main(given: Sequence[str] | None = None) -> None:
    """Measure, and print a table and the targets."""
    options = arguments(given)
    console = Console() if sys.stdout.isatty() else Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        # A process of its own, so that torch is not in this one.
        process(Path(__file__).with_name("networks.py"), options.network, path, "--width", str(options.width))
        weights, size = count_weights(onnx.load(path)), path.stat().st_size
        rows = times(path, options, console)
        title = f"{options.network}: {weights / 1e6:.1f} M weights, {size / 1e6:.0f} MB, sparsity {options.sparsity:g}"
        console.print(time_table(rows, title))
        if not importlib.util.find_spec("onnxsim"):
            console.print("onnxsim is not installed: not timed")
    if options.json is not None:
        facts: dict[str, Any] = {"network": options.network, "weights": weights, "bytes": size}
        facts |= {"python": platform.python_version(), "machine": platform.machine(), "rounds": options.rounds}
        facts |= {"times": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
