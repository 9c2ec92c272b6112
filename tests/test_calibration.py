"""Calibration: constants are measured when asked for, kept by machine, and a broken file counts as none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxprune import calibration
from onnxprune.alignment import convolution_block
from onnxprune.calibration import cache_file, calibrate, target_of
from onnxprune.passes.latency import Target

SHIPPED = Target(block=convolution_block("cpu"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "onnxprune" / "latency.json"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_ROUNDS", 2)


@pytest.mark.usefixtures("quick")
def test_measured_constants_are_kept_and_used(cache: Path) -> None:
    assert cache_file() == cache
    assert target_of("cpu") == SHIPPED
    measured = calibrate()
    assert target_of("cpu") == measured != SHIPPED
    assert target_of("cuda") == Target(block=0)
    (machine,) = json.loads(cache.read_text())["machines"]
    assert machine.startswith("ONNX Runtime")


@pytest.mark.usefixtures("quick")
def test_another_machine_keeps_its_constants(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text(json.dumps({"machines": {"another": {"start": 2.0}}}))
    assert target_of("cpu") == SHIPPED
    calibrate()
    assert json.loads(cache.read_text())["machines"]["another"] == {"start": 2.0}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"machines": 1}', '{"machines": {"a": 1}}'])
def test_a_broken_file_counts_as_none(cache: Path, text: str) -> None:
    cache.parent.mkdir()
    cache.write_text(text)
    assert target_of("cpu") == SHIPPED


def test_what_was_measured_wrongly_cannot_lead_far_astray(cache: Path) -> None:
    cache.parent.mkdir()
    wrong = {"start": 1e9, "near": 1e-9, "far": "fast", "blocked": 51234.0}
    cache.write_text(json.dumps({"machines": {calibration._machine(): wrong}}))
    found = target_of("cpu")
    assert (found.start, found.near, found.far) == (8 * SHIPPED.start, 1200.0, SHIPPED.far)
    assert found.blocked == 51000.0
