"""What each operator does to channels, one file per family; ``RULES`` is the table of all of them."""

from onnxprune.ops.table import RULES, Rule, build_map

__all__ = ["RULES", "Rule", "build_map"]
