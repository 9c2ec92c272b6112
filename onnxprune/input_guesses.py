"""Inputs for any model: shapes and values guessed, and tried until it runs.

What the model gives away itself is used first: the channels a weight takes, the rows of a table, the constant
that a scalar is compared with. Any other dimension without a size gets a *kind* from its name, or else from
its place (``x[N, C, H, W]``, ``ids[N, length]``, ``state[layers, N, width]``, ``wave[N, samples]``); all dimensions of
one kind or one name get one size. Every kind has a list of sizes, likely ones first, and combinations are tried in the
order of their distance from the likeliest.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import onnx

from onnxprune.errors import ModelError, UsageError
from onnxprune.input_hints import Hints, hints_of
from onnxprune.inputs import InputSpec, Shapes, check_shape, format_shapes, input_specs, listed
from onnxprune.runtime import Array, Inputs, Model, load_structure, open_session, output_names, run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["first_run", "guess_inputs", "runnable_inputs"]

_Kind = Literal["batch", "channels", "spatial", "length", "samples", "other"]
_SIZES: Final[dict[_Kind, tuple[int, ...]]] = {
    "batch": (1, 2, 4),
    "channels": (3, 1, 4),
    "spatial": (224, 256, 320, 640, 64, 128, 32, 28, 416, 512, 299, 96, 384, 48, 160, 192),
    "length": (128, 16, 64, 256, 512, 32, 8, 1, 100, 1024, 16000),
    "samples": (16000, 512, 1024, 4096, 32000, 160, 48000),
    "other": (1, 2, 16, 8, 100),
}
_KIND_BY_NAME: Final[tuple[tuple[re.Pattern[str], _Kind], ...]] = (
    (re.compile(r"batch|^(n|b|bs)$"), "batch"),
    (re.compile(r"channel|^c$"), "channels"),
    (re.compile(r"height|width|depth|spatial|^(h|w|d)$"), "spatial"),
    (re.compile(r"samples"), "samples"),
    (re.compile(r"seq|len|time|frame|token|sample|^(t|l|s)$"), "length"),
    (re.compile(r"^\?other$"), "other"),
)
_SOUND: Final = re.compile(r"wave|audio|speech|sound|pcm")
_LENGTHS: Final = re.compile(r"(^|[^a-z])len(gth)?s?$")
_NAMELESS: Final = frozenset(
    {"none", "?", "unk", "unknown", "dynamic", "-1"}
)  # what exporters write for no name
_MOST_TRIES: Final = 64


def guess_inputs(
    model: onnx.ModelProto,
    *,
    shapes: Shapes | None = None,
    batch: int | None = None,
    seed: int = 0,
    variant: int = 0,
) -> Iterator[tuple[dict[str, tuple[int, ...]], Inputs]]:
    """Shapes and inputs that the model may run on, likely ones first; the same for the same arguments.

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
    specs = [_spelled_out(spec, hints) for spec in input_specs(model)]
    scalars = {
        spec.name: _rotated(_scalar_values(hints.compared.get(spec.name, [])), variant)
        for spec in specs
        if _is_scalar(spec) and spec.name not in hints.rows
    }
    kinds = _kinds(specs)
    candidates = _candidate_shapes(specs, kinds, shapes or {}, batch, variant)
    for turn in range(max(map(len, scalars.values()), default=1)):
        for used in candidates:
            inputs = {
                spec.name: _values(spec, used[spec.name], hints.rows.get(spec.name), seed) for spec in specs
            }
            for name, values in scalars.items():
                inputs[name] = np.full_like(inputs[name], values[turn % len(values)])
            yield used, inputs | _lengths(specs, kinds, used)


def runnable_inputs(
    model: Model,
    *,
    session: InferenceSession | None = None,
    shapes: Shapes | None = None,
    batch: int | None = None,
    seed: int = 0,
    variant: int = 0,
) -> tuple[dict[str, tuple[int, ...]], Inputs]:
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
) -> tuple[dict[str, tuple[int, ...]], Inputs, Inputs]:
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


def _spelled_out(spec: InputSpec, hints: Hints) -> InputSpec:
    """Every dimension a size or a symbol: sizes that weights ask for, kinds for missing names."""
    if spec.shape is None:
        return spec
    rank = len(spec.shape)
    asked = {axis % rank: size for (name, axis), size in hints.sizes.items() if name == spec.name}
    shape = [size if isinstance(size, int) else asked.get(axis, size) for axis, size in enumerate(spec.shape)]
    symbols = [
        f"?{_kind_by_place(shape, axis)}" if size is None or str(size).lower() in _NAMELESS else size
        for axis, size in enumerate(shape)
    ]
    return replace(spec, shape=tuple(symbols))


