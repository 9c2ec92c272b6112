"""The command line. Exit 0: done, 2: wrong usage, 1: anything else, with one line on stderr that says what to do."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
import numpy as np

from onnxprune.bench import Latency, benchmark
from onnxprune.calibration import cache_file, calibrate, described
from onnxprune.child import CAN_FORK, in_child
from onnxprune.errors import OnnxpruneError, UsageError
from onnxprune.files.staging import undisturbed
from onnxprune.inputs import load_inputs
from onnxprune.inspection import inspect
from onnxprune.model_io import check_writable, default_output, load
from onnxprune.passes.cost import MEASURES
from onnxprune.pipeline import Options, Result, method_names, prune
from onnxprune.plan import Plan
from onnxprune.report import report_json
from onnxprune.runtime import Inputs, Provider, is_large, load_structure, resolve_provider
from onnxprune.terminal import Terminal
from onnxprune.verify import verify

__all__ = ["main"]

_T = TypeVar("_T")
_QUICK_SECONDS = 0.5  # time per model for the latency in the summary
_IMPATIENT_SECONDS = 1.0  # signals this soon after one another count once


class _Commands(click.Group):
    """``onnxprune MODEL …`` is ``onnxprune prune MODEL …``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help", "--version"):
            args = ["prune", *args]
        return super().parse_args(ctx, args)


def _shapes(_ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """NAME=1,3,224,224 → sizes."""
    found = {}
    for value in values:
        name, _, sizes = value.rpartition("=")
        try:
            found[name] = tuple(int(size) for size in sizes.split(",")) if sizes else ()
        except ValueError:
            raise click.BadParameter(f"'{value}' is not NAME=SIZE,SIZE,…, such as input=1,3,224,224") from None
        if not name:
            raise click.BadParameter(f"'{value}' names no input; expected NAME=SIZE,SIZE,…")
    return found


_PATH = click.Path(path_type=Path)
_provider = click.option(
    "--provider",
    type=click.Choice(get_args(Provider)),
    default="auto",
    show_default=True,
    help="Where models run: auto is CUDA where it works, else the CPU.",
)
_shape = click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=_shapes,
    metavar="NAME=1,3,224,224",
    help="Sizes of an input with open dimensions; guessed without it.",
)
_seed = click.option("--seed", type=int, default=0, show_default=True, help="Of random inputs and --method random.")
_verbose = click.option("-v", "--verbose", count=True, help="More detail; -vv shows tracebacks.")
_keep = click.option("--keep", multiple=True, metavar="GLOB", help="Names of nodes or tensors to leave alone.")
_renorm = click.option(
    "--allow-renorm", is_flag=True, help="Also prune channels that a normalisation runs over (then not exact)."
)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("onnxprune"), prog_name="onnxprune")
def _cli() -> None:
    """Make a trained ONNX model smaller and faster by removing channels.

    \b
    onnxprune MODEL --sparsity 0.98     prune ('onnxprune prune --help' lists the options)
    onnxprune inspect MODEL             what can be pruned, and what not and why
    onnxprune bench A.onnx B.onnx       latency side by side
    onnxprune verify A.onnx B.onnx      same interface and outputs?
    onnxprune calibrate                 measure this CPU, for --restructure auto
    """


@dataclass(frozen=True)
class _Files:
    """What one run writes, and what it may write over."""

    model: Path
    out: Path
    masked: Path | None
    plan: Path | None
    report: Path | None
    force: bool

    def check(self) -> None:
        """Find out early what would fail late. Raises UsageError and ModelError."""
        if not self.force and _same(self.model, self.out):
            raise UsageError(f"'{self.out}' is the model itself; choose another -o, or overwrite it with --force")
        others = [path for path in (self.masked, self.plan, self.report) if path is not None]
        if len({path.resolve() for path in (self.out, *others)}) <= len(others):
            raise UsageError("two of -o, --emit-masked, --save-plan and --report name the same file")
        if any(_same(self.model, path) for path in others):
            raise UsageError(f"'{self.model}' would be overwritten by another file; choose another name")
        for path in (self.out, *others):
            check_writable(path)


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)


