"""Recurrent layers: LSTM, GRU, RNN. Their hidden units are channels.

Unit u owns row u of every gate in W [directions, gates·H, in] and R [directions, gates·H, H], column u of R, its
entries of the bias, the peepholes and the initial states. Both directions keep the same units, since Y [sequence,
directions, batch, H] is rectangular. With all of that zero, the unit's state is zero at every step (tanh(0) = 0 opens
no gate), so removed units are exactly zero in the masked reference unless other activations are named.

https://onnx.ai/onnx/operators/onnx__LSTM.html, …GRU.html, …RNN.html
"""

from __future__ import annotations

import numpy as np

from onnxprune.channels import Axes, Ids, NodeContext
from onnxprune.editing import NodeEditor
from onnxprune.graph import attribute

__all__ = ["GATES", "dynamic_lstm", "recurrent", "resize_dynamic_lstm", "resize_hidden"]

GATES = {"DynamicQuantizeLSTM": 4, "LSTM": 4, "GRU": 3, "RNN": 1}
_PEEPHOLES = 3
_ZERO_KEEPING = frozenset(("Tanh", "Relu", "LeakyRelu", "Elu", "Softsign", "ThresholdedRelu"))
_ONTO_STATE = {"DynamicQuantizeLSTM": (1, 2), "LSTM": (1, 2), "GRU": (1,), "RNN": (0,)}
"""Which activations of a direction make the state; the others gate it."""


def recurrent(ctx: NodeContext) -> list[Axes]:
    """X [sequence, batch, in], W, R, B, lengths, initial states, P → Y, Y_h, Y_c"""
    return _recurrent(ctx, 1, 2)


def dynamic_lstm(ctx: NodeContext) -> list[Axes]:
    """com.microsoft.DynamicQuantizeLSTM: W [directions, in, 4·H] and R [directions, H, 4·H] are quantised, with scales
    and zero points [directions] or [directions, 4·H]; X and the state are, by their range, at run time."""
    if not ctx.zeroed(0):
        ctx.freeze(ctx.axes(0)[2], "quantised by its range, though removal does not make it zero")
    outputs = _recurrent(ctx, 2, 1)
    units = ctx.axes(2)[1]
    if not any(name in ctx.builder.zero for name in ctx.node.output):
        ctx.freeze(units, "its state is quantised by its range, though removal does not make it zero")
    for k in range(8, 12):
        axes = ctx.axes(k) if ctx.has(k) else ()
        ctx.freeze(axes[0] if axes else None, "direction of a recurrent layer")
        if len(axes) > 1 and ctx.shape(k)[1] > 1 and units is not None:
            ctx.unify(axes[1], np.tile(units, GATES[ctx.node.op_type]))
    return outputs


def _recurrent(ctx: NodeContext, gate: int, inner: int) -> list[Axes]:
    """``gate``, ``inner``: the axes of W and R along the gates, and along what they read."""
    stored = [k for k in (1, 2, 3, 7) if ctx.has(k)]
    if not all(ctx.is_constant(k) for k in stored) or ctx.integer("layout", 0):
        return ctx.freeze_all("its weights are computed, or its batch comes first")
    gates, hidden = GATES[ctx.node.op_type], ctx.shape(2)[inner]
    x, w, r = ctx.axes(0), ctx.axes(1), ctx.axes(2)
    units, read = r[inner], w[inner]
    if w[gate] is None or read is None or units is None:
        return ctx.freeze_all("its weights are computed")
    for ids in (*x[:2], w[0], r[0]):
        ctx.freeze(ids, "sequence, batch or direction of a recurrent layer")
    inputs = ctx.unify(x[2], read)
    ctx.unify(w[gate], np.tile(units, gates))
    ctx.unify(r[gate], np.tile(units, gates))
    _states(ctx, units)
    for k, repeats in ((3, 2 * gates), (7, _PEEPHOLES)):
        if ctx.has(k):
            ctx.freeze(ctx.axes(k)[0], "direction of a recurrent layer")
            ctx.unify(ctx.axes(k)[1], np.tile(units, repeats))
    for k in stored:
        ctx.mask(k)
    ctx.contraction(data=0, weight=1, bias=None, in_axis=inner, out_axis=gate,
                    inputs=read if inputs is None else inputs, outputs=units)  # fmt: skip
    ctx.need(units, inputs)
    _costs(ctx, inputs, units, hidden, gates)
    return _outputs(ctx, units)


def _states(ctx: NodeContext, units: Ids) -> None:
    """Initial states [directions, batch, H]."""
    for k in (5, 6):
        if ctx.has(k):
            axes = ctx.axes(k)
            for ids in axes[:2]:
                ctx.freeze(ids, "batch or direction of a recurrent layer")
            if ctx.unify(axes[2], units) is not None and ctx.is_constant(k):
                ctx.mask(k)


def _costs(ctx: NodeContext, inputs: Ids | None, units: Ids, hidden: int, gates: int) -> None:
    steps = ctx.shape(0)[0] * ctx.shape(0)[1] * ctx.shape(1)[0]
    ctx.macs(float(steps * gates), (inputs, ctx.shape(0)[2]), (units, hidden))
    ctx.macs(float(steps * gates), (units, hidden), (units, hidden))
    slices = float(ctx.shape(1)[0] * gates)
    ctx.slices(slices, (inputs, ctx.shape(0)[2]), (units, hidden))
    ctx.slices(slices, (units, hidden), (units, hidden))


def _outputs(ctx: NodeContext, units: Ids) -> list[Axes]:
    """Y has four axes, the last states three; H is the last."""
    tame = all(name in _ZERO_KEEPING for name in _state_activations(ctx))
    zero = tame and all(ctx.zeroed(k) for k in (5, 6) if ctx.has(k))
    found: list[Axes] = []
    for k, name in enumerate(ctx.node.output):
        found.append((*((None,) * (3 if k == 0 else 2)), units))
        if name and zero:
            ctx.builder.zero.add(name)
    return found


def _state_activations(ctx: NodeContext) -> list[str]:
    """The named activations that make the state, of all directions."""
    named = attribute(ctx.node, "activations")
    if not isinstance(named, list):
        return []
    places = _ONTO_STATE[ctx.node.op_type]
    apart = len(named) // ctx.shape(1)[0]
    made = [name for i, name in enumerate(named) if i % apart in places]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in made]


def resize_hidden(edit: NodeEditor) -> None:
    """hidden_size follows the units that remain."""
    _resize_hidden(edit, edit.axes(2)[2])


def resize_dynamic_lstm(edit: NodeEditor) -> None:
    """As ``resize_hidden``, for R [directions, H, 4·H]."""
    _resize_hidden(edit, edit.axes(2)[1])


def _resize_hidden(edit: NodeEditor, units: Ids | None) -> None:
    if units is not None and edit.changed(units):
        edit.node.attrs["hidden_size"] = edit.kept_count(units)
