"""Pruned networks on a CUDA GPU: are they what they should be, and how much faster?

Networks: those named on the command line, by default ResNet-50-, U-Net- and ViT-like ones (made here by
``networks.py``, batch free) and every model in ``models/``. Each is pruned to shares of its weights, with kept
widths on multiples of 8, as tensor cores like them ('8'), and with whatever widths the scores ask for ('none').

Verified: pruned against masked reference, both on ONNX Runtime's CUDA provider, in float32 (multiplied in full
precision) and float16. The error is the largest difference of an output as a share of its scale.
Timed: original and all its pruned versions in turns on the same random inputs, batch 1 and 32, float32 (ONNX
Runtime's default, which allows TF32) and float16. Inputs and outputs stay on the device, the clock stops when
the device has finished. Times are medians in milliseconds.

The most important comes first and results are written to ``--json`` after every step, so that a run that ends
early, by ``--budget-s`` or otherwise, leaves what it has. Without a GPU it says so and exits 0.

Needs torch (for the three networks), onnx, onnx-graphsurgeon, numpy, scipy and onnxruntime-gpu with the CUDA and
cuDNN it was built for; not rich or typer. For a machine without a network, fetch what is missing there elsewhere:

    $ pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels onnxruntime-gpu onnx-graphsurgeon
    $ pip install --no-index --no-deps wheels/*.whl   # there
    $ PYTHONPATH=. python benchmarks/gpu.py --json gpu.json
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from onnxprune.bench import Latency, benchmark
from onnxprune.errors import UnreachableError, UsageError
from onnxprune.passes.scores import METHODS
from onnxprune.pipeline import Result, prune
from onnxprune.runtime import Provider, resolve_provider
from onnxprune.verify import Verification, verify

MADE_HERE = ("resnet50", "unet", "vit")
MODELS = Path(__file__).parents[1] / "models"
SPARSITIES = (0.5, 0.9, 0.98)
ALIGNMENTS = ("8", "none")
PRECISIONS = ("fp32", "fp16")
Timing = tuple[str, int]
"""(precision, batch)"""
TIMINGS: tuple[Timing, ...] = (("fp32", 1), ("fp16", 32), ("fp32", 32), ("fp16", 1))
"""The most telling first."""
DRY_TIMINGS: tuple[Timing, ...] = (("fp32", 1), ("fp16", 2))


@dataclass(frozen=True)
class Variant:
    """One way to prune one network: ``align`` is '8' or 'none'."""

    network: str
    sparsity: float
    align: str

    def file(self, precision: str) -> str:
        """Where the pruned model lies, inside the working folder."""
        return f"{self.network}_{self.sparsity:g}_{self.align}_{precision}.onnx"


@dataclass(frozen=True)
class Verified:
    """One variant against its masked reference; ``error`` and ``tolerance`` as shares of an output's scale."""

    network: str
    sparsity: float
    align: str
    precision: str
    provider: str
    ok: bool
    error: float
    tolerance: float
    weights: float  # share removed
    macs: float  # share removed


@dataclass(frozen=True)
class Timed:
    """One variant beside its original; milliseconds are medians of ``rounds`` runs."""

    network: str
    sparsity: float
    align: str
    precision: str
    batch: int
    provider: str
    shapes: dict[str, list[int]]
    rounds: int
    before_ms: float
    after_ms: float
    speedup: float


@dataclass(frozen=True)
class Skipped:
    """What was not done, and why; ``failed`` where something went wrong that should not have."""

    network: str
    what: str
    why: str
    failed: bool = False


@dataclass
class Report:
    """All that was found, and where it is written after every step."""

    device: dict[str, Any]
    settings: dict[str, Any]
    path: Path | None
    complete: bool = False
    verified: list[Verified] = field(default_factory=list)
    timed: list[Timed] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def write(self) -> None:
        """Write the JSON, if one is wanted: whole or not at all."""
        if self.path is None:
            return
        parts = {name: value for name, value in vars(self).items() if name != "path"}
        rows = {name: [asdict(row) for row in parts[name]] for name in ("verified", "timed", "skipped")}
        draft = self.path.with_suffix(".partial")
        draft.write_text(json.dumps(parts | rows, indent=1))
        draft.replace(self.path)

    def take_over(self, networks: Sequence[str]) -> None:
        """Keep what an earlier run on the same device found of other networks."""
        if self.path is None or not self.path.is_file():
            return
        old = json.loads(self.path.read_text())
        if old["device"] != self.device:
            raise SystemExit(f"'{self.path}' holds numbers of another device ({old['device']}): choose another --json")
        self.verified = [Verified(**row) for row in old["verified"] if row["network"] not in networks]
        self.timed = [Timed(**row) for row in old["timed"] if row["network"] not in networks]
        self.skipped = [Skipped(**row) for row in old["skipped"] if row["network"] not in networks]


