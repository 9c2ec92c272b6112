"""Einsum: every letter is an axis; letters that the output lacks are summed over.

https://onnx.ai/onnx/operators/onnx__Einsum.html
"""

from __future__ import annotations

from onnxprune.channels import FIXED_SIZE, Axes, Ids, NodeContext
from onnxprune.graph import attribute

__all__ = ["einsum"]


def einsum(ctx: NodeContext) -> list[Axes]:
    """Axes of one letter are the same channels; a summed letter is a contraction."""
    terms, output = _parsed(ctx)
    if terms is None or any(len(set(term)) != len(term) for term in terms) or "." in "".join(terms):
        return ctx.freeze_all("an Einsum with an ellipsis or a repeated letter")
    places = {
        letter: [(k, term.index(letter)) for k, term in enumerate(terms) if letter in term]
        for letter in sorted(set("".join(terms)))
    }
    if any(len({ctx.shape(k)[axis] for k, axis in held}) > 1 for held in places.values()):
        return ctx.freeze_all("an Einsum that broadcasts an axis of size 1")
    summed = [letter for letter in places if letter not in output]
    for letter in summed:
        _prepare_sum(ctx, places[letter])
    ids = {letter: _unified(ctx, held) for letter, held in places.items()}
    weight = next((k for k in range(len(terms)) if ctx.is_constant(k)), None)
    if weight is not None and len(terms) == 2:
        _edges(ctx, weight, terms, output, ids)
    for letter in summed:
        ctx.need(_free_outputs(terms, weight, output, ids), ids[letter])
    ctx.macs(1.0, *((ids[letter], ctx.shape(k)[axis]) for letter, ((k, axis), *_) in places.items()))
    if all(any(ctx.zeroed(k) for k, _ in places[letter]) for letter in output if ids[letter] is not None):
        ctx.builder.zero.add(ctx.node.output[0])
    return [tuple(ids[letter] for letter in output)]


def _parsed(ctx: NodeContext) -> tuple[list[str] | None, str]:
    """Letters of each operand and of the output (letters seen once, sorted, where it is left out)."""
    equation = str(attribute(ctx.node, "equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if any(len(term) != len(ctx.shape(k)) for k, term in enumerate(terms)):
        return None, ""
    return terms, right if arrow else "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))


def _prepare_sum(ctx: NodeContext, held: list[tuple[int, int]]) -> None:
    """Stored operands are masked; without one, some operand has to be zero where channels leave."""
    constants = [k for k, _ in held if ctx.is_constant(k)]
    for k in constants:
        ctx.mask(k)
    if not constants and not any(ctx.zeroed(k) for k, _ in held):
        for k, axis in held:
            ctx.freeze(ctx.axes(k)[axis], "summed over, though removal does not make it zero")


def _unified(ctx: NodeContext, held: list[tuple[int, int]]) -> Ids | None:
    parts = [ctx.axes(k)[axis] for k, axis in held]
    if any(part is None for part in parts):
        for part in parts:
            ctx.freeze(part, FIXED_SIZE)
        return None
    for part in parts[1:]:
        ctx.unify(parts[0], part)
    return parts[0]


def _own(terms: list[str], weight: int, output: str) -> list[str]:
    """Letters that only the weight has, and that the output keeps."""
    others = "".join(term for k, term in enumerate(terms) if k != weight)
    return [letter for letter in terms[weight] if letter in output and letter not in others]


def _free_outputs(terms: list[str], weight: int | None, output: str, ids: dict[str, Ids | None]) -> Ids | None:
    own = _own(terms, weight, output) if weight is not None else []
    return ids[own[0]] if len(own) == 1 else None


def _edges(ctx: NodeContext, weight: int, terms: list[str], output: str, ids: dict[str, Ids | None]) -> None:
    """A weight with one summed letter and one of its own is a contraction like MatMul."""
    summed = [letter for letter in terms[weight] if letter not in output]
    own = _own(terms, weight, output)
    if len(summed) != 1 or len(own) != 1:
        return
    axes = ctx.axes(weight)
    in_axis, out_axis = terms[weight].index(summed[0]), terms[weight].index(own[0])
    inputs, outputs = axes[in_axis], axes[out_axis]
    if inputs is not None and outputs is not None:
        ctx.contraction(
            data=1 - weight,
            weight=weight,
            bias=None,
            in_axis=in_axis,
            out_axis=out_axis,
            inputs=inputs,
            outputs=outputs,
        )
        ctx.slices(1.0, (ids[summed[0]], len(inputs)), (ids[own[0]], len(outputs)))
