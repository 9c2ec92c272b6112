"""Models by strangers: each is refused in one line, or handled; in bounded memory and time, and never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from untrusted_models import BUILDERS

_GIGABYTE = 10**9
_SECONDS = 10.0


Run = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def worker() -> Iterator[Run]:
    """Folder of a model → how the command line ended on it: lossless, at 0.5, and inspecting."""
    command = [sys.executable, str(Path(__file__).with_name("untrusted_worker.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answer = process.stdin, process.stdout

        def run(folder: Path) -> list[dict[str, Any]]:
            print(folder, file=ask, flush=True)
            found: list[dict[str, Any]] = json.loads(answer.readline())
            return found

        yield run
        ask.close()


def test_a_loop_that_stops_is_run_whatever_its_limit(worker: Run, tmp_path: Path) -> None:
    for name, code in (("Loop that could go on, and stops", 0), ("bomb: Loop that goes on for years", 1)):
        model = BUILDERS[name](tmp_path)
        assert isinstance(model, onnx.ModelProto)
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        assert [ended["code"] for ended in worker(tmp_path)[:2]] == [code, code], name


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_refused_in_one_line_or_handled(worker: Run, name: str, tmp_path: Path) -> None:
    model = BUILDERS[name](tmp_path)
    (tmp_path / "model.onnx").write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    runs = worker(tmp_path)
    assert [ended["command"] for ended in runs] == ["lossless", "half", "inspect"]
    for ended in runs:
        said = f"{ended['command']}: exit {ended['code']}, {ended['said']!r}"
        assert ended["code"] in (0, 1), said
        assert "Traceback" not in ended["said"], said
        assert "fault in onnxprune" not in ended["said"], said
        assert "out of memory" not in ended["said"], said
        assert "does not agree" not in ended["said"], said
        assert ended["said"].count("\n") == ended["code"], said
        assert ended["peak"] < _GIGABYTE, f"{said}: {ended['peak'] / 1e6:.0f} MB"
        assert ended["seconds"] < _SECONDS, f"{said}: {ended['seconds']:.1f} s"
        if ended["command"] != "inspect":
            assert ended["written"] == (ended["code"] == 0)
        if ended["written"]:
            onnx.load(tmp_path / f"{ended['command']}.onnx", load_external_data=False)