class Budget:
    """Seconds left; a step is not begun when the longest one of its kind so far would not fit."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.longest: dict[str, float] = {}

    def fits(self, kind: str) -> bool:
        """Whether there is time for another step of a kind."""
        return time.monotonic() + self.longest.get(kind, 0.0) < self.end

    @contextlib.contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """Note how long a step takes."""
        start = time.monotonic()
        yield
        self.longest[kind] = max(self.longest.get(kind, 0.0), time.monotonic() - start)


# Half precision

_FLOAT32_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs (regions, scales) that stay float32 by the operators' definition."""


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float16: inputs, outputs, constants and casts to float32.

    Numbers beyond float16's range become its largest. Bodies of control flow are not converted.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    kept = {node.input[k] for node in graph.node for k in _FLOAT32_INPUTS.get(node.op_type, ()) if k < len(node.input)}
    for tensor in graph.initializer:
        if tensor.name not in kept:
            _halve(tensor)
    for node in graph.node:
        if not kept.intersection(node.output):
            _halve_attributes(node)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return half


def _halve(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        largest = np.finfo(np.float16).max
        values = np.clip(numpy_helper.to_array(tensor), -largest, largest).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _halve_attributes(node: onnx.NodeProto) -> None:
    for held in node.attribute:
        if held.type == onnx.AttributeProto.TENSOR:
            _halve(held.t)
        elif node.op_type == "Cast" and held.name == "to" and held.i == TensorProto.FLOAT:
            held.i = TensorProto.FLOAT16
        elif node.op_type == "Constant" and held.name in ("value_float", "value_floats"):
            values = np.array(held.f if held.name == "value_float" else list(held.floats), np.float16)
            held.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(values)))


# Steps


