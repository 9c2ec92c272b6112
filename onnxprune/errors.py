"""What can go wrong, as one small family of exceptions.

Each message is one line that says what was found, what was expected, where, and the remedy; the command line prints
it to stderr and leaves with ``exit_code``.
"""

from __future__ import annotations

__all__ = ["ModelError", "OnnxpruneError", "UnreachableError", "UsageError", "VerificationError"]


class OnnxpruneError(Exception):
    """Base of everything onnxprune raises on purpose."""

    exit_code = 1


class UsageError(OnnxpruneError):
    """The call itself is wrong: an option out of range, a file that is not there."""

    exit_code = 2


class ModelError(OnnxpruneError):
    """The model cannot be read, run or written."""


class UnreachableError(OnnxpruneError):
    """The sparsity asked for cannot be reached; ``reachable`` is how far one can go (0..1)."""

    def __init__(self, message: str, reachable: float) -> None:
        super().__init__(message)
        self.reachable = reachable


class VerificationError(OnnxpruneError):
    """Two models that must agree do not."""
