"""Are two models the same to whoever runs them: the same interface, and the same outputs for the same inputs?

For an output a of the reference and b of the candidate,

    error = max |a - b| / scale,    scale = max |a| over the finite elements, at least 0.01,

so it does not depend on the unit of the output, and elements near zero do not blow it up. The least scale
is there because activations of order 1 are rounded to 6e-8 of that: of a Sigmoid that says 'no' everywhere
(1e-8), only rounding is left. What it was taken of still says something (`squashed_tensors`). NaNs in the
same places, and infinities of the same sign, are equal; anywhere else they make the error infinite. Whole
numbers, booleans and strings have to be equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.input_guesses import first_run
from onnxprune.inputs import Shapes, check_inputs, format_shapes, input_specs
from onnxprune.runtime import (
    Array,
    Inputs,
    Model,
    Provider,
    is_large,
    load_structure,
    open_session,
    provider_of,
    run,
)
from onnxprune.shaken import shaken

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = [
    "Comparison",
    "OutputComparison",
    "Verification",
    "compare_outputs",
    "default_tolerance",
    "interface_differences",
    "rounding",
    "squashed_tensors",
    "verify",
]


@dataclass(frozen=True)
class OutputComparison:
    """One output of two models.

    Attributes:
        name: of the output.
        max_abs: the largest |a - b|, in the unit of the output; infinite where only one is finite, or where
            they differ in shape or type.
        scale: the largest |a|, or 0.01 if that is more.
        tolerance: the largest ``error`` that is taken for rounding; 0 for what has to be equal.
        where: the index of the largest difference; None if there is none.
        differing: the share (0..1) of the elements that differ by more than the tolerance.
        finite: the share (0..1) of the reference's elements that are finite: only these say something.
        problem: a difference in shape or type, which rules out any other comparison.
    """

    name: str
    max_abs: float
    scale: float
    tolerance: float
    where: tuple[int, ...] | None = None
    differing: float = 0.0
    finite: float = 1.0
    problem: str | None = None

    @property
    def error(self) -> float:
        """The largest difference as a share of the scale."""
        return self.max_abs / self.scale

    @property
    def ok(self) -> bool:
        """Whether they differ by no more than rounding."""
        return self.problem is None and self.error <= self.tolerance

    def __str__(self) -> str:
        if self.problem:
            return f"'{self.name}' {self.problem}"
        if not self.max_abs:
            return f"'{self.name}' is equal"
        at = list(self.where or ())
        by = f"by {self.max_abs:.2g} at {at}, {self.error:.1e} of its scale {self.scale:.3g}"
        return f"'{self.name}' is off {by}; {self.differing:.2%} of it by more than {self.tolerance:.0e}"


@dataclass(frozen=True)
class Comparison:
    """The outputs that two models have in common, for the same inputs, in the reference's order."""

    outputs: tuple[OutputComparison, ...]

    @property
    def ok(self) -> bool:
        """Whether every output is the same."""
        return all(output.ok for output in self.outputs)

    @property
    def worst(self) -> OutputComparison | None:
        """The output furthest beyond its tolerance, or nearest to it; None if there are no outputs."""
        return max(self.outputs, key=_badness, default=None)

    def __str__(self) -> str:
        bad = sum(not output.ok for output in self.outputs)
        verdict = (
            f"{bad} of {len(self.outputs)} outputs differ" if bad else f"{len(self.outputs)} outputs agree"
        )
        return f"{verdict}: {self.worst}" if self.worst else "no outputs to compare"


def _badness(output: OutputComparison) -> tuple[bool, float]:
    return not output.ok, output.error


def compare_outputs(reference: Inputs, candidate: Inputs, *, rtol: float = 1e-4) -> Comparison:
    """Compare the outputs of one name.

    Args:
        reference: name → array.
        candidate: name → array; outputs that only one of the two has are left to `interface_differences`.
        rtol: the largest error of a floating-point output, as a share of its scale.
    """
    names = [name for name in reference if name in candidate]
    return Comparison(tuple(_compared(name, reference[name], candidate[name], rtol) for name in names))


_LEAST_SCALE: Final = 0.01


