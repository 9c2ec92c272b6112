"""The contracts on many random models, in a run as long as one likes: ``python tests/fuzz.py --graphs 20000``.

Every seed is a model of its own, and goes through two checks: pruned equals masked reference for a random choice of
channels, and one of the others in turn. At the end there is a table of how many graphs each generator and each check
saw, how many of them really lost something, how many said nothing (the model does not run, or declares another shape
than it makes, or its numbers leave the range of their type), and the seeds that failed. ``--first`` is the first seed:
0 to 4000 are what the test suite looks at, so a long run takes others. Exit code 1 if anything failed;
``--first SEED --graphs 1`` looks at one graph again.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import onnx
from exactness import assert_exact, assert_same_outputs
from generate_bodies import model_with_bodies
from generate_quantised import random_quantised_model
from onnx import ModelProto
from outside import assert_same_outside
from random_models import random_model, unusual_model
from test_kernel_granularity import assert_exact_without
from test_narrow import check_narrowed
from witness import feeds
from zeroed import runs, with_zeros

import onnxprune
from onnxprune.errors import ModelError, UnreachableError
from onnxprune.measure import count_weights

__all__ = ["GENERATORS", "Tally", "fuzz"]

_SECONDS = 120  # after which a graph counts as one on which the compiler hangs

Check = Callable[[ModelProto, int], bool]


# ---- checks: whether something was removed --------------------------------------------------------------------------


def masked(model: ModelProto, seed: int) -> bool:
    """Any choice of channels: pruned equals masked reference."""
    return assert_exact(model, (0.15, 0.3, 0.5, 0.7, 0.9, 1.0)[seed // 13 % 6], [seed])[0].removed > 0


def lossless(model: ModelProto, seed: int) -> bool:
    """Channels that are dead leave, and the model is what it was."""
    zeroed = with_zeros(model, seed)
    model = zeroed if runs(zeroed, feeds(model, seed)) else model
    pruned = onnxprune.prune(model, check=False).model
    onnx.checker.check_model(pruned, full_check=True)
    assert_same_outputs(model, pruned, feeds(model, seed))
    assert list(pruned.graph.output) == list(model.graph.output)
    return count_weights(pruned) < count_weights(model)


def slices(model: ModelProto, seed: int) -> bool:
    """Any choice of kernel slices: pruned equals masked reference."""
    return assert_exact_without(model, (0.3, 0.6, 0.9)[seed // 13 % 3], seed) > 0


def narrowed(model: ModelProto, seed: int) -> bool:
    """Layers that read only what they use compute the same."""
    return check_narrowed(model, seed, "always")


def pipeline(model: ModelProto, seed: int) -> bool:
    """Any method, granularity, sparsity, measure and alignment: verified, and the budget met.

    A sparsity out of reach is refused with how far one can go; so far one can. Where ONNX Runtime's own graph
    optimisations break the result (they may lose a tensor that a Pad and others read), it is refused, and has to agree
    without them.
    """
    draw = random.Random(seed)
    options = _options(draw)
    try:
        result = onnxprune.prune(model, check=False, **options)
    except UnreachableError as refusal:
        most = refusal.reachable
        assert most < options["sparsity"]
        if most <= 0:  # narrowed wherever it can be, it would take more than the original
            return False
        options["sparsity"] = most * draw.choice((0.5, 0.999))
        result = onnxprune.prune(model, check=False, **options)
    try:
        result = result.verified(seed=options["seed"])
    except ModelError as refusal:
        if "cannot load the model" not in str(refusal):
            raise
        assert_same_outputs(result.reference, result.model, feeds(model, seed))
        return result.after.weights < result.before.weights
    assert result.verification is not None
    assert result.verification.ok
    assert count_weights(result.model) == result.after.weights
    assert list(result.model.graph.output) == list(model.graph.output)
    return result.after.weights < result.before.weights


def outside(model: ModelProto, seed: int) -> bool:
    """With its weights in a file beside it, a model loses the same; whether some are cut only as they are written."""
    options = _options(random.Random(seed))
    try:
        return assert_same_outside(model, **options) > 0
    except UnreachableError as refusal:
        if refusal.reachable <= 0:
            return False
        return assert_same_outside(model, **{**options, "sparsity": refusal.reachable * 0.999}) > 0


def _options(draw: random.Random) -> dict[str, Any]:
    kernel = draw.random() < 0.5
    methods = ["lean", "lean-anchored", "topology", "magnitude", "l1", "sv", "random"] if kernel else [
        "lean", "magnitude", "random"]  # fmt: skip
    return {
        "sparsity": draw.choice((0.1, 0.3, 0.5, 0.8, 0.95)),
        "granularity": "kernel" if kernel else "channel",
        "method": draw.choice(methods),
        "measure": draw.choice(("weights", "macs", "kernels") if kernel else ("weights", "macs")),
        "align": draw.choice(("auto", "none", "4")),
        "restructure": draw.choice(("auto", "always", "never")),
        "seed": draw.randrange(100),
    }


# ---- the run --------------------------------------------------------------------------------------------------------

Generator = Callable[[int], ModelProto]
_ALL: tuple[Check, ...] = (lossless, slices, narrowed, pipeline, outside)
GENERATORS: dict[str, tuple[Generator, int, tuple[Check, ...]]] = {
    "usual": (random_model, 5, _ALL),
    "unusual": (unusual_model, 5, _ALL),
    "bodies": (model_with_bodies, 2, (lossless, pipeline, outside)),
    "quantised": (random_quantised_model, 1, (pipeline, outside)),
}
"""Name → how a model is made of a seed, how many of 13 seeds in a row are its, and its checks beside ``masked``."""

_TURNS = tuple(name for name, (_, count, _) in GENERATORS.items() for _ in range(count))


@dataclass
class Tally:
    """What became of the graphs. Keys: (generator, check)."""

    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    smaller: Counter[tuple[str, str]] = field(default_factory=Counter)
    undefined: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed: list[tuple[int, str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        row = "{:<10} {:<9} {:>8} {:>8} {:>10}".format
        lines = [row("generator", "check", "graphs", "pruned", "undefined")]
        lines += [row(*key, self.seen[key], self.smaller[key], self.undefined[key]) for key in sorted(self.seen)]
        failed = [f"failed: seed {seed}, {generator}, {check}" for seed, generator, check in self.failed]
        return "\n".join([*lines, *failed, f"{len(self.failed)} failed"])


def fuzz(seeds: Sequence[int], report: Callable[[str], None]) -> Tally:
    """Every seed through its two checks. In the main thread only: an alarm ends what hangs."""
    signal.signal(signal.SIGALRM, _hangs)
    tally, began = Tally(), time.monotonic()
    for done, seed in enumerate(seeds, 1):
        name = _TURNS[seed % len(_TURNS)]
        make, _, others = GENERATORS[name]
        for check in (masked, others[seed // len(_TURNS) % len(others)]):
            _look(tally, (name, check.__name__), seed, make, check, report)
        if done % 1000 == 0 or done == len(seeds):
            report(f"{done} graphs, up to seed {seed}, in {time.monotonic() - began:.0f} s\n{tally}")
    return tally


def _look(tally: Tally, key: tuple[str, str], seed: int, make: Generator, check: Check,
          report: Callable[[str], None]) -> None:  # fmt: skip
    tally.seen[key] += 1
    signal.alarm(_SECONDS)
    model = make(seed)
    try:
        tally.smaller[key] += check(model, seed)
    except Exception as error:
        if "is not finite" in str(error) or not _is_valid(model) or not runs(model, feeds(model, seed)):
            tally.undefined[key] += 1
        else:
            tally.failed.append((seed, *key))
            report(f"seed {seed}, {' '.join(key)}:\n{traceback.format_exc(limit=-3)}")
    finally:
        signal.alarm(0)


def _is_valid(model: ModelProto) -> bool:
    """Whether a random model declares what it makes."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception:  # its own exception types
        return False
    return True


def _hangs(_: int, __: FrameType | None) -> None:
    raise TimeoutError(f"no result after {_SECONDS} s")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--graphs", type=int, default=20000)
    parser.add_argument("--first", type=int, default=1_000_000)
    asked = parser.parse_args()
    tally = fuzz(range(asked.first, asked.first + asked.graphs), lambda text: print(text, flush=True))
    sys.exit(bool(tally.failed))


if __name__ == "__main__":
    main()
