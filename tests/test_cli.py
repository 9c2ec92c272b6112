"""The command line: exit codes, one line for what goes wrong, nothing left behind, and what each option writes."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import COMMAND, environment, run, run_process
from exactness import model_of
from witness import feeds, largest_error, outputs, stored_weights

import onnxprune
from onnxprune import cli, pipeline
from onnxprune.deferred import Deferred
from onnxprune.files.staging import staging_folder
from onnxprune.passes.rewrite import rewrite

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(models: Path, tmp_path: Path) -> Path:
    """A model alone in a folder of its own."""
    folder = tmp_path / "models"
    folder.mkdir()
    return Path(shutil.copy(models / "resnet_digits.onnx", folder / "digits.onnx"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A place for results in a folder that is empty but for it."""
    folder = tmp_path / "results"
    folder.mkdir()
    return folder / "out.onnx"


def one_line(capsys: Capture) -> str:
    """What was said: one line on stderr, nothing on stdout."""
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("onnxprune: error: ")
    return said.err


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- bad input ------------------------------------------------------------------------------------------------------


def truncated(path: Path) -> bytes:
    return path.read_bytes()[:100_000]


BAD_MODELS: dict[str, tuple[Callable[[Path], bytes], str, int]] = {
    "empty": (lambda _: b"", "is empty", 1),
    "text": (lambda _: b"Dear reader,\nthis is no model.\n" * 50, "not an ONNX model", 1),
    "HTML": (lambda _: b"<!DOCTYPE html>\n<html><body>404</body></html>\n", "not an ONNX model", 1),
    "truncated": (truncated, "cut short", 1),
    "noise": (lambda _: np.random.default_rng(0).bytes(5000), "not an ONNX model", 1),
}


@pytest.mark.parametrize("command", [("-s", "0.5"), ("inspect",)], ids=["prune", "inspect"])
@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_bad_model_is_refused(model: Path, out: Path, capsys: Capture, kind: str, command: tuple[str, ...]) -> None:
    content, expected, code = BAD_MODELS[kind]
    model.write_bytes(content(model))
    extra = ("-o", out) if command[0] == "-s" else ()
    assert run(*command, model, *extra) == code
    said = one_line(capsys)
    assert str(model) in said
    assert expected in said
    assert names(out.parent) == []


@pytest.mark.parametrize("command", ["prune", "inspect", "bench", "verify"])
def test_a_missing_model_is_a_usage_error(tmp_path: Path, capsys: Capture, command: str) -> None:
    missing = tmp_path / "missing.onnx"
    assert run(command, *[missing] * (2 if command == "verify" else 1)) == 2
    assert "no such file" in one_line(capsys)


def test_a_folder_is_no_model(tmp_path: Path, capsys: Capture) -> None:
    assert run(tmp_path) == 2
    assert "is a folder" in one_line(capsys)


