"""What this machine takes: the constants of the latency model, measured once, kept in the user's cache.

The same input has to give the same model, so nothing is measured on the way: ``prune`` decides by constants that are
shipped, or by those that ``onnxprune calibrate`` has measured and stored. They are rounded to two digits and kept
within a factor of eight of the shipped ones, so that a disturbed measurement cannot lead far astray. What a plan
removes depends on them only where dead channels may stay in lossless mode; else, only how what is left is written.

The file is ``onnxprune/latency.json`` in $XDG_CACHE_HOME (~/.cache), an entry for each ONNX Runtime version, provider
and processor. Deleting it brings the shipped constants back; a file that cannot be read counts as none.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from math import log10
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from onnxprune.alignment import convolution_block
from onnxprune.errors import OnnxpruneError
from onnxprune.passes.latency import Target

__all__ = ["cache_file", "calibrate", "described", "target_of"]

_ROUNDS = 15
_LIMIT = 8.0


@dataclass(frozen=True)
class _Probe:
    """``count`` nodes of one operator in a row, on data of this shape, with a weight of this shape if it has one; it
    does ``work`` units (numbers, multiply-accumulates) a node."""

    operator: str
    data: tuple[int, ...]
    count: int
    work: float
    weight: tuple[int, ...] = ()


_PROBES = {
    "start": _Probe("Neg", (1,), 200, 1),
    "near": _Probe("Neg", (1, 131072), 20, 131072),
    "far": _Probe("Neg", (1, 1 << 22), 4, 1 << 22),
    "blocked": _Probe("Conv", (1, 64, 32, 32), 8, 64 * 64 * 9 * 32 * 32, (64, 64, 3, 3)),
    "multiplied": _Probe("MatMul", (256, 256), 8, 256**3, (256, 256)),
    "loaded": _Probe("MatMul", (1, 2048), 4, 2048**2, (2048, 2048)),
    "depthwise": _Probe("Conv", (1, 33, 64, 64), 4, 33 * 9 * 64 * 64, (33, 1, 3, 3)),
    "ordered": _Probe("Conv", (1, 17, 128, 128), 1, 17 * 9 * 128 * 128, (1, 17, 3, 3)),
}


def target_of(provider: str) -> Target:
    """The constants for a provider (auto, cpu, …): measured ones, where they are stored, else the shipped ones."""
    shipped = Target(block=convolution_block(provider))
    if not shipped.block or not cache_file().is_file():
        return shipped
    held = _stored().get(_machine(), {})
    known = {name: held[name] for name in _PROBES if isinstance(held.get(name), int | float)}
    return _with(shipped, {name: _within(name, float(value)) for name, value in known.items()})


def calibrate() -> Target:
    """Measure the constants of the CPU on one thread, and store them. Raises OnnxpruneError where that fails."""
    each = {name: _microseconds(probe) for name, probe in _PROBES.items()}
    start = each["start"]
    rates = {name: probe.work / max(each[name] - start, 1e-3) for name, probe in _PROBES.items()}
    found = {name: _within(name, start if name == "start" else rate) for name, rate in rates.items()}
    _store({**_stored(), _machine(): found})
    return _with(Target(block=convolution_block("cpu")), found)


def _with(target: Target, constants: Mapping[str, float]) -> Target:
    return replace(target, **constants)  # type: ignore[arg-type]


def _within(name: str, value: float) -> float:
    """Two digits, not too far from what is shipped."""
    shipped = next(float(held.default) for held in fields(Target) if held.name == name)  # type: ignore[arg-type]
    value = min(max(value, shipped / _LIMIT), shipped * _LIMIT)
    return round(value, 1 - int(np.floor(log10(value))))


def _microseconds(probe: _Probe) -> float:
    """The least time of a node, in µs, over several runs of all."""
    from onnxprune.runtime import open_session  # slow to import

    session = open_session(_model(probe), provider="cpu", threads=1)
    given = {"x0": np.ones(probe.data, np.float32)}
    session.run(None, given)
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        session.run(None, given)
        times.append(time.perf_counter() - start)
    return min(times) * 1e6 / probe.count


def _model(probe: _Probe) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(probe.count + 1)]
    nodes = [_node(probe, a, b) for a, b in pairwise(names)]
    weight = np.full(probe.weight, 1e-3, np.float32)
    graph = onnx.helper.make_graph(
        nodes,
        "probe",
        [onnx.helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, probe.data)],
        [onnx.ValueInfoProto(name=names[-1])],
        [numpy_helper.from_array(weight, "w")] if probe.weight else [],
    )
    return onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])


def _node(probe: _Probe, data: str, made: str) -> NodeProto:
    inputs: Sequence[str] = [data, "w"] if probe.weight else [data]
    node = onnx.helper.make_node(probe.operator, inputs, [made])
    if probe.operator == "Conv":
        node.attribute.append(onnx.helper.make_attribute("pads", [1] * 4))
        node.attribute.append(onnx.helper.make_attribute("group", probe.data[1] // probe.weight[1]))
    return node


# ---- the file --------------------------------------------------------------------------------------------------------


def cache_file() -> Path:
    """Where the constants are kept."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "onnxprune" / "latency.json"


def _machine() -> str:
    import onnxruntime as ort  # slow to import

    return f"ONNX Runtime {ort.__version__}, cpu, {_processor()}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _stored() -> dict[str, dict[str, float]]:
    """Machine → its constants."""
    try:
        held = json.loads(cache_file().read_text())
        return {str(name): dict(values) for name, values in held["machines"].items()}
    except (OSError, AttributeError, KeyError, TypeError, ValueError):
        return {}


def _store(machines: dict[str, dict[str, float]]) -> None:
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as draft:
            draft.write(json.dumps({"onnxprune_latency": 1, "machines": machines}, indent=1))
        os.replace(draft.name, path)
    except OSError as error:
        raise OnnxpruneError(f"'{path}' cannot be written: {error.strerror}; set XDG_CACHE_HOME") from error


def described(target: Target) -> str:
    """A line for each constant."""
    units = {"start": "µs for any node", "loaded": "numbers of a weight read by µs",
             "near": "numbers written by µs, in the cache", "far": "numbers written by µs, beyond it",
             "ordered": "numbers brought into columns by µs", "blocked": "multiply-accumulates by µs, convolutions",
             "multiplied": "multiply-accumulates by µs, products of matrices",
             "depthwise": "multiply-accumulates by µs, depthwise convolutions without blocks"}  # fmt: skip
    return "\n".join(f"{asdict(target)[name]:>10g}  {unit}" for name, unit in units.items())
