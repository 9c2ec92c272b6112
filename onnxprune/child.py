"""Work done in a process of its own, so that native code that crashes does not take this one with it."""

from __future__ import annotations

import faulthandler
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Final, TypeVar

from onnxprune.errors import ModelError

__all__ = ["CAN_FORK", "in_child"]

CAN_FORK: Final = sys.platform == "linux"
"""Whether a process can be forked safely here. (What it has opened on a GPU is lost to the fork in any case.)"""

T = TypeVar("T")


def in_child(function: Callable[[], T], doing: str, remedy: str) -> T:
    """What a function returns or raises, computed in a fork of this process.

    Args:
        function: any; what it returns is sent back, so it should be small, and something that can be pickled.
        doing: what it does, for the message: "verifying".
        remedy: what came of it and what the user may do, for the message.

    Raises:
        ModelError: the child did not come back: native code crashed, or it was killed, for want of memory perhaps.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(function, sender), daemon=True)
    with _uninterrupted(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the other thread of ours only draws the progress
        child.start()
    sender.close()
    try:
        done, found = receiver.recv()
    except EOFError:
        child.join()
        raise ModelError(_obituary(child.exitcode, doing, remedy)) from None
    finally:
        child.kill()  # an interruption, or nothing left to do
        child.join()
    if not done:
        raise found
    result: T = found
    return result


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """An exception that a signal raised in the middle of a fork would be lost; it waits until after it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _answer(function: Callable[[], T], sender: Connection) -> None:
    """Send back (True, result) or (False, exception)."""
    faulthandler.disable()  # the parent says what happened
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes, and the parent sees to it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    try:
        answer: tuple[bool, object] = (True, function())
    except BaseException as error:
        answer = (False, error)
    sender.send(answer)


def _obituary(code: int | None, doing: str, remedy: str) -> str:
    name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    cause = "was killed, for want of memory perhaps" if name == "SIGKILL" else "crashed"
    return f"ONNX Runtime {cause} while {doing} ({name}); {remedy}"
