"""Writing whole or not at all: a folder beside OUT, flushed to the disk, then renamed into place.

Until the last rename, a failure leaves what was there before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from onnxprune.errors import ModelError

__all__ = ["commit", "flush", "flushing", "reporting", "scratch_folder", "staging_folder", "undisturbed"]

_PART = 64 * 2**20  # bytes that go to the disk at a time, at least
_SYNC = getattr(os, "fdatasync", os.fsync)


@contextlib.contextmanager
def reporting(out: Path) -> Iterator[None]:
    """Errors of the file system as one line."""
    try:
        yield
    except OSError as error:
        raise _not_written(out, error) from None


def _not_written(out: Path, error: OSError) -> ModelError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        reason = "the disk is full; free some space or choose another folder"
    return ModelError(f"'{out}' cannot be written: {reason}")


class PassingFolder:
    """A folder that is gone afterwards, whatever happens; on the way to ``out``.

    To be entered by ``with`` itself: an interruption always finds it inside its block then, never on the way there, as
    it may in what ``contextlib`` makes. Raises ModelError where it cannot be made.
    """

    def __init__(self, path: Path, out: Path) -> None:
        self.path, self.out = path, out

    def __enter__(self) -> Path:
        try:
            self.path.mkdir(mode=0o700)
            return self.path
        except BaseException as error:
            self._remove()
            if isinstance(error, OSError):
                raise _not_written(self.out, error) from None
            raise

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        with undisturbed():
            shutil.rmtree(self.path, ignore_errors=True)


def staging_folder(out: Path) -> PassingFolder:
    """A folder on the file system of OUT."""
    return PassingFolder(out.parent / f".onnxprune-{uuid.uuid4().hex[:12]}", out)


def scratch_folder() -> PassingFolder:
    """A folder for temporary files."""
    path = Path(tempfile.gettempdir()) / f"onnxprune-{uuid.uuid4().hex[:12]}"
    return PassingFolder(path, path)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that ask for an end wait until this is done: whoever cleans up after the first is not stopped by the
    second, and a first one is not lost."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to the main thread
        return
    heard: list[int] = []
    old = {
        number: signal.signal(number, lambda number, _: heard.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
        for waiting in dict.fromkeys(heard):
            signal.raise_signal(waiting)


def flush(file: BinaryIO) -> None:
    """Put on the disk what was written to a file."""
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def flushing(file: BinaryIO) -> Iterator[Callable[[], None]]:
    """Put a file on the disk while it is written, whenever what is yielded is called, and at the end.

    Else the disk would have nothing to do until all of a large file is in memory.
    """
    flushed, flushes = 0, list[Future[None]]()

    def go_on() -> None:
        nonlocal flushed
        end = file.tell()
        if end - flushed < _PART or not all(each.done() for each in flushes):
            return
        while flushes:
            flushes.pop().result()  # an error of the disk is told but once
        file.flush()
        flushed = end
        flushes.append(disk.submit(_SYNC, file.fileno()))

    with ThreadPoolExecutor(1) as disk:
        yield go_on
    for each in flushes:
        each.result()
    flush(file)


def commit(staged: Sequence[Path], folder: Path, staging: Path) -> list[Path]:
    """Rename staged files (the model, its data) into place; the model last, so that it is never without data.

    Until the model is in place, old data is kept aside and put back if anything goes wrong.
    """
    model, *data = staged
    aside = Path(tempfile.mkdtemp(dir=staging))
    try:
        for file in data:
            if (folder / file.name).is_file():
                os.replace(folder / file.name, aside / file.name)
            os.replace(file, folder / file.name)
        os.replace(model, folder / model.name)
    except BaseException:
        if model.exists():
            for file in data:
                _put_back(file, aside / file.name, folder / file.name)
        raise
    _flush_folder(folder)
    return [folder / file.name for file in staged]


def _put_back(staged: Path, aside: Path, place: Path) -> None:
    if aside.exists():
        os.replace(aside, place)
    elif not staged.exists():
        place.unlink()


def _flush_folder(folder: Path) -> None:
    """Make the renames last through a power cut, where the system has a way to."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
