"""Pruning a model too big for memory, beside copying its file: seconds, and the peak of anonymous memory.

Models of a given size, with their weights in a file beside them, are written into a scratch folder: a stack of 3×3
convolutions, a stack of Gemms, and a decoder of MatMuls (grouped-query attention, a gated feed-forward, an
embedding). Each is copied, pruned without loss, and pruned at a sparsity by each method, all in turn, as whole
processes of the command line with ``--no-verify``; medians of several rounds. The copy is flushed to the disk, as a
saved model is, and all of them find the file in the same state, because they take turns. Each waits for a few seconds
first, with nothing left to be written: disks of virtual machines lend out a burst of speed, which they have to make up
for afterwards.

Memory is anonymous (Linux only): what the process allocated, without pages of files, which the system can drop and
read again. The kernel is asked every millisecond or two. What counts is the peak beyond the weights that the written
model keeps, since those can be in memory by right.

``--verify`` also prunes once with verification by ONNX Runtime, which holds the original, and says what that costs.

Example:
    $ python benchmarks/big_model.py --folder /var/tmp --kind conv decoder --json big_model.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from onnxprune.measure import count_weights

COPY, VERIFIED = "copy", "verified"
TIME_TARGET = 3.0
"""At most so many times copying the file."""
MEMORY_TARGET = 1e9
"""At most so many bytes beyond the weights that are kept."""


# ---- models


@dataclass
class Stored:
    """Weights that go to a file as they are made, one in memory at a time."""

    file: BinaryIO
    tensors: list[TensorProto]
    random: np.random.Generator

    @property
    def bytes(self) -> int:
        return self.file.tell()

    def weight(self, *shape: int) -> str:
        """Store random numbers, scaled so that a layer of so many inputs keeps what it is fed in size; their name."""
        fan_in = math.prod(shape[1:]) if len(shape) == 4 else shape[0]
        values = self.random.standard_normal(shape, np.float32) * np.float32(fan_in**-0.5)
        tensor = TensorProto(name=f"w{len(self.tensors)}", dims=shape, data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        places = (("location", Path(self.file.name).name), ("offset", self.bytes), ("length", values.nbytes))
        for key, value in places:
            tensor.external_data.add(key=key, value=str(value))
        values.tofile(self.file)
        self.tensors.append(tensor)
        return tensor.name

    def small(self, values: NDArray[np.generic]) -> str:
        """A tensor inside the model."""
        self.tensors.append(numpy_helper.from_array(values, f"c{len(self.tensors)}"))
        return self.tensors[-1].name


Build = Callable[[Stored, int], ModelProto]


def conv(stored: Stored, size: int) -> ModelProto:
    """3×3 convolutions of 1024 channels, each with a ReLU."""
    width = 1024
    nodes = [helper.make_node("Conv", ["x", stored.weight(width, 3, 1, 1)], ["x0"])]
    while stored.bytes < size:
        i, weight = len(nodes) // 2, stored.weight(width, width, 3, 3)
        nodes.append(helper.make_node("Conv", [f"x{i}", weight], [f"y{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"]))
    nodes.append(helper.make_node("Conv", [nodes[-1].output[0], stored.weight(10, width, 1, 1)], ["y"]))
    return _model(nodes, stored, ("x", TensorProto.FLOAT, [1, 3, 8, 8]), [1, 10, 8, 8])


def gemm(stored: Stored, size: int) -> ModelProto:
    """Gemms of 4096 units, each with a bias and a ReLU."""
    width, nodes, last = 4096, list[NodeProto](), "x"
    while stored.bytes < size:
        i, bias = len(nodes), stored.small(stored.random.standard_normal(width, np.float32))
        nodes.append(helper.make_node("Gemm", [last, stored.weight(width, width), bias], [f"y{i}"], transB=i // 2 % 2))
        nodes.append(helper.make_node("Relu", [f"y{i}"], [f"x{i}"]))
        last = f"x{i}"
    nodes.append(helper.make_node("MatMul", [last, stored.weight(width, 10)], ["y"]))
    return _model(nodes, stored, ("x", TensorProto.FLOAT, [1, width]), [1, 10])


def decoder(stored: Stored, size: int) -> ModelProto:
    """A language model: RMS normalisations written out, 32 heads on 8 keys and values, SiLU gates, an embedding."""
    words, width, hidden, length = 32_000, 2048, 5632, 16
    net = _Decoder(stored, width, length)
    x = net.add("Gather", stored.weight(words, width), "ids")
    while stored.bytes < size - 4 * words * width:
        x = net.add("Add", x, net.attention(net.normalised(x), 32, 8))
        h = net.normalised(x)
        gate, up = (net.add("MatMul", h, stored.weight(width, hidden)) for _ in range(2))
        gated = net.add("Mul", net.add("Mul", gate, net.add("Sigmoid", gate)), up)
        x = net.add("Add", x, net.add("MatMul", gated, stored.weight(hidden, width)))
    net.nodes.append(helper.make_node("MatMul", [net.normalised(x), stored.weight(width, words)], ["y"]))
    return _model(net.nodes, stored, ("ids", TensorProto.INT64, [1, length]), [1, length, words])


class _Decoder:
    """Nodes of a decoder on [1, length, width], one after another."""

    def __init__(self, stored: Stored, width: int, length: int) -> None:
        self.nodes: list[NodeProto] = []
        self.stored, self.width, self.length = stored, width, length

    def add(self, operator: str, *inputs: str, **attributes: object) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def number(self, value: float) -> str:
        return self.stored.small(np.float32(value))

    def normalised(self, x: str) -> str:
        """x / √(mean x² + ε) · γ"""
        mean = self.add("ReduceMean", self.add("Pow", x, self.number(2)), axes=[-1])
        root = self.add("Sqrt", self.add("Add", mean, self.number(1e-5)))
        return self.add("Mul", self.add("Div", x, root), self.stored.small(np.ones(self.width, np.float32)))

    def attention(self, x: str, heads: int, groups: int) -> str:
        """Queries of all heads, keys and values of fewer, each repeated for its share of the heads."""
        each = self.width // heads
        q, k, v = (self._apart(self.add("MatMul", x, self.stored.weight(self.width, n * each)), n, each)
                   for n in (heads, groups, groups))  # fmt: skip
        k, v = (self._repeated(t, heads, groups, each) for t in (k, v))
        scores = self.add("MatMul", q, self.add("Transpose", k, perm=[0, 1, 3, 2]))
        weights = self.add("Softmax", self.add("Mul", scores, self.number(each**-0.5)), axis=-1)
        seen = self.add("Transpose", self.add("MatMul", weights, v), perm=[0, 2, 1, 3])
        joined = self.add("Reshape", seen, self._sizes(0, 0, self.width))
        return self.add("MatMul", joined, self.stored.weight(self.width, self.width))

    def _sizes(self, *sizes: int) -> str:
        return self.stored.small(np.array(sizes, np.int64))

    def _apart(self, x: str, heads: int, each: int) -> str:
        return self.add("Transpose", self.add("Reshape", x, self._sizes(0, 0, heads, each)), perm=[0, 2, 1, 3])

    def _repeated(self, x: str, heads: int, groups: int, each: int) -> str:
        wide = self.add("Unsqueeze", x, self._sizes(2))
        wide = self.add("Expand", wide, self._sizes(1, groups, heads // groups, self.length, each))
        return self.add("Reshape", wide, self._sizes(0, heads, self.length, each))


KINDS: dict[str, Build] = {"conv": conv, "gemm": gemm, "decoder": decoder}


def _model(nodes: Sequence[NodeProto], stored: Stored, feed: tuple[str, int, list[int]], out: list[int]) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info(*feed)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        stored.tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write(kind: str, size: int, path: Path) -> None:
    """Write a model of some ``size`` bytes, its weights beside it."""
    with path.with_name(f"{path.name}.data").open("wb") as file:
        model = KINDS[kind](Stored(file, [], np.random.default_rng(0)), size)
        os.fsync(file.fileno())
    onnx.save(model, path)


# ---- runs


@dataclass(frozen=True)
class Run:
    """What one process took: ``seconds``, and the peak of its anonymous memory in bytes."""

    seconds: float
    peak: int


def measured(command: Sequence[str]) -> Run:
    """Run a command to its end; a failure ends the benchmark with the command's own words."""
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_memory(process.pid))
            time.sleep(0.001)
        seconds = time.perf_counter() - start
        if process.returncode:
            said.seek(0)
            sys.exit(f"a measured process failed:\n{said.read()}")
    return Run(seconds, peak)