def _compared(name: str, a: Array, b: Array, rtol: float) -> OutputComparison:
    exact = a.dtype.kind not in "fcV"
    tolerance = 0.0 if exact else rtol
    if a.shape != b.shape or a.dtype != b.dtype:
        problem = f"is {b.dtype}{list(b.shape)} instead of {a.dtype}{list(a.shape)}"
        return OutputComparison(name, np.inf, 1.0, tolerance, differing=1.0, problem=problem)
    if a.size == 0:
        return OutputComparison(name, 0.0, 1.0, tolerance)
    difference, size = _unequal(a, b) if exact else _distance(a, b)
    finite = np.isfinite(size)
    scale = float(size.max(where=finite, initial=_LEAST_SCALE))
    largest = np.unravel_index(int(difference.argmax()), a.shape)
    return OutputComparison(
        name,
        max_abs=float(difference[largest]),
        scale=scale,
        tolerance=tolerance,
        where=tuple(int(index) for index in largest) if difference[largest] else None,
        differing=float(np.mean(difference > tolerance * scale)),
        finite=float(np.mean(finite)),
    )


def _distance(a: Array, b: Array) -> tuple[Array, Array]:
    """(|a - b|, |a|); equal NaNs and infinities are 0 apart, others infinitely far."""
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    a, b = a.astype(wide), b.astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(a - b)
    difference = np.where(np.isnan(difference), np.inf, difference)
    return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, difference), np.abs(a)


def _unequal(a: Array, b: Array) -> tuple[Array, Array]:
    """(|a - b|, |a|) where these are numbers; else 1 where they differ, and 1. Never 0 where they differ."""
    unequal = np.asarray(a != b, dtype=np.float64)
    if a.dtype.kind not in "iu":
        return unequal, np.ones(a.shape)
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.maximum(unequal, np.abs(a - b)), np.abs(a)