@_cli.command("prune")
@click.argument("model", type=_PATH)
@click.option("-o", "--output", type=_PATH, help="Where to write; default: MODEL with .pruned.onnx.")
@click.option(
    "-s",
    "--sparsity",
    type=float,
    metavar="S",
    help="Share to remove, 0 ≤ S < 1. Without it: lossless, only what provably does not matter goes.",
)
@click.option(
    "--measure",
    type=click.Choice(MEASURES),
    default="weights",
    show_default=True,
    help="What S counts: stored elements of rank ≥ 2, multiply-accumulates, or kernel slices.",
)
@click.option(
    "--method",
    type=click.Choice(method_names()),
    default="lean",
    show_default=True,
    help="How channels or kernel slices are ranked.",
)
@click.option(
    "--granularity",
    type=click.Choice(["channel", "kernel"]),
    default="channel",
    show_default=True,
    help="What is chosen: whole channels, or kernel slices (what is dead without them leaves).",
)
@_keep
@click.option(
    "--align",
    metavar="auto|N|none",
    help="Steps that kept channel counts fall on; auto (default with --sparsity): the block of the target's "
    "kernels; none: any. Lossless mode, by default, leaves dead channels only where it would be slower than before.",
)
@_renorm
@click.option(
    "--restructure",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Let layers read only the channels they have kernels for: auto where it pays.",
)
@click.option(
    "--norm-grid",
    type=int,
    metavar="N",
    help="Frequencies per axis that operator norms look at; default: as many as keep their error below 1 %.",
)
@click.option("--plan", "plan_file", type=_PATH, help="Apply this plan instead of choosing.")
@click.option("--save-plan", type=_PATH, help="Write the plan as JSON.")
@click.option("--emit-masked", type=_PATH, help="Write the masked reference that the result must agree with.")
@click.option("--report", "report_file", type=_PATH, help="Write everything that is known about the run as JSON.")
@_shape
@_provider
@click.option("--no-verify", is_flag=True, help="Do not run the result (nor time it).")
@click.option("--bench", is_flag=True, help="Time original and result thoroughly, also models of over 1 GB.")
@click.option("--threads", type=int, default=1, show_default=True, help="Threads for timing.")
@click.option("--force", is_flag=True, help="Allow overwriting MODEL itself.")
@_seed
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@_verbose
def _prune(
    model: Path,
    output: Path | None,
    plan_file: Path | None,
    save_plan: Path | None,
    emit_masked: Path | None,
    report_file: Path | None,
    shapes: dict[str, tuple[int, ...]],
    provider: Provider,
    no_verify: bool,
    bench: bool,
    threads: int,
    force: bool,
    quiet: bool,
    verbose: int,
    **chosen: Any,
) -> None:
    """Prune MODEL: physically remove channels, check the result on ONNX Runtime, write it."""
    Options(**chosen, provider=provider).check()
    files = _Files(model, output or default_output(model), emit_masked, save_plan, report_file, force)
    terminal = Terminal(quiet, verbose)
    plan = Plan.from_json(_read(plan_file)) if plan_file else None
    source = load(model)  # a model that cannot be read is the first thing to say
    files.check()
    with terminal.progress() as progress:
        result = prune(source, **chosen, plan=plan, check=False, provider=provider, progress=progress)
        result, latencies = _written(
            result, files, progress, shapes, provider, no_verify, bench, threads, chosen["seed"]
        )
    with _saying(f"'{files.out}' is written, but stdout cannot be"):
        terminal.summary(result, files.out, latencies)


