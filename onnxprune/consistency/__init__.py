"""Whether a model's sizes agree with each other, and whether it is still the model it was made from.

Wrong sizes of weights, biases, groups and reshapes pass ONNX's checker, its strict inference and the creation of a
session on ONNX Runtime; only running shows them. So every result is checked here, operator by operator, before it is
run (and also where it is not run at all).
"""

from onnxprune.consistency.check import assert_consistent, faults_of

__all__ = ["assert_consistent", "faults_of"]
