"""Every operator of the table has a model that shows what its rule says."""

from __future__ import annotations

import pytest
import test_attention
import test_contraction
import test_elementwise
import test_fused_attention
import test_movement
import test_open_sizes
import test_quantised
import test_reduction
import test_sampling
import test_stored
from cases import image
from test_elementwise import DOMAIN, NOT_ZERO, ZERO

from onnxprune.bodies import DOMAINS
from onnxprune.graph import Graph
from onnxprune.ops import RULES, build_map

FAMILIES = (
    test_attention,
    test_contraction,
    test_elementwise,
    test_fused_attention,
    test_movement,
    test_open_sizes,
    test_quantised,
    test_reduction,
    test_sampling,
    test_stored,
)


def test_every_row_of_the_table_has_a_model() -> None:
    nodes = [node for family in FAMILIES for case in family.CASES for node in case.model.graph.node]
    held = {f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes}
    held |= set(test_sampling.FROZEN)
    recurrent = {"com.microsoft.DynamicQuantizeLSTM", "Einsum", "GRU", "LSTM", "RNN"}  # in test_recurrent
    markers = {name for name in RULES if name.startswith(DOMAINS)}  # in test_bodies
    assert set(RULES) - held - {*ZERO, *NOT_ZERO, *DOMAIN} - recurrent - markers == WITHOUT_SCHEMA


WITHOUT_SCHEMA = {"Crop", "SimplifiedLayerNormalization"}
"""Operators that old converters and optimisers write and onnx.checker does not know."""


@pytest.mark.parametrize(("op", "free"), [("Crop<border=[1,1,1,1]>(a)", 8), ("SimplifiedLayerNormalization(a, s)", 8)])
def test_operators_without_a_schema(op: str, free: int) -> None:
    case = image(op, f"z = {op}", free, s=6)
    assert len(build_map(Graph(case.model)).free) == free


@pytest.mark.parametrize("kept", ["Conv→a", "a"])
def test_a_node_without_a_name_is_left_alone_by_what_a_report_calls_it(kept: str) -> None:
    model = image("", "z = Relu(a)", 0).model
    assert len(build_map(Graph(model), keep=[kept]).free) == 0
    assert len(build_map(Graph(model)).free) == 8
