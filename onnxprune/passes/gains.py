"""Diagonal gains: what operators multiply each channel by that are not contractions.

A BatchNormalization scales channel c by |γ|/√(σ² + ε); a product with, or a quotient by, a stored constant by its
magnitude (the largest, where it varies over positions). Everything else counts as 1, as in LEAN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph import Graph, attribute
from onnxprune.shapes import Shapes
from onnxprune.weights import weight_values

__all__ = ["diagonal_gain", "normalisation_gain"]

Gain = NDArray[np.float64]


def diagonal_gain(graph: Graph, shapes: Shapes, index: int, axis: int, size: int) -> Gain | None:
    """Log gain per index of an axis of a node's first output, float64 [size]; None where all are 1."""
    node = graph.nodes[index]
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "BatchNormalization" and axis == 1:
        return _of_size(normalisation_gain(graph, index), size)
    if node.op_type in ("Mul", "Div"):
        return _product(graph, shapes, index, axis, size)
    return None


def normalisation_gain(graph: Graph, index: int) -> Gain | None:
    """Log of |γ|/√(σ² + ε) of a BatchNormalization, float64 [C]; None where its parameters are computed."""
    node = graph.nodes[index]
    try:
        gamma, variance = (weight_values(graph, node.input[k]).astype(np.float64) for k in (1, 4))
    except KeyError:
        return None
    epsilon = attribute(node, "epsilon")
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.log(np.abs(gamma) / np.sqrt(variance + (epsilon if isinstance(epsilon, float) else 1e-5)))
    return np.where(np.isnan(gain), 0.0, gain)  # of a variance below zero: not known


def _of_size(gain: Gain | None, size: int) -> Gain | None:
    return gain if gain is not None and gain.shape == (size,) else None


def _product(graph: Graph, shapes: Shapes, index: int, axis: int, size: int) -> Gain | None:
    """By a stored operand; of a quotient, only the divisor can be one."""
    node = graph.nodes[index]
    stored = [k for k in (0, 1) if node.input[k] in graph.constants]
    if len(stored) != 1 or (node.op_type == "Div" and stored != [1]):
        return None
    rank = len(shapes.of.get(node.output[0], ()))
    values = np.abs(np.asarray(graph.values(node.input[stored[0]]), np.float64))
    if values.ndim > rank:
        return None
    values = values.reshape((1,) * (rank - values.ndim) + values.shape)
    with np.errstate(divide="ignore"):
        logs = -np.log(values) if node.op_type == "Div" else np.log(values)
    along = logs.max(axis=tuple(a for a in range(rank) if a != axis))
    return np.broadcast_to(along, (size,)) if len(along) in (1, size) else None
