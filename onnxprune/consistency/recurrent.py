"""What has to agree in recurrent layers."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.consistency.site import Site
from onnxprune.graph import attribute

__all__ = ["dynamic_lstm", "recurrent"]


def recurrent(gates: int, peepholes: int = 0) -> Callable[[Site], None]:
    """W [ways, gates·h, input], R [ways, gates·h, h], B [ways, 2·gates·h], initial states […, h], P [ways, p·h].

    https://onnx.ai/onnx/operators/onnx__LSTM.html
    """

    def rule(site: Site) -> None:
        hidden = site.integer("hidden_size", 0) or site.size(2, 2)
        if hidden is None:
            return
        ways = 2 if attribute(site.node, "direction") == "bidirectional" else 1
        site.expect_shape(1, [ways, gates * hidden, site.size(0, 2)], f"hidden_size {hidden}, and the input's width")
        site.expect_shape(2, [ways, gates * hidden, hidden], f"hidden_size {hidden}")
        site.expect_shape(3, [ways, 2 * gates * hidden], f"hidden_size {hidden}")
        for k in (5, 6) if peepholes else (5,):
            site.expect_size(k, 2, hidden, "hidden_size")
        if peepholes:
            site.expect_shape(7, [ways, peepholes * hidden], f"hidden_size {hidden}")

    return rule


def dynamic_lstm(site: Site) -> None:
    """As an LSTM, with W [ways, input, 4·h] and R [ways, h, 4·h], and scales and zero points [ways] or [ways, 4·h]:
    com.microsoft.DynamicQuantizeLSTM."""
    hidden = site.integer("hidden_size", 0) or site.size(2, 1)
    if hidden is None:
        return
    ways = 2 if attribute(site.node, "direction") == "bidirectional" else 1
    site.expect_shape(1, [ways, site.size(0, 2), 4 * hidden], f"hidden_size {hidden}, and the input's width")
    site.expect_shape(2, [ways, hidden, 4 * hidden], f"hidden_size {hidden}")
    site.expect_shape(3, [ways, 8 * hidden], f"hidden_size {hidden}")
    for k in (5, 6):
        site.expect_size(k, 2, hidden, "hidden_size")
    site.expect_shape(7, [ways, 3 * hidden], f"hidden_size {hidden}")
    for k in range(8, 12):
        if site.rank(k) == 2 and site.size(k, 1) != 1:
            site.expect_shape(k, [ways, 4 * hidden], "one a column of the weights")
