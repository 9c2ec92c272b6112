"""Runs the command line on many models, one process each, and prints how each run ended as JSON, one line a model.

The processes are forks of this one, which has imported everything; each may use so much memory and time.

Usage: python untrusted_worker.py; reads lines, each a folder that holds a model.onnx.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import onnxruntime  # noqa: F401 - before the fork

import onnxprune.cli

_SPACE = 6 * 10**9
"""Bytes of addresses, most of which ONNX Runtime reserves and does not use."""
_SECONDS = 15
"""Of the processor, after which a run is ended."""
_WALL_SECONDS = 60
"""After which a run is ended that waits, for a pipe say."""
COMMANDS = {"lossless": ["prune"], "half": ["prune", "-s", "0.5"], "inspect": ["inspect"]}


def _child(folder: Path, command: str) -> None:
    """One run of the command line; never returns."""
    resource.setrlimit(resource.RLIMIT_AS, (_SPACE, _SPACE))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{command}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    words, model = COMMANDS[command], folder / "model.onnx"
    output = ["-o", str(folder / f"{command}.onnx")] if words[0] == "prune" else []
    try:
        onnxprune.cli.main([words[0], str(model), *words[1:], *output])
    except SystemExit as done:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(done.code or 0))
    os._exit(99)


def _ended(folder: Path, command: str) -> dict[str, object]:
    child = os.fork()
    if child == 0:
        _child(folder, command)
    started, found, status, usage = time.monotonic(), 0, 0, None
    while not found:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if not found:
            time.sleep(0.002)
        if not found and time.monotonic() - started > _WALL_SECONDS:
            os.kill(child, signal.SIGKILL)  # it waits for something, and uses no processor
    assert usage is not None
    return {
        "command": command,
        "code": os.waitstatus_to_exitcode(status),
        "seconds": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss * 1024,
        "said": (folder / f"{command}.err").read_text(errors="replace"),
        "written": (folder / f"{command}.onnx").exists(),
    }


def main() -> None:
    onnxprune.cli._QUICK_SECONDS = 0.01  # timing is not what is looked at here
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        print(json.dumps([_ended(folder, command) for command in COMMANDS]), flush=True)


main()