def interface_differences(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[str, ...]:
    """What a caller would notice without running them: names, order, types, sizes, and the names of sizes.

    Inputs that an initializer gives a value (IR 3) are weights, not interface.
    """
    fed = [{spec.name for spec in input_specs(model)} for model in (reference, candidate)]
    inputs = [
        [value for value in model.graph.input if value.name in names]
        for model, names in zip((reference, candidate), fed, strict=True)
    ]
    return (
        *_value_differences("input", inputs[0], inputs[1]),
        *_value_differences("output", reference.graph.output, candidate.graph.output),
    )


def _value_differences(
    kind: str, reference: Sequence[onnx.ValueInfoProto], candidate: Sequence[onnx.ValueInfoProto]
) -> list[str]:
    was = {value.name: _signature(value) for value in reference}
    now = {value.name: _signature(value) for value in candidate}
    found = [f"{kind} '{name}' is missing" for name in was if name not in now]
    found += [f"{kind} '{name}' is new" for name in now if name not in was]
    found += [
        f"{kind} '{name}' is {now[name]} instead of {was[name]}"
        for name in was
        if name in now and was[name] != now[name]
    ]
    if not found and list(was) != list(now):
        found.append(f"the {kind}s come in the order {', '.join(now)} instead of {', '.join(was)}")
    return found


def _signature(value: onnx.ValueInfoProto) -> str:
    """``float[N,3,?,224]``; ``float[...]`` without a rank."""
    if value.type.WhichOneof("value") != "tensor_type":
        return " ".join(str(value.type).split())
    tensor = value.type.tensor_type
    sizes = [
        str(size.dim_value) if size.HasField("dim_value") else size.dim_param or "?"
        for size in tensor.shape.dim
    ]
    shape = ",".join(sizes) if tensor.HasField("shape") else "..."
    return f"{TensorProto.DataType.Name(tensor.elem_type).lower()}[{shape}]"


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        interface: what is different about the interface; empty if nothing.
        samples: the outputs compared, for each of the inputs; empty if the candidate does not take them.
        shapes: those of the inputs, for each of them.
        provider: where both really ran: 'cpu', 'cuda' or 'tensorrt'.
        rtol: the tolerance, as a share of an output's scale.
    """

    interface: tuple[str, ...]
    samples: tuple[Comparison, ...]
    shapes: tuple[Mapping[str, tuple[int, ...]], ...]
    provider: str
    rtol: float

    @property
    def ok(self) -> bool:
        """Whether the interface and all outputs are the same, and something was compared."""
        return not self.interface and bool(self.samples) and all(sample.ok for sample in self.samples)

    @property
    def worst(self) -> OutputComparison | None:
        """The worst output over all inputs; None if nothing was compared."""
        return max((sample.worst for sample in self.samples if sample.worst), key=_badness, default=None)

    @property
    def error(self) -> float:
        """The largest error of any output, as a share of its scale; 0 if nothing was compared."""
        return max((output.error for sample in self.samples for output in sample.outputs), default=0.0)

    def __str__(self) -> str:
        shapes = "; ".join(dict.fromkeys(map(format_shapes, self.shapes)))
        on = f"{len(self.shapes)} inputs on {self.provider}: {shapes}"
        if not self.ok:
            bad = [str(self.worst)] if self.worst and not self.worst.ok else []
            return f"different: {'; '.join((*self.interface, *bad)) or 'no outputs to compare'} ({on})"
        outputs = [output for sample in self.samples for output in sample.outputs]
        finite = min(output.finite for output in outputs)
        note = f"; only {finite:.0%} of an output is finite" if finite < 1 else ""
        count = len(self.samples[0].outputs)
        within = f"within {self.error:.1e} of scale, {self.rtol:.0e} allowed"
        return f"same: {count} output{'s' * (count > 1)} {within} ({on}){note}"

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts; an infinite error is None."""
        return {
            "ok": self.ok,
            "interface": list(self.interface),
            "provider": self.provider,
            "rtol": self.rtol,
            "error": _finite(self.error),
            "samples": [
                {
                    "shapes": {name: list(shape) for name, shape in shapes.items()},
                    "outputs": [_output_json(output) for output in sample.outputs],
                }
                for shapes, sample in zip(self.shapes, self.samples, strict=False)
            ],
        }


def _output_json(output: OutputComparison) -> dict[str, Any]:
    return {
        "name": output.name,
        "ok": output.ok,
        "error": _finite(output.error),
        "max_abs": _finite(output.max_abs),
        "scale": output.scale,
        "tolerance": output.tolerance,
        "where": None if output.where is None else list(output.where),
        "differing": output.differing,
        "finite": output.finite,
        "problem": output.problem,
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


# Taking a sum in another order costs some units in the last place, and layers add up. 1e-4 is 800 units of
# float32; 2e-2 is 20 of float16 and of TF32 (2**-10), 1e-1 is 13 of bfloat16 (2**-7): there, a larger one
# would no longer tell an error from rounding.
_COARSE: Final[Mapping[int, float]] = {TensorProto.FLOAT16: 2e-2, TensorProto.BFLOAT16: 1e-1}
_FINE: Final = 1e-4


def default_tolerance(model: onnx.ModelProto, provider: str = "cpu") -> float:
    """What `verify` allows by default, from the coarsest type that the model computes in.

    1e-4; 2e-2 where there is float16, and on TensorRT, which multiplies float32 in TF32; 1e-1 with bfloat16.
    """
    types = {weight.data_type for weight in model.graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        types |= {
            attribute.i for attribute in node.attribute if node.op_type == "Cast" and attribute.name == "to"
        }
    floor = _COARSE[TensorProto.FLOAT16] if provider == "tensorrt" else _FINE
    return max(floor, *(_COARSE.get(each, _FINE) for each in types))


def verify(
    reference: Model,
    candidate: Model,
    *,
    inputs: Inputs | Sequence[Inputs] | None = None,
    shapes: Shapes | None = None,
    seed: int = 0,
    samples: int = 2,
    provider: Provider = "cpu",
    rtol: float | None = None,
    inside: Sequence[str] = (),
    folder: str | Path | None = None,
) -> Verification:
    """Run both models, one after the other, on the same inputs, and compare interfaces and outputs.

    Only one session is open at a time. Float32 is multiplied in full precision on CUDA too. Weights of over 1 GB in
    data files are read where they are, without the optimisations that would copy them.

    Args:
        reference: the model that is right.
        candidate: the model to compare with it.
        inputs: one or several sets of inputs; without them, random ones that the reference runs on are found.
        shapes: shapes of the random inputs that are to be used as they are.
        seed: of the first random inputs; the next ones take the seeds after it.
        samples: how many random inputs. Where sizes are free, each takes others, which finds a size that a
            model has fixed by mistake.
        provider: where to run.
        rtol: the largest error allowed; None is `default_tolerance`.
        inside: tensors inside of both models to be compared too; see `squashed_tensors`.
        folder: where the external data is, for models in memory.

    Raises:
        UsageError: a file is missing; ``inputs`` or ``shapes`` do not fit; the provider does not work here.
        ModelError: a model cannot be loaded, or does not run.
    """
    a, b = load_structure(reference), load_structure(candidate)
    given = [inputs] if isinstance(inputs, dict) else list(inputs or ())
    for each in given:
        check_inputs(a, each)
    runs: list[tuple[Inputs, Inputs]] = []
    session = _open(reference, a, inside, provider, folder)
    for variant in range(len(given) or samples):
        if given:
            runs.append((given[variant], run(session, given[variant])))
        else:
            runs.append(first_run(a, session, shapes=shapes, seed=seed + variant, variant=variant)[1:])
    where = provider_of(session)
    del session
    if rtol is None:
        rtol = max(default_tolerance(a, where), default_tolerance(b, where))
    compared: list[Comparison] = []
    if _feeds(a) == _feeds(b):
        session = _open(candidate, b, inside, provider, folder)
        compared = [compare_outputs(outputs, _run_second(session, feed), rtol=rtol) for feed, outputs in runs]
    used = tuple({name: array.shape for name, array in feed.items()} for feed, _ in runs)
    return Verification(interface_differences(a, b), tuple(compared), used, where, rtol)


def rounding(
    model: Model,
    like: Verification,
    *,
    shapes: Shapes | None = None,
    seed: int = 0,
    provider: Provider = "cpu",
    inside: Sequence[str] = (),
    folder: str | Path | None = None,
) -> float:
    """What ONNX Runtime itself rounds: the model with its graph optimisations against the same without them.

    Both are right, so their difference (as a share of an output's scale) is no error of anybody's. The same goes for a
    quantised model with its scales moved in the last places (``onnxprune.shaken``).

    Args:
        model: the model.
        like: a verification of it, whose random inputs are used again.
        shapes: as for `verify`.
        seed: as for `verify`.
        provider: as for `verify`.
        inside: as for `verify`.
        folder: as for `verify`.
    """
    structure = load_structure(model)
    runs = []
    session = _open(model, structure, inside, provider, folder)
    for variant in range(len(like.samples)):
        runs.append(first_run(structure, session, shapes=shapes, seed=seed + variant, variant=variant)[1:])
    del session
    plain = _open(model, structure, inside, provider, folder, optimize=False)
    compared = [compare_outputs(outputs, run(plain, inputs)) for inputs, outputs in runs]
    del plain
    for other in shaken(model) if isinstance(model, onnx.ModelProto) else ():
        session = _open(other, other, inside, provider, folder)
        compared += [compare_outputs(outputs, run(session, inputs)) for inputs, outputs in runs]
    return max((output.error for each in compared for output in each.outputs), default=0.0)


def _open(
    model: Model,
    structure: onnx.ModelProto,
    inside: Sequence[str],
    provider: Provider,
    folder: str | Path | None,
    *,
    optimize: bool = True,
) -> InferenceSession:
    if inside:
        if isinstance(model, str | Path):
            folder = Path(model).resolve().parent
        model = onnx.ModelProto()
        model.CopyFrom(structure)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inside)
    in_place = is_large(structure)
    return open_session(model, provider=provider, folder=folder, optimize=optimize, tf32=False, in_place=in_place)


def _run_second(session: InferenceSession, inputs: Inputs) -> Inputs:
    try:
        return run(session, inputs)
    except ModelError as error:
        raise ModelError(f"the second model fails on inputs that the first one runs on: {error}") from None


def _feeds(model: onnx.ModelProto) -> set[tuple[str, str]]:
    return {(spec.name, spec.dtype.name) for spec in input_specs(model)}


_SQUASHING: Final = frozenset({"HardSigmoid", "Sigmoid", "Softmax", "Tanh"})
_MOVING: Final = frozenset(
    {"Cast", "Concat", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)


def squashed_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """What the outputs are a Sigmoid, Softmax, Tanh or HardSigmoid of, if they are, moving ops aside.

    Such an output saturates (0.9999, 1e-8), above all on random inputs, and then hides that its argument is
    wrong. In a model that was made from another one and kept its names, `verify` can compare that argument.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    waiting = [value.name for value in reversed(model.graph.output)]
    seen: set[str] = set()
    found: dict[str, None] = {}
    while waiting:
        name = waiting.pop()
        node = producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type in _SQUASHING:
            found[node.input[0]] = None
        elif node.op_type in _MOVING:
            waiting.extend(reversed(node.input))
    given = {value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    return tuple(name for name in found if name not in given)
