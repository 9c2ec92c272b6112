"""The command line on many damaged models: ``python tests/mutated_files.py --files 20000``.

Every seed is a small model with faults (see ``mutations``), pruned lossless and at 0.5. Each run has to end with exit
code 0 and a valid file, or another one, a single line that says why, and the file that was there before. It may take 10
s and 1 GB, and may not end the process. ``--first SEED --files 1`` looks at one file again. Exit code 1 if any failed.

The runs follow one another in child processes, which are started again when they end before their time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
import onnxruntime as ort
from mutations import damaged

import onnxprune.cli

__all__ = ["Run", "complaint", "runs"]

_COMMANDS = {"lossless": [], "half": ["-s", "0.5"]}
_BEFORE = b"what was there before"
_SECONDS = 10.0  # of the processor
_WALL_SECONDS = 120.0  # on a machine that does other things too
_GIGABYTE = 10**9
_SPACE = 6 * 10**9  # bytes of addresses, most of which ONNX Runtime reserves and does not use


@dataclass(frozen=True)
class Run:
    """How one run ended. ``code``: negative for a signal. ``wrong``: with the files it left, "" for nothing."""

    seed: int
    command: str
    code: int
    said: str
    wrong: str
    seconds: float = 0.0
    peak: int = 0


def complaint(run: Run) -> str:
    """What is not allowed about a run, "" for nothing."""
    if "channels that hold infinities or NaNs cannot be removed" in run.said:
        return ""
    known = next((text for text in ("Traceback", "fault in onnxprune", "does not agree", "contradicts itself",
                                    "out of memory") if text in run.said), "")  # fmt: skip
    if run.code < 0:
        return f"ended by {signal.Signals(-run.code).name}"
    if run.code not in (0, 1, 2):  # 2: a shape is asked for
        return f"exit code {run.code}"
    if known:
        return f"says '{known}'"
    if run.said.count("\n") != bool(run.code):
        return f"{run.said.count(chr(10))} lines, exit code {run.code}"
    if run.seconds > _SECONDS:
        return f"{run.seconds:.1f} s"
    return f"{run.peak / 1e6:.0f} MB" if run.peak > _GIGABYTE else run.wrong


# ---- in the child ---------------------------------------------------------------------------------------------------


def _work(seeds: range, folder: Path, report: int) -> None:
    """Run every seed, and write a line before and after each run; never returns."""
    resource.setrlimit(resource.RLIMIT_AS, (_SPACE, _SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))  # not what pytest put there
    onnxprune.cli._QUICK_SECONDS = 0.01  # timing is not what is looked at here
    for seed in seeds:
        content = damaged(seed)
        (folder / "model.onnx").write_bytes(content)
        for command, words in _COMMANDS.items():
            os.write(report, f"{json.dumps([seed, command])}\n".encode())
            run = _run(seed, command, words, folder)
            os.write(report, f"{json.dumps(asdict(run))}\n".encode())
    os._exit(0)


def _run(seed: int, command: str, words: list[str], folder: Path) -> Run:
    said, out = folder / "said", folder / "out"
    shutil.rmtree(out, ignore_errors=True)  # what a run left that was ended
    out.mkdir()
    (out / "small.onnx").write_bytes(_BEFORE)
    for number, path in ((1, folder / "printed"), (2, said)):
        stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, number)
        os.close(stream)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of this run
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, 1.5 * _SECONDS)
    signal.setitimer(signal.ITIMER_REAL, _WALL_SECONDS)
    code = _exit_code(["prune", str(folder / "model.onnx"), *words, "-o", str(out / "small.onnx")])
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    seconds, peak = time.process_time() - began, _peak()
    text = said.read_text(errors="replace")
    return Run(seed, command, code, text, _wrong_files(out, code, folder / "model.onnx"), seconds, peak)


def _exit_code(arguments: list[str]) -> int:
    try:
        onnxprune.cli.main(arguments)
    except SystemExit as done:
        sys.stdout.flush()
        sys.stderr.flush()
        return int(done.code or 0)
    return 99


def _peak() -> int:
    """Bytes of memory held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _wrong_files(out: Path, code: int, source: Path) -> str:
    """A run that fails leaves what was there; one that does not, a model that is as valid as the original."""
    names = sorted(path.name for path in out.iterdir())
    if names != ["small.onnx"]:
        return f"left {names}"
    content = (out / "small.onnx").read_bytes()
    if code:
        return "" if content == _BEFORE else "wrote, and failed"
    if content == _BEFORE:
        return "wrote nothing"
    found = _fault(content)
    return f"wrote a file that is not valid: {found}" if found and not _fault(source.read_bytes()) else ""


def _fault(content: bytes) -> str:
    try:
        onnx.checker.check_model(onnx.load_from_string(content))
    except Exception as error:
        return str(error)
    return ""


# ---- in the parent --------------------------------------------------------------------------------------------------


def runs(first: int, count: int) -> Iterator[Run]:
    """How every run on ``count`` seeds ended."""
    ort.set_default_logger_severity(4)
    todo = range(first, first + count)
    with tempfile.TemporaryDirectory() as folder:
        while todo:
            last: tuple[int, str] | None = None
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    os.close(reading)
                    _work(todo, Path(folder), writing)
                except BaseException:  # it may not go on as a second parent
                    traceback.print_exc()
                finally:
                    os._exit(98)
            os.close(writing)
            with os.fdopen(reading) as lines:
                for line in lines:
                    held = json.loads(line)
                    last = (held[0], held[1]) if isinstance(held, list) else None
                    if isinstance(held, dict):
                        yield Run(**held)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if last is None:
                assert code == 0, f"a child ended with {code} between two runs"
                return
            yield Run(*last, code, "", "")
            todo = range(last[0] + 1, todo.stop)


def main(say: Callable[[str], None] = print) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--files", type=int, default=20000)
    parser.add_argument("--first", type=int, default=1_000_000)
    asked = parser.parse_args()
    ended: Counter[int] = Counter()
    failed = 0
    for run in runs(asked.first, asked.files):
        ended[run.code] += 1
        wrong = complaint(run)
        if wrong:
            failed += 1
            say(f"seed {run.seed}, {run.command}: {wrong}; {run.said[:300]!r}")
        if ended.total() % 1000 == 0:
            say(f"{ended.total()} runs, up to seed {run.seed}: exit codes {dict(ended)}, {failed} failed")
    say(f"{ended.total()} runs: exit codes {dict(ended)}, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
