"""The checks of narrowing notice faults: each one planted here makes a hand-made case or a random model fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from onnx import NodeProto
from random_models import random_model
from test_narrow import CASES, check_narrowed, test_convolution_to_a_single_channel_is_computed_in_columns
from test_narrow import COLUMNS as IN_COLUMNS
from test_narrow import test_layer_reads_only_what_it_uses as check_case

from onnxprune.channels import NodeContext
from onnxprune.ops import parts
from onnxprune.ops.parts import Again, Found, IntArray, Joined
from onnxprune.passes import blocks, columns, overlay
from onnxprune.passes.overlay import Overlay, Part

Plant = Callable[[pytest.MonkeyPatch], None]
RIGHT = dict(parts._RULES)


def noticed() -> bool:
    try:
        for case in CASES:
            check_case(case)
        for name, conv, opset in IN_COLUMNS:
            test_convolution_to_a_single_channel_is_computed_in_columns(name, conv, opset)
        for seed in range(200):
            check_narrowed(random_model(seed), seed, "always")
    except Exception:
        return True
    return False


def joined_wrongly(op: str, change: Callable[[IntArray], IntArray]) -> Plant:
    """Other indices of the inputs than those that are wanted."""

    def rule(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
        found = RIGHT[op](ctx, output, axis, indices)
        if not isinstance(found, Joined):
            return found
        return Joined(tuple((k, a, change(wanted) % ctx.shape(k)[a]) for k, a, wanted in found.parts))

    return lambda patch: patch.setitem(parts._RULES, op, rule)


def one_input_whole(op: str, k: int) -> Plant:
    """An input that stays whole though the others do not."""

    def rule(ctx: NodeContext, output: int, axis: int, indices: IntArray) -> Found:
        found = RIGHT[op](ctx, output, axis, indices)
        if not isinstance(found, Again):
            return found
        return replace(found, parts={i: place for i, place in found.parts.items() if i != k})

    return lambda patch: patch.setitem(parts._RULES, op, rule)


def first_output_of_all(patch: pytest.MonkeyPatch) -> None:
    """Every output of a Split is taken for the first."""
    patch.setitem(parts._RULES, "Split", lambda ctx, output, axis, indices: RIGHT["Split"](ctx, 0, axis, indices))


def pieces_reversed(patch: pytest.MonkeyPatch) -> None:
    right = Overlay._joined
    patch.setattr(Overlay, "_joined", lambda self, wanted, names: right(self, wanted, names[::-1]))


def parts_confused(patch: pytest.MonkeyPatch) -> None:
    """Two parts of a tensor that are equally large are taken for the same."""
    patch.setattr(Part, "key", property(lambda self: (self.tensor, self.axis, bytes(len(self.indices)))))


def attributes_not_compared(patch: pytest.MonkeyPatch) -> None:
    """Nodes of one operator on the same inputs are taken for the same."""

    def key(self: Overlay, node: NodeProto) -> tuple[object, ...]:
        return node.domain, node.op_type, *map(self._identity, node.input)

    patch.setattr(Overlay, "_key", key)


def weight_cut_at_the_front(patch: pytest.MonkeyPatch) -> None:
    """As many numbers of a constant as are wanted, but the first ones."""
    right = Overlay.cut

    def cut(self: Overlay, name: str, places: dict[int, IntArray]) -> str:
        return right(self, name, {axis: np.arange(len(indices)) for axis, indices in places.items()})

    patch.setattr(Overlay, "cut", cut)


def too_many_taken_for_whole(patch: pytest.MonkeyPatch) -> None:
    """A part that lacks a single index is taken for the whole."""
    patch.setattr(Overlay, "is_whole", lambda self, part: len(part.indices) >= self.shape[part.tensor][part.axis] - 1)


def order_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The outputs of blocks are left in the order of the blocks."""
    patch.setattr(blocks, "_in_order", lambda laid, index, node, order, axis: node)


def pads_at_one_end(patch: pytest.MonkeyPatch) -> None:
    """Padding of three dimensions as if it were begin, end, begin, end."""
    right = columns._with_extent

    def wrong(held: object) -> object:
        result = right(held)  # type: ignore[arg-type]
        if result.name == "pads":
            result.ints[:] = [0, 0, *result.ints[1:3], *result.ints[4:]]
        return result

    patch.setattr(columns, "_with_extent", wrong)


def merged_in_any_order(patch: pytest.MonkeyPatch) -> None:
    """Pieces of one tensor are put together as if they were in its order."""
    right = overlay._merged

    def wrong(pieces: list[Part]) -> list[Part]:
        return [replace(piece, indices=np.sort(piece.indices)) for piece in right(pieces)]

    patch.setattr(overlay, "_merged", wrong)


FAULTS: dict[str, Plant] = {
    **{f"{op} one off": joined_wrongly(op, lambda indices: indices + 1)
       for op in ("Concat", "Gather", "Slice", "Split")},
    "Concat backwards": joined_wrongly("Concat", lambda indices: indices[::-1]),
    **{f"{op}: input {k} whole": one_input_whole(op, k)
       for op, k in (("BatchNormalization", 3), ("Conv", 1), ("Mul", 1), ("Add", 0))},
    "Split: always the first output": first_output_of_all,
    "pieces reversed": pieces_reversed,
    "parts confused": parts_confused,
    "attributes not compared": attributes_not_compared,
    "weight cut at the front": weight_cut_at_the_front,
    "too many taken for whole": too_many_taken_for_whole,
    "order of blocks forgotten": order_forgotten,
    "pads at one end": pads_at_one_end,
    "pieces put in order": merged_in_any_order,
}  # fmt: skip


@pytest.mark.parametrize("plant", FAULTS.values(), ids=FAULTS.keys())
def test_fault_is_noticed(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert noticed()