USAGE: dict[str, tuple[tuple[str, ...], str]] = {
    "S above 1": (("-s", "1.2"), "1.2"),
    "S of 1": (("-s", "1"), "below 1"),
    "S below 0": (("-s", "-0.1"), "at least 0"),
    "S not a number": (("-s", "abc"), "'abc'"),
    "S is NaN": (("-s", "nan"), "nan"),
    "unknown option": (("--colour",), "--colour"),
    "unknown method": (("--method", "best"), "'best'"),
    "unknown measure": (("--measure", "bytes"), "'bytes'"),
    "unknown provider": (("--provider", "tpu"), "'tpu'"),
    "unknown granularity": (("-s", "0.5", "--granularity", "weight"), "'weight'"),
    "alignment": (("-s", "0.5", "--align", "odd"), "expected auto, none or a positive number"),
    "norm grid of one point": (("-s", "0.5", "--norm-grid", "1"), "expected 2 to 1024 points"),
    "norm grid of letters": (("-s", "0.5", "--norm-grid", "fine"), "'fine'"),
    "keep nothing": (("-s", "0.5", "--keep", "no_such_layer*"), "matches no node or tensor"),
    "shape without a name": (("--shape", "1,3,224,224"), "NAME=SIZE"),
    "shape of letters": (("--shape", "x=a,b"), "NAME=SIZE"),
    "two models": (("other.onnx",), "other.onnx"),
    "missing plan": (("--plan", "no_such_plan.json"), "no_such_plan.json"),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(model: Path, out: Path, capsys: Capture, name: str) -> None:
    arguments, said = USAGE[name]
    assert run(model, "-o", out, *arguments) == 2
    assert said in one_line(capsys)
    assert names(out.parent) == []


def test_a_plan_that_is_none_is_refused(model: Path, out: Path, capsys: Capture) -> None:
    assert run(model, "-o", out, "--plan", model) == 2
    assert str(model) in one_line(capsys)


@pytest.mark.parametrize("text", ["", "no plan", "[1]", "{}"])
def test_a_plan_without_the_json_of_one_is_refused(
    model: Path, out: Path, tmp_path: Path, capsys: Capture, text: str
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(text)
    assert run(model, "-o", out, "--plan", plan) == 2
    assert "expected the JSON that --save-plan writes" in one_line(capsys)
    assert names(out.parent) == []


def test_what_cannot_be_reached_ends_with_1(model: Path, out: Path, capsys: Capture) -> None:
    assert run(model, "-s", "0.99999", "-o", out) == 1
    assert re.search(r"cannot be reached, at most 0\.99\d* can: ", one_line(capsys))
    assert names(out.parent) == []


def test_without_arguments_it_explains_itself(capsys: Capture) -> None:
    assert run() == 2
    assert "onnxprune inspect MODEL" in capsys.readouterr().out


def test_help_and_version_end_well(capsys: Capture) -> None:
    assert [run("--help"), run("--version"), run("prune", "--help")] == [0, 0, 0]
    assert "--sparsity" in capsys.readouterr().out


# ---- where the result goes ------------------------------------------------------------------------------------------


def test_by_default_it_goes_beside_the_model(model: Path) -> None:
    assert run(model, "-s", "0.5", "--no-verify", "-q") == 0
    assert names(model.parent) == ["digits.onnx", "digits.pruned.onnx"]


def test_options_may_come_first(model: Path, out: Path) -> None:
    assert run("-s", "0.5", "--no-verify", "-q", "-o", out, model) == 0
    assert out.exists()


def test_a_missing_folder_is_a_usage_error(model: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(model, "-s", "0.5", "-o", tmp_path / "missing" / "out.onnx") == 2
    assert "there is no folder" in one_line(capsys)
    assert not (tmp_path / "missing").exists()


def test_a_folder_as_result_is_a_usage_error(model: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(model, "-s", "0.5", "-o", tmp_path) == 2
    assert "it is a folder" in one_line(capsys)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="everything is writable to the superuser")
def test_a_write_protected_folder_is_told_early(model: Path, out: Path, capsys: Capture) -> None:
    out.parent.chmod(0o500)
    assert run(model, "-s", "0.5", "-o", out) == 1
    assert "cannot be written" in one_line(capsys)


def test_the_model_itself_is_not_overwritten(model: Path, capsys: Capture) -> None:
    before = model.read_bytes()
    assert run(model, "-s", "0.5", "-o", model) == 2
    assert "--force" in one_line(capsys)
    assert model.read_bytes() == before


def test_nor_under_another_name(model: Path, capsys: Capture) -> None:
    link = model.with_name("link.onnx")
    link.symlink_to(model)
    assert run(model, "-s", "0.5", "-o", link) == 2
    assert "--force" in one_line(capsys)


def test_with_force_it_is(model: Path) -> None:
    before = stored_weights(model)
    assert run(model, "-s", "0.5", "-o", model, "--force", "-q") == 0
    assert stored_weights(model) <= before / 2
    assert names(model.parent) == ["digits.onnx"]


@pytest.mark.parametrize("option", ["--emit-masked", "--save-plan", "--report"])
def test_no_other_file_may_take_the_models_place(model: Path, out: Path, capsys: Capture, option: str) -> None:
    assert run(model, "-s", "0.5", "-o", out, option, model, "--force") == 2
    assert "would be overwritten" in one_line(capsys)
    assert names(out.parent) == []


def test_two_results_cannot_share_a_place(model: Path, out: Path, capsys: Capture) -> None:
    assert run(model, "-s", "0.5", "-o", out, "--emit-masked", out) == 2
    assert "the same file" in one_line(capsys)


@pytest.mark.parametrize("option", ["--emit-masked", "--save-plan", "--report"])
def test_places_of_all_results_are_checked_first(model: Path, out: Path, capsys: Capture, option: str) -> None:
    assert run(model, "-s", "0.5", "-o", out, option, out.parent / "missing" / "file") == 2
    assert "there is no folder" in one_line(capsys)
    assert names(out.parent) == []


# ---- a failure on the way -------------------------------------------------------------------------------------------


@pytest.fixture
def everything(model: Path, out: Path) -> list[str | Path]:
    """A run that writes all it can, over a result that is there already."""
    out.write_bytes(b"old result")
    folder = out.parent
    wanted: list[str | Path] = ["--emit-masked", folder / "masked.onnx", "--save-plan", folder / "plan.json"]
    return [model, "-s", "0.5", "-o", out, *wanted, "--report", folder / "report.json"]


def assert_untouched(out: Path) -> None:
    assert names(out.parent) == ["out.onnx"]
    assert out.read_bytes() == b"old result"


def fail(error: BaseException) -> Callable[..., Any]:
    def failing(*_arguments: object, **_options: object) -> None:
        raise error

    return failing


STEPS: dict[str, tuple[Any, str]] = {
    "pruning": (cli, "prune"),
    "verification": (onnxprune.Result, "verified"),
    "timing": (cli, "benchmark"),
    "reporting": (cli, "report_json"),
}
each_step = pytest.mark.parametrize("step", STEPS)


@pytest.mark.parametrize(
    ("option", "code"), [(("-s", "0.99999"), 1), (("-s", "1.2"), 2), (("--shape", "nothing=1"), 2)], ids=str
)
def test_a_refusal_leaves_an_old_result_alone(
    everything: list[str | Path], out: Path, capsys: Capture, option: tuple[str, str], code: int
) -> None:
    assert run(*everything, *option) == code
    one_line(capsys)
    assert_untouched(out)


@each_step
def test_interrupted_it_leaves_everything_as_it_was(
    everything: list[str | Path], out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, step: str
) -> None:
    monkeypatch.setattr(*STEPS[step], fail(KeyboardInterrupt()))
    assert run(*everything) == 1
    assert "interrupted; nothing was written" in one_line(capsys)
    assert_untouched(out)


@each_step
def test_a_fault_leaves_everything_as_it_was(
    everything: list[str | Path], out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, step: str
) -> None:
    monkeypatch.setattr(*STEPS[step], fail(RuntimeError("never\nmind")))
    assert run(*everything) == 1
    assert "a fault in onnxprune (RuntimeError: never)" in one_line(capsys)
    assert_untouched(out)


def test_out_of_memory_is_said(
    everything: list[str | Path], out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(cli, "prune", fail(MemoryError()))
    assert run(*everything) == 1
    assert "out of memory" in one_line(capsys)
    assert_untouched(out)


def test_a_wrong_result_is_not_written(
    everything: list[str | Path], out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A rewriter that changes a number is found out by the verification."""

    def wrong(channel_map: Any, keep: Any) -> Deferred:
        made = rewrite(channel_map, keep)
        bias = next(t for t in made.graph.initializer if len(t.dims) == 1)
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1), bias.name))
        return Deferred(made)

    monkeypatch.setattr(pipeline, "rewrite_deferred", wrong)
    assert run(*everything) == 1
    assert "does not agree with its reference" in one_line(capsys)
    assert_untouched(out)


def test_a_full_disk_is_said(
    everything: list[str | Path], out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(os, "fsync", fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert run(*everything) == 1
    assert "the disk is full" in one_line(capsys)
    assert_untouched(out)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no tmpfs without mount")
def test_a_disk_that_is_really_full(model: Path, small_disk: Path, capsys: Capture) -> None:
    old = small_disk / "out.onnx"
    old.write_bytes(b"old result")
    assert run(model, "-s", "0.3", "-o", old, "--no-verify") == 1
    assert "the disk is full; free some space" in one_line(capsys)
    assert_untouched(old)


# ---- signals, sent to a process -------------------------------------------------------------------------------------


def started(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def stopped(process: subprocess.Popen[str], sent: signal.Signals) -> str:
    """Send a signal and return what is said on stderr."""
    process.send_signal(sent)
    said, error = process.communicate(timeout=60)
    assert said == ""
    return error


def staged_files(folder: Path) -> bool:
    """Whether a staging folder with something in it is there; it may go while we look."""
    try:
        return any(folder.glob(".onnxprune-*/*"))
    except FileNotFoundError:
        return False


def await_staged(process: subprocess.Popen[str], out: Path) -> None:
    """Until the result is staged: from then on it is verified and timed; --bench keeps it there for seconds."""
    deadline = time.monotonic() + 60
    while not staged_files(out.parent) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def assert_interrupted(process: subprocess.Popen[str], sent: signal.Signals, out: Path) -> None:
    """A signal ends it with one line, and everything is as it was."""
    assert stopped(process, sent) == "onnxprune: error: interrupted; nothing was written\n"
    assert process.returncode == 1
    assert_untouched(out)


posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@posix
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: str(sent.name))
@pytest.mark.parametrize("delay", [0.0, 0.3, 0.7])
def test_a_signal_while_it_verifies_and_times(
    everything: list[str | Path], out: Path, sent: signal.Signals, delay: float
) -> None:
    process = started(*everything, "--bench")
    await_staged(process, out)
    time.sleep(delay)
    assert process.poll() is None, process.communicate()
    assert_interrupted(process, sent, out)


@posix
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: str(sent.name))
@pytest.mark.parametrize("delay", [0.1, 0.5])
def test_impatience_does_not_cut_the_cleaning_up_short(
    everything: list[str | Path], out: Path, sent: signal.Signals, delay: float
) -> None:
    process = started(*everything, "--bench")
    await_staged(process, out)
    time.sleep(delay)
    for _ in range(3):
        process.send_signal(sent)
        time.sleep(0.002)
    assert_interrupted(process, sent, out)


@posix
def test_a_late_signal_does_not_cut_the_cleaning_up_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed = shutil.rmtree

    def interrupted(folder: Path, ignore_errors: bool) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        removed(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", interrupted)

    def staged() -> None:
        with staging_folder(tmp_path / "out.onnx") as staging:
            (staging / "out.onnx").touch()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever an interrupted run here left
    try:
        with pytest.raises(KeyboardInterrupt):  # heard afterwards
            staged()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("words", [["inspect"], ["inspect", "--json"]], ids=" ".join)
def test_a_stdout_that_takes_nothing_is_no_fault(model: Path, words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *words, str(model)], stdout=full, stderr=subprocess.PIPE, text=True,
                              env=environment(), check=False)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("onnxprune: error: stdout cannot be written: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_where_the_summary_cannot_be_shown_the_result_is_said_to_be_there(model: Path, out: Path) -> None:
    command = [*COMMAND, str(model), "-s", "0.5", "-o", str(out), "--no-verify"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"onnxprune: error: '{out}' is written, but stdout cannot be")
    assert done.stderr.count("\n") == 1
    assert out.exists()


# ---- what is written ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run that writes everything."""
    folder = tmp_path_factory.mktemp("written")
    model = shutil.copy(models / "resnet_digits.onnx", folder / "model.onnx")
    wanted: list[str | Path] = [
        "--emit-masked",
        folder / "masked.onnx",
        "--save-plan",
        folder / "plan.json",
        "--report",
        folder / "report.json",
    ]
    assert run(model, "-s", "0.7", "-o", folder / "out.onnx", "-q", *wanted) == 0
    return folder


def report(written: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((written / "report.json").read_text())
    return found


def test_exactly_what_was_asked_for_is_written(written: Path) -> None:
    assert names(written) == ["masked.onnx", "model.onnx", "out.onnx", "plan.json", "report.json"]


def test_the_masked_reference_is_what_the_result_computes(written: Path) -> None:
    given = feeds(written / "model.onnx")
    expected, found = (outputs(written / name, given) for name in ("masked.onnx", "out.onnx"))
    assert largest_error(expected, found) < 1e-4


def test_the_report_counts_what_is_in_the_files(written: Path) -> None:
    for place, name in (("before", "model.onnx"), ("after", "out.onnx")):
        assert report(written)[place]["weights"] == stored_weights(written / name)
        assert report(written)[place]["bytes"] == (written / name).stat().st_size


def test_the_report_has_its_version_and_the_shares_removed(written: Path) -> None:
    held = report(written)
    assert held["onnxprune_report"] == 1
    assert held["removed"]["weights"] == 1 - held["after"]["weights"] / held["before"]["weights"] >= 0.7
    assert held["plan"] | {"groups": 0} == {
        "method": "lean", "measure": "weights", "granularity": "channel", "sparsity": 0.7, "keep": [], "groups": 0,
    }  # fmt: skip


def test_the_report_tells_how_well_and_how_fast(written: Path) -> None:
    held = report(written)
    assert held["verification"]["ok"] is True
    assert [each["model"] for each in held["latency"]] == [str(written / name) for name in ("model.onnx", "out.onnx")]
    assert all(each["p50_ms"] > 0 for each in held["latency"])


def test_the_layers_of_the_report_have_the_widths_of_the_file(written: Path) -> None:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(written / "out.onnx").graph.initializer}
    for layer in report(written)["layers"]:
        if layer["operator"] == "Conv":
            assert shapes[layer["weight"]][:2] == (layer["outputs_kept"], layer["inputs_kept"])


def test_the_plan_makes_the_same_model_again(written: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    assert run(written / "model.onnx", "--plan", written / "plan.json", "-o", again, "--no-verify", "-q") == 0
    assert again.read_bytes() == (written / "out.onnx").read_bytes()


def test_a_plan_for_another_model_is_refused(written: Path, models: Path, tmp_path: Path, capsys: Capture) -> None:
    code = run(models / "unet_circles.onnx", "--plan", written / "plan.json", "-o", tmp_path / "out.onnx")
    assert code == 2
    assert "does not fit this model" in one_line(capsys)
    assert names(tmp_path) == []


def test_without_verification_the_report_says_so(model: Path, out: Path) -> None:
    path = out.with_name("report.json")
    assert run(model, "-s", "0.5", "-o", out, "--report", path, "--no-verify", "-q") == 0
    held = json.loads(path.read_text())
    assert (held["verification"], held["latency"]) == (None, [])


def test_what_is_to_be_kept_is_kept(model: Path, out: Path) -> None:
    layer = "/blocks/blocks.2/outer/*"
    assert run(model, "-s", "0.5", "-o", out, "--keep", layer, "--no-verify", "-q") == 0
    before, after = (
        {t.name: tuple(t.dims) for t in onnx.load(path).graph.initializer if "blocks.2.outer" in t.name}
        for path in (model, out)
    )
    assert before
    assert after == before


@pytest.mark.parametrize("measure", ["macs", "kernels"])
def test_other_measures_are_met(model: Path, out: Path, measure: str) -> None:
    path = out.with_name("report.json")
    assert run(model, "-s", "0.6", "-o", out, "--measure", measure, "--report", path, "--no-verify", "-q") == 0
    assert json.loads(path.read_text())["removed"][measure] >= 0.6


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_quiet_says_nothing(model: Path, out: Path, capsys: Capture) -> None:
    assert run(model, "-s", "0.5", "-o", out, "-q") == 0
    assert capsys.readouterr() == ("", "")


def test_the_summary_has_the_numbers_and_the_place(model: Path, out: Path, capsys: Capture) -> None:
    assert run(model, "-s", "0.5", "-o", out) == 0
    said = capsys.readouterr().out
    for part in ("weights", "MACs", "file", "latency", "largest output error", "32 → 32", f"wrote {out}"):
        assert part in said


def test_a_pipe_gets_no_control_characters(model: Path, out: Path) -> None:
    done = run_process(model, "-s", "0.5", "-o", out, TERM="xterm-256color")
    assert done.returncode == 0
    assert done.stderr == ""
    assert [c for c in done.stdout if ord(c) < 32 and c != "\n"] == []


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path: Path, capsys: Capture) -> None:
    text = "(float[1,3,8,8] x) => (float[A,B,C,D] y) { a = Conv(x, w) y = Conv(a, v) }"
    made = model_of(text, w=(8, 3, 3, 3), v=(4, 8, 1, 1))
    made.graph.node[0].name = "[/red] :smile: [bold]"
    path = tmp_path / "[bold]odd[x].onnx"
    onnx.save(made, path)
    assert run(path, "-s", "0.5", "-v") == 0
    assert run("inspect", path, "-v") == 0
    said = capsys.readouterr()
    assert "[/red] :smile: [bold]" in said.out
    assert "[bold]odd[x].pruned.onnx" in said.out
    assert said.err == ""


def test_a_terminal_that_knows_no_blocks_gets_question_marks(model: Path, out: Path) -> None:
    done = run_process(model, "-s", "0.5", "-o", out, "--no-verify", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_early_sees_no_traceback(model: Path) -> None:
    command = " ".join([*COMMAND, "inspect", str(model), "-v"])
    done = subprocess.run(
        f"{command} | head -1", shell=True, capture_output=True, text=True, env=environment(), check=False
    )
    assert "Traceback" not in done.stderr


def test_a_fault_shows_its_traceback_on_request(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(cli, "prune", fail(RuntimeError("never mind")))
    assert run(model, "-s", "0.5", "-vv") == 1
    assert "Traceback" in capsys.readouterr().err


# ---- the other commands ---------------------------------------------------------------------------------------------


def test_inspect_prints_json(model: Path, capsys: Capture) -> None:
    assert run("inspect", model, "--json") == 0
    held = json.loads(capsys.readouterr().out)
    assert held["onnxprune_inspection"] == 1
    assert held["sizes"]["weights"] == stored_weights(model)
    frozen = sum(each["weights"] for each in held["weights"]["frozen"])
    assert held["weights"]["total"] == held["weights"]["prunable"] + frozen


def test_inspect_lists_every_layer(model: Path, capsys: Capture) -> None:
    assert run("inspect", model) == 0
    said = capsys.readouterr().out
    assert said.count(" Conv ") + said.count(" Gemm ") >= 11
    assert "reachable sparsity" in said


def test_inspect_names_what_is_frozen_and_by_whom(models: Path, capsys: Capture) -> None:
    assert run("inspect", models / "vit_digits.onnx") == 0
    assert "LayerNormalization" in capsys.readouterr().out


def test_long_names_do_not_push_the_numbers_out(tmp_path: Path, capsys: Capture) -> None:
    made = model_of("(float[1,3,8,8] x) => (float[A,B,C,D] y) { a = Conv(x, w) y = Frobnicate(a) }", w=(57, 3, 3, 3))
    made.graph.node[1].name = "model_1/a_name_by_a_framework;" * 12
    path = tmp_path / "model.onnx"
    onnx.save(made, path)
    assert run("inspect", path) == 0
    header, row, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[:9] == ["layer", "operator", "in", "out", "groups", "acc", "co-acc", "dead", "weights"]
    assert row.split()[1:9] == ["Conv", "3", "57", "0", "57", "57", "0", "1539"]


def test_bench_prints_json(model: Path, capsys: Capture) -> None:
    assert run("bench", model, model, "--repeats", "5", "--json") == 0
    held = json.loads(capsys.readouterr().out)
    assert held["onnxprune_bench"] == 1
    assert [each["model"] for each in held["models"]] == [str(model)] * 2
    assert held["models"][0]["speedup"] == 1


def test_bench_prints_a_table(model: Path, capsys: Capture) -> None:
    assert run("bench", model, "--repeats", "5") == 0
    assert "p50" in capsys.readouterr().out


@pytest.mark.parametrize("option", [("--repeats", "0"), ("--threads", "0"), ("--batch", "-1")], ids=str)
def test_bench_refuses_numbers_out_of_range(model: Path, capsys: Capture, option: tuple[str, str]) -> None:
    assert run("bench", model, *option) == 2
    one_line(capsys)


def test_verify_tells_that_a_model_equals_itself(model: Path, capsys: Capture) -> None:
    assert run("verify", model, model) == 0
    assert "same" in capsys.readouterr().out


def test_verify_tells_that_models_differ(model: Path, out: Path, capsys: Capture) -> None:
    assert run(model, "-s", "0.5", "-o", out, "--no-verify", "-q") == 0
    assert run("verify", model, out) == 1
    said = capsys.readouterr()
    assert "differ" in said.out
    assert said.err == ""


def test_verify_prints_json(model: Path, capsys: Capture) -> None:
    assert run("verify", model, model, "--json") == 0
    held = json.loads(capsys.readouterr().out)
    assert (held["onnxprune_verification"], held["ok"]) == (1, True)


def test_verify_prints_json_of_a_difference_and_ends_with_1(written: Path, capsys: Capture) -> None:
    assert run("verify", written / "model.onnx", written / "out.onnx", "--json") == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["ok"] is False
    assert said.err == ""


def test_verify_takes_given_inputs(model: Path, out: Path, tmp_path: Path, capsys: Capture) -> None:
    given: dict[str, Any] = dict(feeds(model))
    np.savez(tmp_path / "given.npz", **given)
    assert run("verify", model, model, "--inputs", tmp_path / "given.npz", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_verify_tells_another_interface(model: Path, models: Path, capsys: Capture) -> None:
    assert run("verify", model, models / "unet_circles.onnx") == 1
    capsys.readouterr()


# ---- the package ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["torch", "onnxruntime", "onnxscript", "sklearn"])
def test_importing_the_package_does_not_import_what_it_can_do_without(module: str) -> None:
    check = f"import onnxprune, sys; assert {module!r} not in sys.modules"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_main_job_does_not_need_torch(model: Path) -> None:
    """Even where it is installed."""
    check = (
        f"import sys; sys.modules['torch'] = None\nimport onnxprune; onnxprune.prune({str(model)!r}, sparsity=0.5)\n"
    )
    assert subprocess.run([sys.executable, "-c", check], env=environment(), check=False).returncode == 0


def test_the_api_says_what_the_command_line_says(model: Path, out: Path) -> None:
    assert run(model, "-s", "0.6", "-o", out, "--no-verify", "-q") == 0
    assert onnxprune.prune(model, sparsity=0.6, check=False).model == onnx.load(out)


def test_infinities_in_removed_channels_are_said(tmp_path: Path, capsys: Capture) -> None:
    """Masked, they are 0·∞: no pruned model can agree with that."""
    text = "(float[2,6] x) => (float[2,4] y) { h = MatMul(x, w) i = Add(h, m) y = MatMul(i, v) }"
    low = np.array([[0], [-np.inf]], np.float32)
    onnx.save(model_of(text, w=(6, 8), v=(8, 4), m=low), tmp_path / "model.onnx")
    assert run("prune", tmp_path / "model.onnx", "-s", "0.5", "-o", tmp_path / "out.onnx") == 1
    assert "channels that hold infinities or NaNs cannot be removed" in one_line(capsys)
    assert not (tmp_path / "out.onnx").exists()
