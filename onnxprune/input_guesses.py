"""Inputs for any model: likely shapes and values, tried until it runs.

The sizes are those of `likely_sizes`; values follow from what the model gives away itself: the rows of a table, the
constant that a scalar is compared with.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx

from onnxprune.bodies import laid_out
from onnxprune.errors import ModelError
from onnxprune.graph import Graph
from onnxprune.inputs import InputSpec, Shapes, format_shapes
from onnxprune.runtime import Array, Inputs, Model, load_structure, open_session, output_names, run
from onnxprune.shapes import contradictions
from onnxprune.shapes.input_hints import hints_of
from onnxprune.shapes.likely_sizes import OpenSizes, rotated

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["first_run", "guess_inputs", "runnable_inputs"]

_Used = dict[str, tuple[int, ...]]
_LENGTHS: Final = re.compile(r"(^|[^a-z])len(gth)?s?$")


def guess_inputs(
    model: onnx.ModelProto,
    *,
    shapes: Shapes | None = None,
    batch: int | None = None,
    seed: int = 0,
    variant: int = 0,
) -> Iterator[tuple[_Used, Inputs]]:
    """Shapes and inputs that the model may run on, likely ones first; the same for the same arguments.

    After the first come the shapes that no operator of the model contradicts.

    Floats are standard normal; 8-bit integers take their full range; other integers are 1 in a mask, else 0
    or 1. Where the model indexes a table with them, they are its row numbers. Integers called a length
    are the longest open length of the other inputs. A scalar integer is a number that the model compares it with,
    or the next one.

    Args:
        model: the model; its weights are not needed.
        shapes: shapes to be used as they are. The size they give to a named dimension holds for all inputs.
        batch: the size of all batch dimensions.
        seed: of the values.
        variant: each puts other sizes (batch 1, 2, 4; image 224, 256, 320) and other scalars first.

    Raises:
        UsageError: ``shapes`` or ``batch`` do not fit the model, or leave out an input of unknown rank.
        ModelError: an input is not a tensor.
    """
    hints = hints_of(model)
    sizes = OpenSizes.of(model, hints)
    scalars = {
        spec.name: rotated(_scalar_values(hints.compared.get(spec.name, [])), variant)
        for spec in sizes.specs
        if _is_scalar(spec) and spec.name not in hints.rows
    }
    candidates = [sizes.shapes(each, shapes) for each in sizes.likely(shapes, batch=batch, variant=variant)]
    turns = range(max(map(len, scalars.values()), default=1))
    for used in _fitting_first(model, candidates):
        for turn in turns:
            inputs = {s.name: _values(s, used[s.name], hints.rows.get(s.name), seed) for s in sizes.specs}
            for name, values in scalars.items():
                inputs[name] = np.full_like(inputs[name], values[turn % len(values)])
            yield used, inputs | _lengths(sizes, used)


def runnable_inputs(
    model: Model,
    *,
    session: InferenceSession | None = None,
    shapes: Shapes | None = None,
    batch: int | None = None,
    seed: int = 0,
    variant: int = 0,
) -> tuple[_Used, Inputs]:
    """The first of `guess_inputs` that the model runs on, with its shapes; see `first_run`."""
    session = session or open_session(model, provider="cpu")
    used, inputs, _ = first_run(model, session, shapes=shapes, batch=batch, seed=seed, variant=variant)
    return used, inputs


def first_run(
    model: Model,
    session: InferenceSession,
    *,
    shapes: Shapes | None = None,
    batch: int | None = None,
    seed: int = 0,
    variant: int = 0,
) -> tuple[_Used, Inputs, Inputs]:
    """Shapes, inputs and outputs for the first of `guess_inputs` that the model runs on.

    If an output has infinities or NaNs for it (a logarithm, a square root), the floats are moved into [0, 1]
    where that helps: comparing NaNs would say nothing.

    Args:
        model: the model.
        session: an open session of it.
        shapes: see `guess_inputs`.
        batch: see `guess_inputs`.
        seed: see `guess_inputs`.
        variant: see `guess_inputs`.

    Raises:
        UsageError: ``shapes`` or ``batch`` do not fit the model.
        ModelError: it ran on none of them; says which were tried, and why the likeliest was refused.
    """
    output_names(session)
    refused: list[tuple[str, ModelError]] = []
    guesses = guess_inputs(load_structure(model), shapes=shapes, batch=batch, seed=seed, variant=variant)
    for used, inputs in guesses:
        try:
            return used, *_tamed(session, inputs, run(session, inputs))
        except ModelError as error:
            refused.append((format_shapes(used), error))
    raise ModelError(_refusal(refused))


def _fitting_first(model: onnx.ModelProto, candidates: Sequence[_Used]) -> Iterator[_Used]:
    """The likeliest; if more are asked for, next those that no operator of the model contradicts, then the others."""
    yield from candidates[:1]
    graph = Graph(laid_out(model))
    others = []
    for shapes in candidates[1:]:
        if contradictions(graph, shapes):
            others.append(shapes)
        else:
            yield shapes
    yield from others


def _refusal(refused: Sequence[tuple[str, ModelError]]) -> str:
    tried = list(dict.fromkeys(shown for shown, _ in refused))
    more = f"; … {len(tried)} in all" if len(tried) > 3 else ""
    return (
        f"no inputs found that the model runs on (tried {'; '.join(tried[:3])}{more}); with the first, "
        f"{refused[0][1]}; give sizes that fit with --shape NAME=1,3,224,224"
    )


def _tamed(session: InferenceSession, inputs: Inputs, outputs: Inputs) -> tuple[Inputs, Inputs]:
    if not _all_finite(outputs):
        tamer = {name: np.abs(each).clip(0, 1) if _is_float(each) else each for name, each in inputs.items()}
        with contextlib.suppress(ModelError):
            found = run(session, tamer)
            return (tamer, found) if _all_finite(found) else (inputs, outputs)
    return inputs, outputs


def _all_finite(arrays: Inputs) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays.values() if _is_float(array))


def _is_float(array: Array) -> bool:
    return array.dtype.kind in "fV"


def _lengths(open_sizes: OpenSizes, used: Shapes) -> Inputs:
    """The values of integers that are called lengths, where some other input has a length that is open."""
    specs, kinds = open_sizes.specs, open_sizes.kinds
    named = [spec for spec in specs if spec.dtype.kind in "iu" and _LENGTHS.search(spec.name.lower())]
    sizes = [
        size
        for spec in specs
        for symbol, size in zip(spec.shape or (), used[spec.name], strict=False)
        if spec not in named and kinds.get(str(symbol)) in ("length", "samples")
    ]
    return {spec.name: np.full(used[spec.name], max(sizes), spec.dtype) for spec in named if sizes}


def _is_scalar(spec: InputSpec) -> bool:
    return spec.dtype.kind in "iu" and spec.shape is not None and all(size == 1 for size in spec.shape)


def _scalar_values(compared: Sequence[int]) -> list[int]:
    """For every number that a scalar is compared with, that number and another one."""
    return list(dict.fromkeys(value for each in compared for value in (each, each + 1))) or [1, 0]


def _values(spec: InputSpec, shape: Sequence[int], rows: int | None, seed: int) -> Array:
    random = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
    kind = spec.dtype.kind
    if kind == "O":
        return np.full(shape, "a", dtype=object)
    if kind in "biu" and "mask" in spec.name.lower():
        return np.ones(shape, spec.dtype)
    if kind in "iu" and spec.dtype.itemsize == 1 and rows is None:
        limits = np.iinfo(spec.dtype)
        return random.integers(limits.min, limits.max, shape, spec.dtype, endpoint=True)
    if kind in "biu" or rows is not None:
        return np.asarray(random.integers(0, rows or 2, shape)).astype(spec.dtype)
    return np.asarray(random.standard_normal(shape)).astype(spec.dtype)
