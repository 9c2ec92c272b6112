"""How long models take on ONNX Runtime, measured side by side.

The models take turns (A B A B ...) on the same inputs, so that whatever else the machine is doing meets all
of them alike. What is timed is one run, from inputs that are where the model wants them to outputs that are
complete: on CUDA both stay on the device, and the clock stops only when the device has finished. Threads
sleep while they wait (ONNX Runtime lets them spin by default): those of one model must not slow down the
next.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxprune.errors import ModelError, UsageError
from onnxprune.input_guesses import first_run
from onnxprune.inputs import Shapes, format_shapes, input_specs
from onnxprune.runtime import (
    Inputs,
    Model,
    Provider,
    bind,
    load_structure,
    open_session,
    provider_of,
    resolve_provider,
    run,
    run_bound,
)

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["Latency", "benchmark", "peak_memory"]

_FEWEST_ROUNDS: Final = 5


@dataclass(frozen=True)
class Latency:
    """What `benchmark` found out about one model.

    Attributes:
        model: its file, or its place among the models.
        provider: where it really ran: 'cpu', 'cuda' or 'tensorrt'.
        threads: how many threads a node could use; None is ONNX Runtime's choice.
        shapes: of the inputs.
        rounds: how often it was timed.
        p50_ms: the median time of a run, in milliseconds.
        p90_ms: nine of ten runs took no longer.
        p99_ms: 99 of 100 runs took no longer (with fewer rounds than 100, next to the maximum).
        throughput: items a second at the median; the first axis of the first input counts them.
        speedup: the first model's median by this one's; 1 for the first.
        stored_bytes: what the model takes up in storage, external data included.
        peak_bytes: by how much opening and running the model raised the peak of resident memory of a process
            of its own; None on a GPU, and on systems other than Linux.
    """

    model: str
    provider: str
    threads: int | None
    shapes: Mapping[str, tuple[int, ...]]
    rounds: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput: float
    speedup: float
    stored_bytes: int
    peak_bytes: int | None

    def __str__(self) -> str:
        peak = "" if self.peak_bytes is None else f", {self.peak_bytes / 1e6:.1f} MB to run"
        times = f"{self.p50_ms:.3g} ms (p90 {self.p90_ms:.3g}, p99 {self.p99_ms:.3g}; {self.rounds} runs)"
        rates = f"{self.throughput:.4g} a second, {self.speedup:.2f} x"
        return f"{self.model}: {times}, {rates}, {self.stored_bytes / 1e6:.1f} MB stored{peak}"

    def to_json(self) -> dict[str, Any]:
        """The fields, as plain dicts and lists."""
        return asdict(self) | {"shapes": {name: list(shape) for name, shape in self.shapes.items()}}


def benchmark(
    models: Sequence[Model],
    *,
    batch: int | None = None,
    shapes: Shapes | None = None,
    threads: int | None = 1,
    provider: Provider = "auto",
    warmup: int = 3,
    repeats: int | None = None,
    seconds: float = 2.0,
    seed: int = 0,
    memory: bool = True,
    progress: Callable[[float], None] | None = None,
) -> list[Latency]:
    """Time the models side by side on the same random inputs; the first is what the others are compared with.

    Args:
        models: the models; all take inputs of the same names and types.
        batch: the size of the batch dimension.
        shapes: shapes of inputs that are to be used as they are.
        threads: how many threads a node may use; None leaves it to ONNX Runtime.
        provider: where to run.
        warmup: rounds that are not timed.
        repeats: rounds that are; None goes on for ``seconds`` a model, and for 5 rounds at least.
        seconds: time for each model when ``repeats`` is None.
        seed: of the inputs.
        memory: whether to run each model once more, in a process of its own, to see its memory.
        progress: called after each round with the share (0..1) that is done.

    Raises:
        UsageError: no models, or models that take different inputs; a number out of range; the provider does
            not work here.
        ModelError: a model cannot be loaded or run.
    """
    counts = (len(models), repeats, threads, batch)
    if warmup < 0 or seconds <= 0 or any(each is not None and each < 1 for each in counts):
        raise UsageError("a benchmark takes models, warmup >= 0, seconds > 0, and all other numbers >= 1")
    structures = [load_structure(model) for model in models]
    names = [str(each) if isinstance(each, str | Path) else f"model {i + 1}" for i, each in enumerate(models)]
    _check_same_inputs(names, structures)
    sessions = [open_session(model, provider=provider, threads=threads) for model in models]
    used, inputs, _ = first_run(structures[0], sessions[0], shapes=shapes, batch=batch, seed=seed)
    _check_all_run(names, sessions, inputs)
    times = _take_turns([_runner(each, inputs) for each in sessions], warmup, repeats, seconds, progress)
    where = provider_of(sessions[0])
    del sessions
    stored = [_stored_bytes(model, structure) for model, structure in zip(models, structures, strict=True)]
    peaks = [peak_memory(each, inputs, threads) if memory and where == "cpu" else None for each in models]
    items = next((shape[0] for shape in used.values() if shape), 1)
    p50, p90, p99 = np.percentile(times, [50, 90, 99], axis=1).tolist()
    return [
        Latency(
            model=name,
            provider=where,
            threads=threads,
            shapes=used,
            rounds=times.shape[1],
            p50_ms=p50[i],
            p90_ms=p90[i],
            p99_ms=p99[i],
            throughput=1e3 * items / p50[i],
            speedup=p50[0] / p50[i],
            stored_bytes=stored[i],
            peak_bytes=peaks[i],
        )
        for i, name in enumerate(names)
    ]


def _check_same_inputs(names: Sequence[str], structures: Sequence[onnx.ModelProto]) -> None:
    first, *others = ({spec.name: spec.dtype for spec in input_specs(each)} for each in structures)
    for name, specs in zip(names[1:], others, strict=True):
        if specs != first:
            ours, theirs = (
                ", ".join(f"{key}: {dtype}" for key, dtype in each.items()) or "nothing"
                for each in (first, specs)
            )
            raise UsageError(
                f"{name} takes {theirs}, but {names[0]} takes {ours}: they cannot be timed together"
            )


def _check_all_run(names: Sequence[str], sessions: Sequence[InferenceSession], inputs: Inputs) -> None:
    for name, session in zip(names[1:], sessions[1:], strict=True):
        try:
            run(session, inputs)
        except ModelError as error:
            shapes = format_shapes({each: array.shape for each, array in inputs.items()})
            raise ModelError(f"{name} does not run on the inputs of {names[0]} ({shapes}): {error}") from None


def _runner(session: InferenceSession, inputs: Inputs) -> Callable[[], object]:
    """Outputs go where they went before, unless they are not of the shape that the model declares: then ONNX Runtime
    only makes them anew."""
    binding = bind(session, inputs, outputs_on="cpu" if provider_of(session) == "cpu" else "cuda")
    try:
        for _ in range(2):
            run_bound(session, binding)
    except ModelError:
        return lambda: run(session, inputs)
    return lambda: run_bound(session, binding)


def _take_turns(
    runners: Sequence[Callable[[], object]],
    warmup: int,
    repeats: int | None,
    seconds: float,
    progress: Callable[[float], None] | None,
) -> npt.NDArray[np.float64]:
    """Milliseconds [model, round]."""
    for runner in [*runners] * warmup:
        runner()
    budget = seconds * len(runners)
    times: list[list[float]] = []
    start = time.perf_counter()
    done = 0.0
    while done < 1:
        times.append([_milliseconds(runner) for runner in runners])
        elapsed = (time.perf_counter() - start) / budget
        done = len(times) / repeats if repeats else min(elapsed, len(times) / _FEWEST_ROUNDS)
        if progress is not None:
            progress(min(done, 1.0))
    return np.array(times).T


def _milliseconds(runner: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    runner()
    return (time.perf_counter_ns() - start) / 1e6


def _stored_bytes(model: Model, structure: onnx.ModelProto) -> int:
    """The file, or what would be in it, and the external data of its initializers."""
    outside = 0
    for weight in structure.graph.initializer:
        if uses_external_data(weight):
            outside += ExternalDataInfo(weight).length or 0
    if isinstance(model, str | Path):
        return Path(model).stat().st_size + outside
    return (len(model) if isinstance(model, bytes) else model.ByteSize()) + outside


# Memory


def peak_memory(model: Model, inputs: Inputs, threads: int | None = 1) -> int | None:
    """By how many bytes opening a model and running it on the CPU raises a process's peak of resident memory.

    It is measured in a new process that has ONNX Runtime and the inputs loaded already. None where the system
    does not say (only Linux does), or the process fails.
    """
    if not Path("/proc/self/status").is_file():
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        if isinstance(model, str | Path):
            path = Path(model).resolve()
        else:
            path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        task = Path(folder, "task")
        task.write_bytes(pickle.dumps((path, inputs, threads)))
        code = f"from onnxprune.bench import _print_peak; _print_peak({str(task)!r})"
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else None


def _print_peak(task: str) -> None:
    """What the process of `peak_memory` does."""
    model, inputs, threads = pickle.loads(Path(task).read_bytes())
    resolve_provider("cpu")  # runs a tiny model, so that ONNX Runtime's own share is spent
    before = _peak_resident()
    session = open_session(model, provider="cpu", threads=threads)
    for _ in range(2):
        run(session, inputs)
    print(_peak_resident() - before)


def _peak_resident() -> int:
    """Bytes; not getrusage's ru_maxrss, which a process takes over from the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
