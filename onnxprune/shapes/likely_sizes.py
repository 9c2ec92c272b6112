"""Likely sizes for the dimensions that the inputs of a model leave open.

What the model gives away itself is used first: the channels that a weight takes. Any other dimension without a size
gets a *kind* from its name, or else from its place (``x[N, C, H, W]``, ``ids[N, length]``, ``state[layers, N, width]``,
``wave[N, samples]``); all dimensions of one kind or one name get one size. Every kind has a list of sizes, likely ones
first, and combinations come in the order of their distance from the likeliest.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import onnx

from onnxprune.errors import UsageError
from onnxprune.inputs import InputSpec, Shapes, check_shape, input_specs, listed
from onnxprune.shapes.input_hints import Hints, hints_of

__all__ = ["Kind", "OpenSizes", "rotated"]

Kind = Literal["batch", "channels", "spatial", "length", "samples", "other"]
_SIZES: Final[dict[Kind, tuple[int, ...]]] = {
    "batch": (1, 2, 4),
    "channels": (3, 1, 4),
    "spatial": (224, 256, 320, 640, 64, 128, 32, 28, 416, 512, 299, 96, 384, 48, 160, 192),
    "length": (128, 16, 64, 256, 512, 32, 8, 1, 100, 1024, 16000),
    "samples": (16000, 512, 1024, 4096, 32000, 160, 48000),
    "other": (1, 2, 16, 8, 100),
}
_KIND_BY_NAME: Final[tuple[tuple[re.Pattern[str], Kind], ...]] = (
    (re.compile(r"batch|^(n|b|bs)$"), "batch"),
    (re.compile(r"channel|^c$"), "channels"),
    (re.compile(r"height|width|depth|spatial|^(h|w|d)$"), "spatial"),
    (re.compile(r"samples"), "samples"),
    (re.compile(r"seq|len|time|frame|token|sample|^(t|l|s)$"), "length"),
    (re.compile(r"^\?other$"), "other"),
)
_SOUND: Final = re.compile(r"wave|audio|speech|sound|pcm")
_NAMELESS: Final = frozenset({"none", "?", "unk", "unknown", "dynamic", "-1"})
"""What exporters write for no name."""
_MOST_TRIES: Final = 64


@dataclass(frozen=True)
class OpenSizes:
    """The open dimensions of a model's inputs.

    Attributes:
        specs: the inputs, each dimension a size or a symbol; ``?KIND`` where it has no name.
        kinds: symbol → kind, for every symbol that a dimension is, or is a sum of.
    """

    specs: tuple[InputSpec, ...]
    kinds: Mapping[str, Kind]

    @classmethod
    def of(cls, model: onnx.ModelProto, hints: Hints | None = None) -> OpenSizes:
        """Those of a model; its weights are not needed. Raises ModelError where an input is not a tensor."""
        found = hints or hints_of(model)
        specs = tuple(_spelled_out(spec, found) for spec in input_specs(model))
        return cls(specs, _kinds(specs))

    def likely(
        self, given: Shapes | None = None, *, batch: int | None = None, variant: int = 0
    ) -> list[dict[str, int]]:
        """Sizes of all symbols, likely ones first, at most 64.

        Args:
            given: shapes of some inputs. The size they give to a named dimension holds for all inputs.
            batch: the size of all batch dimensions.
            variant: each puts other sizes (batch 1, 2, 4; image 224, 256, 320) first.

        Raises:
            UsageError: ``given`` or ``batch`` do not fit the model.
        """
        fixed = self.sizes_in(given or {})
        kinds = {symbol: kind for symbol, kind in self.kinds.items() if symbol not in fixed}
        self._check_batch(batch, kinds)
        lists = {kind: rotated(_SIZES[kind], variant) for kind in dict.fromkeys(kinds.values())}
        if batch is not None and "batch" in lists:
            lists["batch"] = [batch]
        picks = (dict(zip(lists, picked, strict=True)) for picked in _nearest(list(lists.values())))
        return [fixed | {symbol: pick[kind] for symbol, kind in kinds.items()} for pick in picks]

    def shapes(self, sizes: Mapping[str, int], given: Shapes | None = None) -> dict[str, tuple[int, ...]]:
        """Input → shape, for a size of every symbol; the given shapes as they are.

        Raises:
            UsageError: ``given`` leaves out an input of unknown rank.
        """
        given = given or {}
        return {spec.name: tuple(given.get(spec.name, ())) or _concrete(spec, sizes) for spec in self.specs}

    def sizes_in(self, shapes: Shapes) -> dict[str, int]:
        """Symbol → size, from shapes of some inputs. Raises UsageError where these do not fit the model."""
        by_name = {spec.name: spec for spec in self.specs}
        sizes: dict[str, int] = {}
        for name, shape in shapes.items():
            if name not in by_name:
                raise UsageError(f"no input '{name}' to give a shape to: the inputs are {listed(by_name)}")
            check_shape(by_name[name], shape)
            for symbol, size in zip(by_name[name].shape or (), shape, strict=False):
                if isinstance(symbol, str):
                    sizes.setdefault(symbol, size)
        return sizes

    def _check_batch(self, batch: int | None, kinds: Mapping[str, Kind]) -> None:
        if batch is None or "batch" in kinds.values():
            return
        for spec in self.specs:
            if spec.shape and spec.shape[0] != batch:
                raise UsageError(f"no batch of {batch}: input '{spec.name}' has the shape {list(spec.shape)}")


def rotated(values: Sequence[int], turn: int) -> list[int]:
    """The values from one of them on, then those before it."""
    at = turn % len(values)
    return [*values[at:], *values[:at]]


def _spelled_out(spec: InputSpec, hints: Hints) -> InputSpec:
    """Every dimension a size or a symbol: sizes that weights ask for, kinds for missing names."""
    if spec.shape is None:
        return spec
    rank = max(len(spec.shape), 1)
    asked = {axis % rank: size for (name, axis), size in hints.sizes.items() if name == spec.name}
    shape = [size if isinstance(size, int) else asked.get(axis, size) for axis, size in enumerate(spec.shape)]
    symbols = [
        f"?{_kind_by_place(shape, axis)}" if size is None or str(size).lower() in _NAMELESS else size
        for axis, size in enumerate(shape)
    ]
    return replace(spec, shape=tuple(symbols))


def _kind_by_place(shape: Sequence[int | str | None], axis: int) -> Kind:
    rank = len(shape)
    fixed = [isinstance(size, int) for size in shape]
    if axis == 0 or (axis == 1 and rank == 3 and fixed[0] and shape[0] != 1):
        return "batch"  # x[N, ...], state[layers, N, width]
    if rank < 4:
        return "length" if axis == 1 or fixed[1] else "other"  # ids[N, length], x[N, C, length], x[N, length, ?]
    channels_last = fixed[-1] and not fixed[1]
    return "channels" if axis == 1 and not channels_last else "spatial"


def _kinds(specs: Iterable[InputSpec]) -> dict[str, Kind]:
    """Symbol → kind, from where it first occurs; the terms of a sum like ``past + length`` are symbols."""
    kinds: dict[str, Kind] = {}
    for spec in specs:
        for axis, size in enumerate(spec.shape or ()):
            for term in _terms(size):
                if term not in kinds:
                    kinds[term] = _kind(spec, axis, term, kinds)
    return kinds


def _kind(spec: InputSpec, axis: int, symbol: str, known: Mapping[str, Kind]) -> Kind:
    """By name, unless that makes two batches of one tensor (``wave[batch, N]``), else by place."""
    shape = spec.shape or ()
    kind = next((kind for pattern, kind in _KIND_BY_NAME if pattern.search(symbol.lower())), None)
    if kind is None or (kind == "batch" and axis > 0 and known.get(str(shape[0])) == "batch"):
        kind = _kind_by_place(shape, axis)
    return "samples" if kind == "length" and len(shape) < 4 and _SOUND.search(spec.name.lower()) else kind


def _terms(size: int | str | None) -> list[str]:
    return [term.strip() for term in str(size).split("+") if not term.strip().isdigit()]


def _concrete(spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    if spec.shape is None:
        raise UsageError(f"not even the rank of input '{spec.name}' is known: give --shape {spec.name}=...")
    sums = ([term.strip() for term in str(size).split("+")] for size in spec.shape)
    return tuple(sum(int(term) if term.isdigit() else sizes[term] for term in terms) for terms in sums)


def _nearest(lists: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """One element of every list: combinations by their distance from the first elements; not too many."""
    places = itertools.product(*(range(len(each)) for each in lists))
    nearest = sorted(places, key=lambda each: (sum(each), each))[:_MOST_TRIES]
    return [tuple(values[place] for values, place in zip(lists, each, strict=True)) for each in nearest]