def anonymous_memory(process: int) -> int:
    """Bytes of memory that a process allocated, 0 once it has ended (proc(5), /proc/pid/status)."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(("RssAnon", "RssShmem")))


def copied(files: Sequence[Path], folder: Path) -> Run:
    """Copy files into a folder and flush them to the disk."""
    start = time.perf_counter()
    for file in files:
        shutil.copyfile(file, folder / file.name)
        with (folder / file.name).open("rb+") as copy:
            os.fsync(copy.fileno())
    return Run(time.perf_counter() - start, 0)


# ---- what is measured


@dataclass(frozen=True)
class Row:
    """What pruning a model in one way took.

    ``kind`` of model; ``way``: how it was pruned; ``weights`` and ``kept``: bytes of weights before and after;
    ``seconds``: median; ``ratio``: to copying the file; ``beyond``: peak of anonymous bytes beyond ``kept``, the
    largest of all rounds.
    """

    kind: str
    way: str
    weights: int
    kept: int
    seconds: float
    ratio: float
    peak: int

    @property
    def beyond(self) -> int:
        return self.peak - self.kept

    @property
    def met(self) -> bool:
        return self.ratio <= TIME_TARGET and self.beyond <= MEMORY_TARGET


def ways(options: argparse.Namespace) -> dict[str, list[str]]:
    """Name of a way to prune → its command-line options."""
    chosen = {"lossless": list[str]()}
    for method in options.method:
        chosen[f"{options.sparsity:g}, {method}"] = ["-s", str(options.sparsity), "--method", method]
    found = {way: [*words, "--no-verify"] for way, words in chosen.items()}
    if options.verify:
        found |= {f"{way}, {VERIFIED}": chosen[way] for way in list(chosen)[:2]}
    return found


def rest(seconds: float) -> None:
    """Let the disk finish, and get its breath back."""
    os.sync()
    time.sleep(seconds)


def rows(kind: str, options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Copy and prune one model in every way, in turns."""
    model, out = folder / "model.onnx", folder / "out"
    write(kind, int(options.gigabytes * 1e9), model)
    files = [model, model.with_name(f"{model.name}.data")]
    runs: dict[str, list[Run]] = {}
    kept: dict[str, int] = {}
    for _ in range(options.rounds):
        rest(options.rest)
        out.mkdir()
        runs.setdefault(COPY, []).append(copied(files, out))
        shutil.rmtree(out)
        for way, wanted in ways(options).items():
            rest(options.rest)
            out.mkdir()
            command = [sys.executable, "-m", "onnxprune", str(model), "-o", str(out / "out.onnx"), "-q", *wanted]
            runs.setdefault(way, []).append(measured(command))
            kept[way] = _weights(out / "out.onnx")
            shutil.rmtree(out)
    seconds = {way: statistics.median(run.seconds for run in each) for way, each in runs.items()}
    for way, bytes_kept in kept.items():
        peak = max(run.peak for run in runs[way])
        yield Row(kind, way, _weights(model), bytes_kept, seconds[way], seconds[way] / seconds[COPY], peak)


