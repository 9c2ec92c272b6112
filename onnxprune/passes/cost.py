"""What a selection costs: stored weights, multiply-accumulates or kernel slices, as a function of the groups kept.

Every cost is Σ coefficient · Π (kept channels along an axis), because constants are sliced axis by axis. One
``reduceat`` counts the kept channels of all axes at once, so that a search may evaluate it often.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import ChannelMap, Term
from onnxprune.measure import count_weights, is_weight

__all__ = ["MEASURES", "Cost", "Measure", "cost_of"]

Measure = Literal["weights", "macs", "kernels"]
MEASURES: tuple[Measure, ...] = ("weights", "macs", "kernels")


class Cost:
    """Σ of terms plus a constant part."""

    def __init__(self, terms: Sequence[Term], fixed: float) -> None:
        self.fixed = fixed + sum(t.coefficient for t in terms if not t.axes)
        labelled = [t for t in terms if t.axes]
        self.coefficients = np.array([t.coefficient for t in labelled])
        vectors = [ids for t in labelled for ids in t.axes]
        self.ids = np.concatenate([np.zeros(0, np.int32), *vectors])
        self.starts = np.cumsum([0, *(len(ids) for ids in vectors)])[:-1]
        self.terms = np.cumsum([0, *(len(t.axes) for t in labelled)])[:-1]

    def __call__(self, keep: NDArray[np.bool_]) -> float:
        """The cost of keeping these groups (bool [groups])."""
        if not len(self.coefficients):
            return self.fixed
        counts = np.add.reduceat(keep[self.ids].astype(np.float64), self.starts)
        return self.fixed + float(np.dot(self.coefficients, np.multiply.reduceat(counts, self.terms)))


def cost_of(channel_map: ChannelMap, measure: Measure) -> Cost:
    """The cost function of a measure."""
    if measure == "macs":
        return Cost(channel_map.macs, 0.0)
    if measure == "kernels":
        return Cost(channel_map.slices, 0.0)
    return _weights(channel_map)


def _weights(channel_map: ChannelMap) -> Cost:
    """Elements of stored constants of rank ≥ 2. Constants that no rule labelled stay whole."""
    terms, labelled = [], 0
    for name, edges in channel_map.constant_uses().items():
        tensor = channel_map.graph.constants[name]
        if not is_weight(tensor):
            continue
        axes = channel_map.uses[edges[0]]
        plain = prod(size for size, ids in zip(tensor.dims, axes, strict=True) if ids is None)
        terms.append(Term(edges[0][0], float(plain), tuple(ids for ids in axes if ids is not None and len(ids))))
        labelled += prod(tensor.dims)
    return Cost(terms, float(count_weights(channel_map.graph.model) - labelled))
