"""Where the tests find models: those of the project, of the benchmarks, and real ones that are not part of it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-variant", action="store_true", help="run all variants of the ONNX node tests (minutes)")


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of the project's own trained models."""
    return ROOT / "models"


def benchmark_module(name: str) -> Iterator[ModuleType]:
    """A module of ``benchmarks/`` that exports networks with torch, for a fixture."""
    pytest.importorskip("torch", reason="the exports are made with torch")
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module(name)
    sys.path.remove(folder)


@pytest.fixture(scope="session")
def networks() -> Iterator[ModuleType]:
    """``benchmarks/networks.py``: standard architectures, exported by torch."""
    yield from benchmark_module("networks")


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The folder of models found in public repositories: $ONNXPRUNE_DATA/models, or shared/data/models beside us."""
    data = Path(os.environ.get("ONNXPRUNE_DATA") or ROOT.parent / "shared" / "data")
    folder = data / "models"
    if not any(folder.glob("*.onnx")):
        pytest.skip(f"there are no models in {folder}; set ONNXPRUNE_DATA to the folder that holds them")
    return folder
