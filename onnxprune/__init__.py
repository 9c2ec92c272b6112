"""onnxprune: a compiler that makes trained ONNX models smaller and faster by removing channels.

>>> import onnxprune
>>> result = onnxprune.prune("model.onnx", sparsity=0.9)  # doctest: +SKIP
>>> result.save("model.pruned.onnx")  # doctest: +SKIP
"""

from onnxprune.bench import Latency, benchmark
from onnxprune.errors import ModelError, OnnxpruneError, UnreachableError, UsageError, VerificationError
from onnxprune.inspection import Inspection, inspect
from onnxprune.pipeline import Result, prune
from onnxprune.plan import Plan
from onnxprune.verify import Verification, verify

__all__ = [
    "Inspection",
    "Latency",
    "ModelError",
    "OnnxpruneError",
    "Plan",
    "Result",
    "UnreachableError",
    "UsageError",
    "Verification",
    "VerificationError",
    "benchmark",
    "inspect",
    "prune",
    "verify",
]
