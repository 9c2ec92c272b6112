"""Widths that a target's kernels run well.

Kernels work on blocks of channels, so time grows in steps of the block, and widths off the steps fall off the fast
path: a narrower net can be slower. ``Alignment.widths`` lists the widths worth having; selection keeps no others.

What ``benchmarks/widths.py`` shows for ONNX Runtime's CPU kernels (block of 16 with AVX-512, 8 without): a convolution
takes as long for 1 to 16 output channels as for 16. With a block or more of input channels it runs blocked if their
number is a multiple of 4, otherwise as a plain matrix product, up to 1.6 times slower; multiples of 4 between two steps
cost as much as the upper step. Below one block, what counts is who reads the channels: a dense convolution of 3×3 or
more gains down from 12; a 1×1 convolution breaks even with a full block only at 4; depthwise kernels are as fast for 4
as for a block, and several times slower for odd numbers. Matrix products are smooth.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError

__all__ = ["Alignment", "Reader", "convolution_block", "parse_alignment"]

Reader = Literal["dense", "matrix", "any"]
"""Who reads a tensor's channels: only dense convolutions of 3×3 or more, only matrix products, or anyone."""

_BELOW_STEP: dict[Reader, tuple[int, ...]] = {
    "dense": (1, 2, 3, 4, 6, 8, 10, 12),
    "matrix": (1, 2, 3, 4, 6, 8, 10, 12),
    "any": (1, 2, 4),
}
_TENSOR_CORE_STEP = 8


@dataclass(frozen=True)
class Alignment:
    """``step``: block of the target's kernels, in channels; 1 means every width is as good as another.

    ``safe``: step at which a narrower layer is not slower yet, though no faster either.
    """

    step: int
    safe: int = 1

    def widths(self, size: int, repeat: int = 1, reader: Reader = "any") -> NDArray[np.int64]:
        """Numbers of groups worth keeping out of ``size``, ascending, 0 and ``size`` included.

        ``repeat``: channels a group has along the axis (heads × head width), so that repeat · kept falls on a step.
        """
        if self.step == 1:
            return np.arange(size + 1)
        step = self.step // gcd(self.step, repeat)
        small = [w for w in _BELOW_STEP[reader] if w < min(step, size)]
        return np.unique([0, *small, *range(step, size, step), size])


def parse_alignment(text: str, provider: str = "cpu") -> Alignment:
    """``auto`` (the block of the target's kernels), ``none`` or a number; ``provider`` as for verification.

    Raises UsageError for anything else.
    """
    if text == "none":
        return Alignment(1)
    if text == "auto":
        return Alignment(_TENSOR_CORE_STEP, _TENSOR_CORE_STEP) if _is_gpu(provider) else Alignment(_cpu_block(), 4)
    if text.isdigit() and int(text) > 0:
        return Alignment(int(text), int(text))
    raise UsageError(f"--align is '{text}', expected auto, none or a positive number")


def convolution_block(provider: str) -> int:
    """Channels in a block of the target's convolutions; 0 on a GPU, which has none."""
    return 0 if _is_gpu(provider) else _cpu_block()


def _is_gpu(provider: str) -> bool:
    if provider != "auto":
        return provider != "cpu"
    if not Path("/proc/driver/nvidia").exists():  # spares the import of ONNX Runtime on machines without a GPU
        return False
    from onnxprune.runtime import resolve_provider

    first = resolve_provider("auto")[0]
    return (first if isinstance(first, str) else first[0]) != "CPUExecutionProvider"


def _cpu_block() -> int:
    """Channels in a block of ONNX Runtime's CPU kernels: 16 with AVX-512, else 8."""
    config = np.show_config(mode="dicts")
    found = config.get("SIMD Extensions", {}).get("found", []) if isinstance(config, dict) else []
    return 16 if any(str(name).startswith(("AVX512", "X86_V4")) for name in found) else 8
