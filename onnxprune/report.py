"""The report of a run as JSON: everything the terminal says and more, for pipelines.

Schema, version 1 (numbers are plain; absent things are null):

- ``onnxprune_report``: 1; ``version``: of onnxprune; ``output``: the file written
- ``plan``: method, measure, granularity, sparsity, keep; ``groups``: how many groups of channels left
- ``before``, ``after``: weights, macs, kernels, bytes (model file and external data)
- ``removed``: share of weights, macs and kernels that left
- ``verification``: see ``Verification.to_json``; ``latency``: list of ``Latency.to_json``, original first
- ``layers``: name, operator, weight, channels before and after, groups, what froze them
- ``frozen``: operator, node, reason, weights; ``prunable_weights``
- ``renormalised``: normalisations computed over fewer channels; ``seconds``: time by step
- ``connected``: at kernel granularity, the share of the chosen kernel slices that were accessible and co-accessible:
  ``method`` (what the method chose) and ``plain_magnitude`` (what plain magnitude would have, at the same rate)
- ``narrowed``: how many layers read only a part of the channels there are; ``in_blocks``: how many became several
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onnxprune.bench import Latency
from onnxprune.pipeline import Result

__all__ = ["file_bytes", "report_json"]


def file_bytes(path: Path) -> int:
    """Size of a model file and of the external data written beside it."""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def report_json(
    result: Result, output: Path, latencies: Sequence[Latency], staged: Path | None = None
) -> dict[str, Any]:
    """The report of a run whose result was written to ``output``, or is still at ``staged`` and will be."""
    before, after = asdict(result.before), asdict(result.after)
    plan = result.plan
    return {
        "onnxprune_report": 1,
        "version": version("onnxprune"),
        "output": str(output),
        "plan": {
            "method": plan.method,
            "measure": plan.measure,
            "granularity": plan.granularity,
            "sparsity": plan.sparsity,
            "keep": list(plan.keep),
            "groups": sum(len(cut.indices) for cut in plan.cuts),
        },
        "before": before | {"bytes": result.source.file_size if result.source else None},
        "after": after | {"bytes": file_bytes(staged or output)},
        "removed": {name: 1 - after[name] / before[name] if before[name] else 0.0 for name in before},
        "verification": result.verification.to_json() if result.verification else None,
        "latency": [each.to_json() for each in latencies],
        "layers": [asdict(layer) for layer in result.layers],
        "prunable_weights": result.census.free,
        "frozen": [
            {"operator": cause.operator, "node": cause.node, "reason": cause.reason, "weights": count}
            for cause, count in sorted(result.census.frozen.items(), key=lambda item: -item[1])
        ],
        "connected": asdict(result.connected) if result.connected else None,
        "narrowed": len(result.narrowed),
        "in_blocks": len(result.blocks),
        "renormalised": list(result.renormalised),
        "seconds": dict(result.seconds),
    }