def _kind_by_place(shape: Sequence[int | str | None], axis: int) -> _Kind:
    rank = len(shape)
    fixed = [isinstance(size, int) for size in shape]
    if axis == 0 or (axis == 1 and rank == 3 and fixed[0] and shape[0] != 1):
        return "batch"  # x[N, ...], state[layers, N, width]
    if rank < 4:
        return (
            "length" if axis == 1 or fixed[1] else "other"
        )  # ids[N, length], x[N, C, length], x[N, length, ?]
    channels_last = fixed[-1] and not fixed[1]
    return "channels" if axis == 1 and not channels_last else "spatial"


def _candidate_shapes(
    specs: Sequence[InputSpec], known: Mapping[str, _Kind], shapes: Shapes, batch: int | None, variant: int
) -> list[dict[str, tuple[int, ...]]]:
    given = _sizes_in(shapes, specs)
    kinds = {symbol: kind for symbol, kind in known.items() if symbol not in given}
    _check_batch(batch, specs, kinds)
    lists = {kind: _rotated(_SIZES[kind], variant) for kind in dict.fromkeys(kinds.values())}
    if batch is not None and "batch" in lists:
        lists["batch"] = [batch]
    candidates = []
    for picked in _nearest(list(lists.values())):
        of_kind = dict(zip(lists, picked, strict=True))
        sizes = given | {symbol: of_kind[kind] for symbol, kind in kinds.items()}
        candidates.append(
            {spec.name: tuple(shapes.get(spec.name, ())) or _concrete(spec, sizes) for spec in specs}
        )
    return candidates


def _rotated(values: Sequence[int], turn: int) -> list[int]:
    at = turn % len(values)
    return [*values[at:], *values[:at]]


def _kinds(specs: Iterable[InputSpec]) -> dict[str, _Kind]:
    """Symbol → kind, from where it first occurs; the terms of a sum like ``past + length`` are symbols."""
    kinds: dict[str, _Kind] = {}
    for spec in specs:
        for axis, size in enumerate(spec.shape or ()):
            for term in _terms(size):
                if term not in kinds:
                    kinds[term] = _kind(spec, axis, term, kinds)
    return kinds


def _kind(spec: InputSpec, axis: int, symbol: str, known: Mapping[str, _Kind]) -> _Kind:
    """By name, unless that makes two batches of one tensor (``wave[batch, N]``), else by place."""
    shape = spec.shape or ()
    kind = next((kind for pattern, kind in _KIND_BY_NAME if pattern.search(symbol.lower())), None)
    if kind is None or (kind == "batch" and axis > 0 and known.get(str(shape[0])) == "batch"):
        kind = _kind_by_place(shape, axis)
    return "samples" if kind == "length" and len(shape) < 4 and _SOUND.search(spec.name.lower()) else kind


def _lengths(specs: Sequence[InputSpec], kinds: Mapping[str, _Kind], used: Shapes) -> Inputs:
    """The values of integers that are called lengths, where some other input has a length that is open."""
    named = [spec for spec in specs if spec.dtype.kind in "iu" and _LENGTHS.search(spec.name.lower())]
    sizes = [
        size
        for spec in specs
        for symbol, size in zip(spec.shape or (), used[spec.name], strict=False)
        if spec not in named and kinds.get(str(symbol)) in ("length", "samples")
    ]
    return {spec.name: np.full(used[spec.name], max(sizes), spec.dtype) for spec in named if sizes}


def _terms(size: int | str | None) -> list[str]:
    return [term.strip() for term in str(size).split("+") if not term.strip().isdigit()]


def _concrete(spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    if spec.shape is None:
        raise UsageError(f"not even the rank of input '{spec.name}' is known: give --shape {spec.name}=...")
    sums = ([term.strip() for term in str(size).split("+")] for size in spec.shape)
    return tuple(sum(int(term) if term.isdigit() else sizes[term] for term in terms) for terms in sums)


def _sizes_in(shapes: Shapes, specs: Sequence[InputSpec]) -> dict[str, int]:
    """Symbol → size, from the shapes the user gives."""
    by_name = {spec.name: spec for spec in specs}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in by_name:
            raise UsageError(f"no input '{name}' to give a shape to: the inputs are {listed(by_name)}")
        check_shape(by_name[name], shape)
        for symbol, size in zip(by_name[name].shape or (), shape, strict=False):
            if isinstance(symbol, str):
                sizes.setdefault(symbol, size)
    return sizes


def _check_batch(batch: int | None, specs: Sequence[InputSpec], kinds: Mapping[str, _Kind]) -> None:
    if batch is None or "batch" in kinds.values():
        return
    for spec in specs:
        if spec.shape and spec.shape[0] != batch:
            raise UsageError(f"no batch of {batch}: input '{spec.name}' has the shape {list(spec.shape)}")


def _nearest(lists: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """One element of every list: combinations by their distance from the first elements; not too many."""
    places = itertools.product(*(range(len(each)) for each in lists))
    nearest = sorted(places, key=lambda each: (sum(each), each))[:_MOST_TRIES]
    return [tuple(values[place] for values, place in zip(lists, each, strict=True)) for each in nearest]


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
