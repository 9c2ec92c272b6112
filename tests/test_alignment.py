"""Widths worth keeping."""

from __future__ import annotations

from itertools import pairwise

import pytest

from onnxprune.alignment import Alignment, Reader, parse_alignment
from onnxprune.errors import UsageError

READERS: tuple[Reader, ...] = ("dense", "matrix", "any")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("step", [1, 4, 8, 16])
@pytest.mark.parametrize("size", [1, 3, 8, 20, 64])
def test_nothing_and_everything_are_always_offered(size: int, step: int, reader: Reader) -> None:
    widths = Alignment(step).widths(size, reader=reader).tolist()
    assert widths[0] == 0
    assert widths[-1] == size
    assert 1 in widths
    assert widths == sorted(set(widths))


@pytest.mark.parametrize("reader", READERS)
def test_from_a_step_on_widths_are_multiples_of_it(reader: Reader) -> None:
    widths = Alignment(8).widths(30, reader=reader)
    assert [w for w in widths.tolist() if w >= 8] == [8, 16, 24, 30]


def test_without_a_step_every_width_is_offered() -> None:
    assert Alignment(1).widths(5).tolist() == [0, 1, 2, 3, 4, 5]


def test_below_a_step_readers_differ() -> None:
    assert 3 in Alignment(16).widths(64, reader="dense")
    assert 3 not in Alignment(16).widths(64, reader="any")


@pytest.mark.parametrize(("repeat", "expected"), [(1, 8), (2, 4), (3, 8), (4, 2), (8, 1), (64, 1)])
def test_repeated_groups_need_fewer_to_fall_on_a_step(repeat: int, expected: int) -> None:
    """Three heads of 64 channels lie on every step that 64 does."""
    widths = [w for w in Alignment(8).widths(40, repeat).tolist() if 8 <= w < 40]
    assert all(w * repeat % 8 == 0 for w in widths)
    assert min(b - a for a, b in pairwise(widths)) == expected


def test_none_is_no_step() -> None:
    assert parse_alignment("none") == Alignment(1)


def test_a_number_is_the_step() -> None:
    assert parse_alignment("12").step == 12


def test_auto_is_the_block_of_the_cpu_or_of_tensor_cores() -> None:
    assert parse_alignment("auto", "cpu").step in (8, 16)
    assert parse_alignment("auto", "cuda").step == 8


@pytest.mark.parametrize("text", ["", "0", "-8", "1.5", "auto8", "eight", "٣x"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected auto, none or a positive number"):
        parse_alignment(text)
