"""The check of a result: structure first, then every node against its rules.

Shapes are inferred anew from the inputs and the stored constants; what the model declares is checked, not believed.
Where dimensions are open there are two guesses of them, and only sizes that do not depend on the guess are judged. What
is at fault in the original already is the user's, and not reported.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxprune.bodies import flatten, is_marker
from onnxprune.consistency.site import Fault, Site
from onnxprune.consistency.structure import data_faults, declaration_faults, interface_faults, name_faults
from onnxprune.consistency.table import rules_of
from onnxprune.errors import VerificationError
from onnxprune.graph import Graph
from onnxprune.shapes import Shapes, infer_shapes

__all__ = ["assert_consistent", "faults_of"]

_READ = 1_000_000  # a list of indices with at most so many numbers is looked at
_SHOWN = 3  # faults that a message names

Values = Callable[[str], NDArray[np.generic] | None]


def assert_consistent(model: ModelProto, original: ModelProto, folder: Path | None = None) -> None:
    """Check a result against itself and against what has to stay of the original.

    Raises: VerificationError that names node, tensor, what was found and what was expected.
    """
    found = [*interface_faults(model, original), *faults_of(model, folder)]
    if not found:
        return
    before = {fault.place for fault in faults_of(original, folder)}
    new = [fault for fault in found if fault.place not in before]
    if new:
        more = f" (and {len(new) - _SHOWN} more)" if len(new) > _SHOWN else ""
        raise VerificationError(
            f"the pruned model contradicts itself, nothing was written: {'; '.join(map(str, new[:_SHOWN]))}{more}; "
            "please report the model, or leave its layers alone with --keep"
        )


def faults_of(model: ModelProto, folder: Path | None = None) -> list[Fault]:
    """All that does not fit in a model, in the order of its nodes; structure first, and alone if it is broken."""
    broken = [*name_faults(model), *data_faults(model)]
    if broken:
        return broken
    graph = Graph(flatten(model), folder)
    shapes = infer_shapes(graph)
    values = _reader(graph, shapes)
    found = [fault for node in graph.nodes for fault in _node_faults(node, graph.opset, shapes, values)]
    guesses = (shapes.of, shapes.other) if shapes.other else (shapes.of,)
    return found or list(declaration_faults(model, *guesses))


def _node_faults(node: NodeProto, opset: int, shapes: Shapes, values: Values) -> list[Fault]:
    site = Site(node, opset, shapes, values)
    for rule in () if is_marker(node) else rules_of(node.op_type, node.domain):
        with suppress(IndexError, TypeError, ValueError, ZeroDivisionError):  # attributes that no schema allows
            rule(site)
    return site.faults


def _reader(graph: Graph, shapes: Shapes) -> Values:
    """Numbers of a tensor: computed with the shapes, or stored and not too many."""

    def values(name: str) -> NDArray[np.generic] | None:
        if name in shapes.values:
            return shapes.values[name]
        tensor = graph.constants.get(name)
        if tensor is None or tensor.external_data or prod(tensor.dims) > _READ:
            return None
        return graph.values(name)

    return values