@dataclass
class Bench:
    """What every step needs: where it runs, where files lie, how long things may take."""

    options: argparse.Namespace
    provider: Provider
    folder: Path
    report: Report
    budget: Budget

    def attempt(self, network: str, kind: str, what: str, step: Callable[[], None]) -> None:
        """Do a step if there is time; what goes wrong is noted, and the next step has its turn."""
        start = time.monotonic()
        if not self.budget.fits(kind):
            self.report.skipped.append(Skipped(network, what, "out of time"))
        else:
            with self.budget.spend(kind):
                self._do(network, what, step)
        self.report.write()
        print(f"{network}: {what}, {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)

    def _do(self, network: str, what: str, step: Callable[[], None]) -> None:
        try:
            step()
        except (UnreachableError, UsageError) as error:
            self.report.skipped.append(Skipped(network, what, str(error)))
        except Exception as error:  # time on a GPU is dear: one failure must not end an unattended run
            lines = str(error).splitlines() or [""]
            why = f"failed, {type(error).__name__}: {lines[0]}"
            self.report.skipped.append(Skipped(network, what, why, failed=True))

    @property
    def timings(self) -> tuple[Timing, ...]:
        """What is timed."""
        return DRY_TIMINGS if self.options.dry_run_on_cpu else TIMINGS

    def original(self, network: str, precision: str = "fp32") -> Path:
        """Where a network lies."""
        return self.folder / f"{network}_original_{precision}.onnx"


def prepare(bench: Bench, network: str) -> None:
    """Put the original into the working folder, in both precisions."""
    path = bench.original(network)
    if network in MADE_HERE:
        from networks import export

        small = {"width": 0.25, "depth": 0.25, "image": 32, "classes": 10} if bench.options.dry_run_on_cpu else {}
        export(network, path, batch=None, **small)  # type: ignore[arg-type]
    else:
        path.write_bytes((MODELS / f"{network}.onnx").read_bytes())
    onnx.save(to_half(onnx.load(path)), bench.original(network, "fp16"))


def prune_and_verify(bench: Bench, variant: Variant) -> None:
    """Prune, compare with the masked reference in both precisions, keep the files that are to be timed."""
    if not bench.original(variant.network).is_file():
        raise UsageError("the network was not made")
    result = prune(
        onnx.load(bench.original(variant.network)),
        sparsity=variant.sparsity,
        method=bench.options.method,
        align=variant.align,
        check=False,
        provider=bench.provider,
    )
    for precision in PRECISIONS:
        reference, pruned = (to_half(each) if precision == "fp16" else each for each in (result.masked, result.model))
        found = verify(reference, pruned, provider=bench.provider)
        bench.report.verified.append(verified(variant, precision, result, found))
        onnx.save(pruned, bench.folder / variant.file(precision))


def verified(variant: Variant, precision: str, result: Result, found: Verification) -> Verified:
    """One row of the report."""
    return Verified(
        **asdict(variant),
        precision=precision,
        provider=found.provider,
        ok=found.ok,
        error=found.error,
        tolerance=found.rtol,
        weights=1 - result.after.weights / result.before.weights,
        macs=1 - result.after.macs / result.before.macs,
    )


def time_together(bench: Bench, network: str, precision: str, batch: int) -> None:
    """Time the original and all its pruned versions in turns."""
    options = bench.options
    variants = [each for each in variants_of(options, network) if (bench.folder / each.file(precision)).is_file()]
    if not variants:
        raise UsageError("nothing was pruned")
    before, *others = benchmark(
        [bench.original(network, precision), *(bench.folder / each.file(precision) for each in variants)],
        batch=batch,
        provider=bench.provider,
        threads=1,
        warmup=options.warmup,
        seconds=options.seconds,
        memory=False,
    )
    for variant, after in zip(variants, others, strict=True):
        bench.report.timed.append(timed(variant, (precision, batch), before, after))


def timed(variant: Variant, timing: Timing, before: Latency, after: Latency) -> Timed:
    """One row of the report."""
    return Timed(
        **asdict(variant),
        precision=timing[0],
        batch=timing[1],
        provider=after.provider,
        shapes={name: list(shape) for name, shape in after.shapes.items()},
        rounds=after.rounds,
        before_ms=before.p50_ms,
        after_ms=after.p50_ms,
        speedup=after.speedup,
    )


def variants_of(options: argparse.Namespace, network: str) -> list[Variant]:
    """All ways to prune a network."""
    return [Variant(network, sparsity, align) for sparsity, align in product(options.sparsity, ALIGNMENTS)]


def measure(bench: Bench) -> None:
    """Everything, breadth first: all networks verified, then all timed in the most telling way, and so on."""
    networks = bench.options.networks
    for network in networks:
        bench.attempt(network, "prepare", "export", partial(prepare, bench, network))
        for variant in variants_of(bench.options, network):
            what = f"prune and verify {variant.sparsity:g}, align {variant.align}"
            bench.attempt(network, "verify", what, partial(prune_and_verify, bench, variant))
    for timing, network in product(bench.timings, networks):
        what = "time {}, batch {}".format(*timing)
        bench.attempt(network, "time", what, partial(time_together, bench, network, *timing))


# Device


def cpu() -> dict[str, Any]:
    """The device of a dry run."""
    return {"kind": "cpu", "name": platform.processor() or platform.machine()} | _versions()


def gpu() -> dict[str, Any] | None:
    """Name, memory, driver and versions; None without a GPU."""
    query = "name,memory.total,driver_version,compute_cap"
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    if not found:
        return None
    facts = zip(query.split(","), (each.strip() for each in found[0].split(",")), strict=True)
    return {"kind": "cuda", **dict(facts)} | _versions()


def _versions() -> dict[str, str]:
    return {"onnxruntime": ort.__version__, "onnx": onnx.__version__, "python": platform.python_version()}


def cuda_works() -> bool:
    """Whether a model runs on ONNX Runtime's CUDA provider."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(AttributeError, OSError):
        ort.preload_dlls()
    try:
        resolve_provider("cuda")
    except UsageError:
        return False
    return True


def say_why_not() -> None:
    """Load the CUDA provider with all messages on."""
    print(f"ONNX Runtime {ort.__version__} has {', '.join(ort.get_available_providers())}")
    ort.preload_dlls()
    value = onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "probe", [value], [result])
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    ort.InferenceSession(model.SerializeToString(), providers=["CUDAExecutionProvider"])


# Tables


def aligned(rows: Sequence[Sequence[str]], text: int) -> str:
    """Columns as wide as they need to be: the first few text, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        names = (cell.ljust(width) for cell, width in zip(row[:text], widths, strict=False))
        numbers = (cell.rjust(width) for cell, width in zip(row[text:], widths[text:], strict=True))
        lines.append("  ".join((*names, *numbers)).rstrip())
    return "\n".join(lines)


def table(report: Report, timings: Sequence[Timing]) -> str:
    """One line for each original and each variant: what was removed, errors, times."""
    head = ("network", "sparsity", "align", "weights", "MACs", *(f"error {each}" for each in PRECISIONS))
    rows = [(*head, *("ms {}, batch {}".format(*each) for each in timings))]
    for network in dict.fromkeys(row.network for row in report.verified):
        before = {(row.precision, row.batch): row.before_ms for row in report.timed if row.network == network}
        times = (f"{before[each]:.3f}       " if each in before else "" for each in timings)
        rows.append((network, "original", *[""] * (len(head) - 2), *times))
        found = {(row.sparsity, row.align): row for row in report.verified if row.network == network}
        rows += [line(report, row, timings) for row in found.values()]
    return aligned(rows, 3)


def line(report: Report, about: Verified, timings: Sequence[Timing]) -> tuple[str, ...]:
    """One variant: the largest error with each precision, and the median times with the speed-ups."""
    variant = Variant(about.network, about.sparsity, about.align)
    errors = {row.precision: row for row in report.verified if _is_of(row, variant)}
    times = {(row.precision, row.batch): row for row in report.timed if _is_of(row, variant)}
    return (
        variant.network,
        f"{variant.sparsity:g}",
        variant.align,
        f"-{about.weights:.1%}",
        f"-{about.macs:.1%}",
        *(f"{errors[p].error:.0e} {'ok' if errors[p].ok else 'WRONG'}" if p in errors else "" for p in PRECISIONS),
        *(f"{times[t].after_ms:.3f} {times[t].speedup:5.2f}x" if t in times else "" for t in timings),
    )


def _is_of(row: Verified | Timed, variant: Variant) -> bool:
    return (row.network, row.sparsity, row.align) == (variant.network, variant.sparsity, variant.align)


def summary(report: Report, timings: Sequence[Timing]) -> str:
    """What was verified, timed and skipped, as text."""
    device = ", ".join(f"{name} {value}" for name, value in report.device.items())
    parts = [f"{each.network}, {each.what}: {each.why}" for each in report.skipped]
    if report.verified:
        parts += ["", table(report, timings)]
    return "\n".join([*parts, "", device])


# Command line


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    known = [*MADE_HERE, *sorted(path.stem for path in MODELS.glob("*.onnx"))]
    parser = argparse.ArgumentParser(description="Verify and time pruned networks on a CUDA GPU.")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"default: all of {', '.join(known)}")
    parser.add_argument("--sparsity", type=float, nargs="+", default=SPARSITIES, metavar="S", help="of the weights")
    parser.add_argument("--method", choices=list(METHODS), default="lean")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each model (at least 5 rounds)")
    parser.add_argument("--warmup", type=int, default=10, help="rounds that are not timed")
    parser.add_argument("--budget-s", type=float, default=1500.0, help="seconds for everything")
    parser.add_argument("--json", type=Path, help="write the numbers to this file, after every step")
    parser.add_argument("--append", action="store_true", help="keep what the file holds of other networks")
    parser.add_argument("--dry-run-on-cpu", action="store_true", help="the same steps on tiny nets, on the CPU")
    options = parser.parse_args(given)
    options.networks = options.networks or known
    if unknown := [name for name in options.networks if name not in known]:
        parser.error(f"unknown network '{unknown[0]}', expected some of {', '.join(known)}")
    return options


def main(given: Sequence[str] | None = None) -> int:
    """Measure everything that fits the budget; 0 unless a model came out wrong or the GPU cannot be used."""
    options = arguments(given)
    dry = options.dry_run_on_cpu
    device = cpu() if dry else gpu()
    if device is None:
        print("no CUDA GPU here (nvidia-smi finds none): nothing was measured")
        return 0
    if not dry and not cuda_works():
        print(f"{device['name']} is here, but ONNX Runtime cannot run a model on it:")
        say_why_not()
        return 1
    settings = {name: options.__dict__[name] for name in ("method", "seconds", "warmup", "budget_s")}
    report = Report(device, settings, options.json)
    if options.append:
        report.take_over(options.networks)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, "cpu" if dry else "cuda", Path(folder), report, Budget(options.budget_s))
        measure(bench)
    failed = any(each.failed for each in report.skipped) or not all(row.ok for row in report.verified)
    report.complete = not failed and not any(each.why == "out of time" for each in report.skipped)
    report.write()
    print(summary(report, bench.timings))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
