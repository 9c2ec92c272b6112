"""Sizes for the open dimensions of a model that its operators do not contradict, and others to compare them with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

from onnxprune.shapes.likely_sizes import OpenSizes

__all__ = ["fitting_sizes"]

Sizes = Mapping[str, int]
Doubts = Callable[[Sizes], Collection[str]]

_BATCH: Final = 2  # 1 would be broadcast
_CHANGES: Final[tuple[Callable[[int], int], ...]] = (
    lambda size: 2 * size,
    lambda size: 3 * size,
    lambda size: size + 32,
    lambda size: size + 1,
    lambda size: size // 2 if size > 3 else size + 2,
)


def fitting_sizes(open_sizes: OpenSizes, doubts: Doubts, tries: int = 16) -> tuple[Sizes, Sizes]:
    """Symbol → size twice: the likeliest sizes that fit, and as many other sizes as possible that fit as well.

    What has one size in both is fixed: no other size was found that fits.

    Args:
        open_sizes: the open dimensions, none of an input of unknown rank.
        doubts: sizes → what contradicts them in the model.
        tries: how many sizes are tried at most for the first, and thrice as many for the second.
    """
    first, least = _likeliest(open_sizes, doubts, tries)
    tried: set[frozenset[tuple[str, int]]] = set()
    second = dict(first)
    for symbols in _together(open_sizes):
        same = [symbol for symbol in symbols if second[symbol] == first[symbol]]
        for change in _CHANGES:
            changes = {symbol: change(first[symbol]) for symbol in same}
            key = frozenset(changes.items())
            if not changes or key in tried or len(tried) == 3 * tries:
                continue
            tried.add(key)
            if len(doubts(second | changes)) <= least:
                second |= changes
                break
    return first, second


def _likeliest(open_sizes: OpenSizes, doubts: Doubts, tries: int) -> tuple[Sizes, int]:
    found: list[tuple[Sizes, int]] = []
    for sizes in open_sizes.likely(batch=_BATCH)[:tries]:
        found.append((sizes, len(doubts(sizes))))
        if not found[-1][1]:
            break
    return min(found, key=lambda each: each[1])


def _together(open_sizes: OpenSizes) -> Iterator[list[str]]:
    """What is changed together: everything, else what is of one kind (height and width may have to be equal), else
    single sizes."""
    yield list(open_sizes.kinds)
    for kind in dict.fromkeys(open_sizes.kinds.values()):
        yield [symbol for symbol, of in open_sizes.kinds.items() if of == kind]
    yield from ([symbol] for symbol in open_sizes.kinds)
