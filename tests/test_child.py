"""Work in a process of its own: what comes back, and what is said where nothing does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import run_process
from onnx import parser

from onnxprune.child import CAN_FORK, in_child
from onnxprune.errors import ModelError, VerificationError

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="processes are not forked here")


def killed(number: signal.Signals) -> int:
    os.kill(os.getpid(), number)
    return 0


def refused() -> int:
    raise VerificationError("they differ")


def test_what_a_function_returns_comes_back() -> None:
    here = os.getpid()
    assert in_child(lambda: (os.getpid() != here, np.arange(3).tolist()), "counting", "again") == (True, [0, 1, 2])


def test_what_it_raises_is_raised() -> None:
    with pytest.raises(VerificationError, match=r"^they differ$"):
        in_child(refused, "comparing", "look")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGSEGV, r"^ONNX Runtime crashed while verifying \(SIGSEGV\); nothing was written; --no-verify"),
        (signal.SIGFPE, r"crashed while verifying \(SIGFPE\)"),
        (signal.SIGKILL, r"was killed, for want of memory perhaps while verifying \(SIGKILL\)"),
    ],
)
def test_a_crash_is_an_error_in_words(number: signal.Signals, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        in_child(lambda: killed(number), "verifying", "nothing was written; --no-verify does not")


def test_a_model_that_the_runtime_crashes_on_ends_in_words(tmp_path: Path) -> None:
    """ONNX Runtime 1.31 does on a Loop that leaves out the last value of a state; a later one may not."""
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[2, 6] x) => (float[3, 2, 6] l) {
        n = Constant <value = int64 {3}> () c = Constant <value = bool {1}> ()
        f, l = Loop(n, c, x) <body = b (int64 i, bool go, float[2, 6] s) => (bool on, float[2, 6] t, float[2, 6] o)
            { on = Identity(go) t = Relu(s) o = Neg(s) }> }""")
    model.graph.node[-1].output[0] = ""
    source = tmp_path / "loop.onnx"
    onnx.save(model, source)
    calls: list[list[str | Path]] = [[source, "-o", tmp_path / "out.onnx"], ["verify", source, source]]
    for arguments in calls:
        done = run_process(*arguments)
        assert done.returncode == 0 or (done.returncode == 1 and done.stderr.count("\n") == 1), done
        assert done.returncode == 0 or [path.name for path in tmp_path.iterdir()] == ["loop.onnx"]
