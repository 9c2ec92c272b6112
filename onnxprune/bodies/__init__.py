"""Bodies of control-flow nodes, laid out flat for the analysis and put back afterwards; functions in place of calls."""

from onnx import ModelProto

from onnxprune.bodies.crossing import Crossing
from onnxprune.bodies.flatten import flatten
from onnxprune.bodies.functions import MOST_NODES, inline, is_call, stored_nodes, unfolded_nodes
from onnxprune.bodies.markers import BEGIN, DOMAINS, END, FORMAL, RESULT, is_marker, loops, number, results_of
from onnxprune.bodies.restore import restore

__all__ = [
    "BEGIN",
    "DOMAINS",
    "END",
    "FORMAL",
    "MOST_NODES",
    "RESULT",
    "Crossing",
    "flatten",
    "inline",
    "is_call",
    "is_marker",
    "laid_out",
    "loops",
    "number",
    "restore",
    "results_of",
    "stored_nodes",
    "unfolded_nodes",
]


def laid_out(model: ModelProto) -> ModelProto:
    """The model as one flat graph: functions inlined, bodies between markers; itself where there are none of either."""
    return flatten(inline(model))
