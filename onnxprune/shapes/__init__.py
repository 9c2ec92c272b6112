"""The shape of every tensor, with likely sizes where the inputs leave some open."""

from onnxprune.shapes.inference import Shape, Shapes, contradictions, infer_shapes

__all__ = ["Shape", "Shapes", "contradictions", "infer_shapes"]