@contextmanager
def _saying(failed: str = "stdout cannot be written") -> Iterator[None]:
    """Results go to stdout. Raises OnnxpruneError where that cannot take them."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OnnxpruneError(f"{failed}: {error.strerror}") from None


def _written(
    result: Result,
    files: _Files,
    progress: Callable[[str], None],
    shapes: dict[str, tuple[int, ...]],
    provider: Provider,
    no_verify: bool,
    bench: bool,
    threads: int,
    seed: int,
) -> tuple[Result, list[Latency]]:
    """Verify and time the staged file, then put everything in place: all files, or none."""
    found: list[Any] = [result, []]

    def check(staged: Path) -> None:
        if not no_verify:
            progress("verifying on ONNX Runtime")
            found[0] = replace(result, verification=_unharmed(
                lambda: result.verified(staged, provider=provider, shapes=shapes, seed=seed).verification, provider,
                f"nothing was written; --no-verify does not run the model, {_OTHERWISE}",
            ))
        if not no_verify and (bench or not is_large(result.unpruned)):
            progress("timing")
            timed = benchmark(
                [files.model, staged],
                shapes=shapes,
                threads=threads,
                provider=provider,
                memory=bench,
                seconds=5.0 if bench else _QUICK_SECONDS,
                seed=seed,
            )
            found[1] = [
                replace(each, model=str(path)) for each, path in zip(timed, (files.model, files.out), strict=True)
            ]
        if files.plan:
            drafts.add(files.plan, result.plan.to_json())
        if files.report:
            drafts.add(files.report, json.dumps(report_json(found[0], files.out, found[1], staged), indent=1))
        _finish_undisturbed()

    def write_result(_masked: Path | None = None) -> None:
        result.save(files.out, check=check)

    progress("writing")
    with _Drafts() as drafts:
        if files.masked:
            result.save_masked(files.masked, check=write_result)
        else:
            write_result()
        drafts.commit()
    return found[0], found[1]


_OTHERWISE = "--shape and --provider run it in another way"


def _unharmed(verifying: Callable[[], _T], provider: Provider, remedy: str) -> _T:
    """Run models where a crash of ONNX Runtime does no harm, if that can be done: not on a GPU. ``remedy``: see
    `in_child`."""
    if CAN_FORK and resolve_provider(provider) == resolve_provider("cpu"):
        return in_child(verifying, "verifying", remedy)
    return verifying()


def _finish_undisturbed() -> None:
    """Only renames are left: too late for an interruption to leave nothing behind, soon enough to let it wait."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Drafts:
    """Text files that come into place together, or not at all."""

    def __init__(self) -> None:
        self.places: dict[Path, Path] = {}

    def __enter__(self) -> _Drafts:
        return self

    def __exit__(self, *_: object) -> None:
        with undisturbed():
            for draft in self.places:
                draft.unlink(missing_ok=True)

    def add(self, path: Path, text: str) -> None:
        """Raises OnnxpruneError where it cannot be written."""
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        self.places[draft] = path
        try:
            draft.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise OnnxpruneError(f"'{path}' cannot be written: {error.strerror}") from None

    def commit(self) -> None:
        for draft, path in self.places.items():
            draft.replace(path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"'{path}' cannot be read: {error}") from None


