"""Work on many rows, a few at a time, by as many threads as there are processors.

What is worked on together stays in the cache and takes little memory beside the weights; numpy and compiled loops let
other threads run meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_parts", "narrow_blocks"]

T = TypeVar("T")

_TOGETHER = 1 << 18  # numbers
_WIDEST = 1 << 12  # columns


def in_parts(work: Callable[[slice], T], rows: int, width: int) -> list[T]:
    """What ``work`` returns for runs of rows, in order. ``width``: numbers in a row."""
    step = max(1, _TOGETHER // max(1, width))
    runs = [slice(start, start + step) for start in range(0, rows, step)]
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(runs) < 2 or processors < 2:
        return [work(run) for run in runs]
    with ThreadPoolExecutor(min(processors, len(runs))) as pool:
        return list(pool.map(work, runs))


def narrow_blocks(columns: int) -> list[slice]:
    """Runs of columns so narrow that what parts of many rows find for each column is little beside the rows."""
    return [slice(start, start + _WIDEST) for start in range(0, columns, _WIDEST)]
