"""Some hundred damaged files (see ``mutated_files``), and that what is not allowed would be noticed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from mutated_files import Run, complaint, runs
from mutations import damaged

FILES = 250


@pytest.mark.parametrize("part", range(2))
def test_refused_in_one_line_or_handled(part: int) -> None:
    found = list(runs(part * FILES, FILES))
    wrong = [f"seed {run.seed}, {run.command}: {said}; {run.said!r}" for run in found if (said := complaint(run))]
    assert not wrong, "\n".join([*wrong, "python tests/mutated_files.py --files 1 --first SEED"])
    assert len(found) == 2 * FILES
    assert sum(run.code == 0 for run in found) > FILES / 10  # what is damaged is not always noticed
    assert len({run.said for run in found}) > FILES / 5


def test_same_seed_same_damage() -> None:
    assert [damaged(seed) for seed in range(20)] == [damaged(seed) for seed in range(20)]


FINE = Run(0, "half", 1, "onnxprune: error: no model\n", "", 0.1, 10**8)
NOT_ALLOWED = {
    "signal": {"code": -11}, "exit code": {"code": 99}, "no line": {"said": ""}, "two lines": {"said": "a\nb\n"},
    "says something": {"code": 0}, "traceback": {"said": "Traceback\n"}, "a fault": {"said": "a fault in onnxprune\n"},
    "slow": {"seconds": 11.0}, "large": {"peak": 2 * 10**9}, "files": {"wrong": "wrote, and failed"},
}  # fmt: skip


@pytest.mark.parametrize("changed", NOT_ALLOWED.values(), ids=NOT_ALLOWED.keys())
def test_what_is_not_allowed_is_noticed(changed: dict[str, object]) -> None:
    assert not complaint(FINE)
    assert complaint(Run(**{**vars(FINE), **changed}))


def test_a_child_that_ends_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def exit_code(arguments: list[str]) -> int:
        if b"second" in Path(arguments[1]).read_bytes():
            os.kill(os.getpid(), signal.SIGKILL)
        print("onnxprune: error: no model", file=sys.stderr, flush=True)
        return 1

    monkeypatch.setattr("mutated_files._exit_code", exit_code)
    monkeypatch.setattr("mutated_files.damaged", lambda seed: (b"first", b"second", b"third")[seed])
    found = [(run.seed, run.command, run.code) for run in runs(0, 3)]
    assert found == [(0, "lossless", 1), (0, "half", 1), (1, "lossless", -9), (2, "lossless", 1), (2, "half", 1)]


def test_files_left_behind_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def exit_code(arguments: list[str]) -> int:
        Path(arguments[-1]).write_bytes(b"half of it")
        print("onnxprune: error: no model", file=sys.stderr, flush=True)
        return 1

    monkeypatch.setattr("mutated_files._exit_code", exit_code)
    assert {complaint(run) for run in runs(0, 2)} == {"wrote, and failed"}
