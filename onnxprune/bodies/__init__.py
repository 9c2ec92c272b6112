"""Bodies of control-flow nodes, laid out flat for the analysis and put back afterwards."""

from onnxprune.bodies.crossing import Crossing
from onnxprune.bodies.flatten import flatten
from onnxprune.bodies.markers import BEGIN, DOMAINS, END, FORMAL, RESULT, is_marker, loops, number, results_of
from onnxprune.bodies.restore import restore

__all__ = [
    "BEGIN",
    "DOMAINS",
    "END",
    "FORMAL",
    "RESULT",
    "Crossing",
    "flatten",
    "is_marker",
    "loops",
    "number",
    "restore",
    "results_of",
]