def _weights(path: Path) -> int:
    return 4 * count_weights(onnx.load(path, load_external_data=False))


def table(found: Sequence[Row]) -> Table:
    """The rows, as the terminal shows them."""
    aims = f"≤ {TIME_TARGET:g} × copying the file, ≤ {MEMORY_TARGET / 1e6:g} MB beyond the kept weights"
    shown = Table(title=f"aims: {aims}")
    for heading in ("model", "pruned", "GB", "GB kept", "s", "× copy", "peak MB", "beyond kept", ""):
        shown.add_column(heading, justify="left" if heading in ("model", "pruned", "") else "right")
    for row in found:
        sizes = (f"{row.weights / 1e9:.2f}", f"{row.kept / 1e9:.2f}")
        numbers = (f"{row.seconds:.1f}", f"{row.ratio:.2f}", f"{row.peak / 1e6:.0f}", f"{row.beyond / 1e6:.0f}")
        verdict = "" if VERIFIED in row.way else "met" if row.met else "MISSED"
        shown.add_row(row.kind, row.way, *sizes, *numbers, verdict)
    return shown


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Prune big models, beside copying their files.")
    parser.add_argument("--folder", type=Path, help="where a scratch folder is made, and removed again")
    parser.add_argument("--kind", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    parser.add_argument("--gigabytes", type=float, default=2.5, metavar="GB", help="of weights, in units of 10⁹ bytes")
    parser.add_argument("--sparsity", type=float, default=0.5, metavar="S")
    parser.add_argument("--method", nargs="+", default=("magnitude", "lean"), metavar="M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rest", type=float, default=5.0, metavar="SECONDS", help="before each run")
    parser.add_argument("--verify", action="store_true", help="also with verification by ONNX Runtime")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print a table for each kind of model as soon as it is there."""
    options = arguments(given)
    if not Path("/proc/self/status").is_file():
        sys.exit("this system does not tell a process's anonymous memory; run it on Linux")
    console, found = Console(width=None if sys.stdout.isatty() else 120), list[Row]()
    for kind in options.kind:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder, console.status(f"pruning a model: {kind}"):
            held = list(rows(kind, options, Path(folder)))
        console.print(table(held))
        found += held
        if options.json is not None:
            options.json.write_text(json.dumps([asdict(row) | {"beyond": row.beyond} for row in found], indent=1))


if __name__ == "__main__":
    main()
