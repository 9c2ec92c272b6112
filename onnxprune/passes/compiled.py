"""Loops compiled by numba, which takes part of a second to load: modules that have some are loaded where that pays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["compiled"]


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: compiled at the first call, and kept on disk where there is a place to write to."""

    def compile_later(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            found: Callable[..., Any] = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither beside this file nor in the user's cache
            found = numba.njit(**options)(function)
        return found

    return compile_later
