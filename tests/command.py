"""Running the command line, in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxprune.cli import main

__all__ = ["COMMAND", "environment", "run", "run_process"]

COMMAND = (sys.executable, "-m", "onnxprune")


def run(*arguments: str | Path) -> int:
    """Run it here and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    code = left.value.code
    assert isinstance(code, int)
    return code


def environment(**changed: str) -> dict[str, str]:
    """Ours, without what could turn pipes into terminals."""
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    return kept | changed


def run_process(*arguments: str | Path, **changed: str) -> subprocess.CompletedProcess[str]:
    """Run it as a user does; keyword arguments change the environment."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**changed), timeout=120, check=False)
