"""Models by strangers: each is refused in one line, or handled; in bounded memory and time, and never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from untrusted_models import BUILDERS

_GIGABYTE = 10**9
_SECONDS = 10.0
_NAMES = sorted(BUILDERS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Case → how the command line ended on it: lossless, at 0.5, and inspecting."""
    folder = tmp_path_factory.mktemp("untrusted")
    for i, name in enumerate(_NAMES):
        place = folder / str(i)
        place.mkdir()
        model = BUILDERS[name](place)
        (place / "model.onnx").write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    worker = Path(__file__).with_name("untrusted_worker.py")
    done = subprocess.run([sys.executable, str(worker), str(folder)], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in _NAMES}
    for line in done.stdout.splitlines():
        ended = json.loads(line)
        found[_NAMES[int(ended["case"])]].append(ended | {"folder": folder / ended["case"]})
    return found


@pytest.mark.parametrize("name", _NAMES)
def test_refused_in_one_line_or_handled(runs: dict[str, list[dict[str, Any]]], name: str) -> None:
    assert len(runs[name]) == 3
    for ended in runs[name]:
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
            onnx.load(ended["folder"] / f"{ended['command']}.onnx", load_external_data=False)
