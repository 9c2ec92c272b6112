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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from onnxprune.errors import ModelError

__all__ = ["commit", "flush", "reporting", "scratch_folder", "staging_folder", "undisturbed"]


@contextlib.contextmanager
def reporting(out: Path) -> Iterator[None]:
    """Errors of the file system as one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            reason = "the disk is full; free some space or choose another folder"
        raise ModelError(f"'{out}' cannot be written: {reason}") from None


def staging_folder(out: Path) -> contextlib.AbstractContextManager[Path]:
    """A folder on the file system of OUT that is gone afterwards, whatever happens."""
    return _passing_folder(out.parent / f".onnxprune-{uuid.uuid4().hex[:12]}")


def scratch_folder() -> contextlib.AbstractContextManager[Path]:
    """A folder for temporary files that is gone afterwards, whatever happens."""
    return _passing_folder(Path(tempfile.gettempdir()) / f"onnxprune-{uuid.uuid4().hex[:12]}")


@contextlib.contextmanager
def _passing_folder(folder: Path) -> Iterator[Path]:
    """The folder is named first: an interruption may follow at once."""
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        with undisturbed():
            shutil.rmtree(folder, ignore_errors=True)


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
