"""Writing whole or not at all: a folder beside OUT, flushed to the disk, then renamed into place.

Until the last rename, a failure leaves what was there before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from onnxprune.errors import ModelError

__all__ = ["commit", "flush", "reporting", "staging_folder"]


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


@contextlib.contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """A folder on the file system of OUT that is gone afterwards, whatever happens."""
    folder = out.parent / f".onnxprune-{uuid.uuid4().hex[:12]}"  # named first: an interruption may follow at once
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:  # an interruption in the middle of it
        shutil.rmtree(folder, ignore_errors=True)
        raise


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
