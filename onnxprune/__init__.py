"""onnxprune: a compiler that makes trained ONNX models smaller and faster by removing channels."""

from onnxprune.errors import ModelError, OnnxpruneError, UnreachableError, UsageError, VerificationError

__all__ = ["ModelError", "OnnxpruneError", "UnreachableError", "UsageError", "VerificationError"]