@_cli.command("inspect")
@click.argument("model", type=_PATH)
@_keep
@_renorm
@click.option(
    "--chains",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="List the N strongest chains from an input to an output: layers, channels, operator norms, product.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_verbose
def _inspect(model: Path, keep: tuple[str, ...], allow_renorm: bool, chains: int, as_json: bool, verbose: int) -> None:
    """Per layer: channels, groups, what is dead, what is frozen and by which operator; what sparsity is reachable."""
    found = inspect(model, keep=keep, allow_renorm=allow_renorm, chains=chains)
    with _saying():
        if as_json:
            click.echo(json.dumps(found.to_json(), indent=1))
        else:
            Terminal(False, verbose).inspection(found, model)


@_cli.command("bench")
@click.argument("models", type=_PATH, nargs=-1, required=True)
@click.option("--batch", type=int, help="Size of the batch dimension.")
@click.option("--threads", type=int, default=1, show_default=True, help="Threads a node may use.")
@click.option("--warmup", type=int, default=3, show_default=True, help="Rounds that are not timed.")
@click.option("--repeats", type=int, help="Timed rounds; default: as many as fit --seconds.")
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Time per model.")
@_shape
@_provider
@_seed
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_verbose
def _bench(models: tuple[Path, ...], as_json: bool, verbose: int, **options: Any) -> None:
    """Latency of MODELS side by side, interleaved: p50, p90, p99, throughput, memory, ratio to the first."""
    found = benchmark(models, **options)
    with _saying():
        if as_json:
            click.echo(json.dumps({"onnxprune_bench": 1, "models": [each.to_json() for each in found]}, indent=1))
        else:
            Terminal(False, verbose).latencies(found)


@_cli.command("verify")
@click.argument("a", type=_PATH)
@click.argument("b", type=_PATH)
@click.option(
    "--inputs", "given", type=_PATH, multiple=True, help="Inputs to run: .npz, .pb or a folder of an ONNX test set."
)
@click.option("--samples", type=int, default=2, show_default=True, help="How many random inputs.")
@click.option("--rtol", type=float, help="Largest error allowed, as a share of an output's scale; default: by type.")
@_shape
@_provider
@_seed
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_verbose
def _verify(a: Path, b: Path, given: tuple[Path, ...], as_json: bool, verbose: int, **options: Any) -> None:
    """Have A and B the same interface and the same outputs? Exit 1 if not."""
    names = [value.name for value in load_structure(a).graph.input]
    inputs: list[Inputs] = [load_inputs(path, names) for path in given]
    found = _unharmed(lambda: verify(a, b, inputs=inputs or None, **options), options["provider"], _OTHERWISE)
    with _saying():
        click.echo(json.dumps({"onnxprune_verification": 1, **found.to_json()}, indent=1) if as_json else str(found))
    if not found.ok:
        sys.exit(1)


@_cli.command("calibrate")
@_verbose
def _calibrate(verbose: int) -> None:
    """Measure what nodes take on this CPU, for --restructure auto; kept in the user's cache."""
    found = described(calibrate())
    with _saying():
        click.echo(found)
        click.echo(f"wrote {cache_file()}; without it, the constants that come with onnxprune are used")


@contextmanager
def _termination_as_interrupt() -> Iterator[list[int]]:
    """A polite kill cleans up as Ctrl-C does. Yields the signals seen so far: an extension module that is interrupted
    while it is imported turns the KeyboardInterrupt into an ImportError."""
    seen: list[int] = []
    last = -math.inf

    def interrupt(number: int, _frame: object) -> None:
        nonlocal last
        if time.monotonic() - last < _IMPATIENT_SECONDS:
            return  # a second Ctrl-C must not cut short the cleaning up after the first
        last = time.monotonic()
        seen.append(number)
        raise KeyboardInterrupt

    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in old:
        signal.signal(number, interrupt)
    try:
        yield seen
    finally:
        for number, handler in old.items():
            # Once interrupted, the process is about to leave, and shall do so in peace: the interpreter's own end
            # gives a handler back to the system, which would kill it; it leaves SIG_IGN as it is.
            signal.signal(number, signal.SIG_IGN if seen else handler)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # names of any script on terminals of any kind
    with _termination_as_interrupt() as seen:
        sys.exit(_run(arguments, seen) if arguments else _run(["--help"], seen) or 2)


def _run(arguments: list[str], interruptions: list[int]) -> int:
    try:
        # Numbers that are not finite, or nearly so, or of odd types, are no news for stderr.
        with (
            np.errstate(all="ignore"),
            warnings.catch_warnings(action="ignore"),
            _cli.make_context("onnxprune", arguments) as context,
        ):
            _cli.invoke(context)
        return 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        return _fail(f"{error.format_message()} (see 'onnxprune --help')", 2)
    except OnnxpruneError as error:
        return _fail("interrupted; nothing was written", 1) if interruptions else _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; nothing was written", 1)
    except MemoryError:
        return _fail("out of memory; nothing was written; use --no-verify, or a machine with more memory", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UnicodeDecodeError as error:
        return _fail(f"text that is not UTF-8 ({error.reason}); nothing was written", 1)
    except Exception as error:
        if interruptions:
            return _fail("interrupted; nothing was written", 1)
        if any(argument.startswith("-vv") for argument in arguments):
            traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        return _fail(
            f"a fault in onnxprune ({type(error).__name__}: {first}); nothing was written; please report it with -vv", 1
        )


def _fail(message: str, code: int) -> int:
    """One line, whatever names are in it."""
    click.echo(f"onnxprune: error: {' '.join(message.splitlines())}", err=True)
    return code
