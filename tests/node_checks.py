"""What has to hold of every variant of a node test: lossless changes nothing, and half the channels leave exactly.

A check returns what is wrong in words, or what it found in one of ``SEEN``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from exactness import random_keep
from node_models import Variant, given
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

import onnxprune
from onnxprune.channels import ChannelMap
from onnxprune.passes.masked import masked_reference
from onnxprune.passes.rewrite import rewrite

__all__ = ["SEEN", "check_half", "check_lossless"]

SEEN = ("identical", "same outputs", "same but for 0·∞", "runs nowhere", "nothing can leave")
"""Not a complaint: equal as protobufs; equal when run; equal but where infinities of the original are multiplied by the
zeros of the masked reference; no runtime has a kernel, for the original either; refused."""

_ELSEWHERE = "infinities or NaNs elsewhere"

_TOLERANCE = {2: 5e-3, 4: 1e-4, 8: 1e-9}  # bytes of a float → share of the scale


def check_lossless(variant: Variant) -> str:
    """Interface and outputs are what they were."""
    pruned = onnxprune.prune(variant.model, check=False).model
    return _compared(variant, variant.model, pruned)


def check_half(variant: Variant) -> str:
    """Pruned equals masked at half the weights; where these cannot leave, at half of the channels that can."""
    try:
        result = onnxprune.prune(variant.model, check=False, sparsity=0.5, align="none")
        return _compared(variant, result.masked, result.model)
    except onnxprune.UnreachableError:
        return _check_half_of_the_rest(variant, onnxprune.prune(variant.model, check=False).original)


def _check_half_of_the_rest(variant: Variant, channel_map: ChannelMap) -> str:
    keep = random_keep(channel_map, 0.5, np.random.default_rng(0))
    if keep.all():
        return "nothing can leave"
    return _compared(variant, masked_reference(channel_map, keep), rewrite(channel_map, keep))


def _compared(variant: Variant, reference: ModelProto, candidate: ModelProto) -> str:
    if given(variant.model) != given(candidate):
        return "other inputs"
    if list(variant.model.graph.output) != list(candidate.graph.output):
        return "other outputs"
    if reference == candidate:
        return "identical"
    expected = _outputs(reference, variant.feeds)
    if isinstance(expected, str):
        original = _outputs(variant.model, variant.feeds)
        return "runs nowhere" if isinstance(original, str) else f"the reference does not run: {expected}"
    found = _outputs(candidate, variant.feeds)
    if isinstance(found, str):
        return f"does not run: {found}"
    said = _difference(expected, found)
    if said == _ELSEWHERE and reference is not variant.model:
        original = _outputs(variant.model, variant.feeds)
        return _difference(_without_products(expected, original, found), found) or "same but for 0·∞"
    return said or "same outputs"


def _without_products(expected: Any, original: Any, found: Any) -> list[Any]:
    """The outputs of a masked reference, but what was found for those that are NaN where the original is not finite.

    There, masking multiplied infinities by zero; without their channels nothing is left of either.
    """
    return [
        np.where(np.isnan(a) & ~np.isfinite(o), b, a) if isinstance(a, np.ndarray) and a.dtype.kind in "fcV" else a
        for a, o, b in zip(expected, original, found, strict=True)
    ]


def _outputs(model: ModelProto, feeds: Mapping[str, Any]) -> list[Any] | str:
    """By ONNX Runtime, or where it lacks a kernel by ONNX's reference; why neither runs it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return list(session.run(None, dict(feeds)))
    except Exception as reason:  # no kernel, or no such version of an operator
        try:
            return list(ReferenceEvaluator(model).run(None, dict(feeds)))
        except Exception as error:
            return f"{reason}; {error!r}"


def _difference(expected: Any, found: Any) -> str:
    """What is different about two outputs: arrays, sequences or optional ones; '' for nothing."""
    if isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(expected) != len(found):
            return "another number of elements"
        return next((said for a, b in zip(expected, found, strict=True) if (said := _difference(a, b))), "")
    if expected is None or isinstance(expected, dict):
        return "" if expected == found else "other values"
    a, b = np.asarray(expected), np.asarray(found)
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{b.dtype}{b.shape} instead of {a.dtype}{a.shape}"
    if a.dtype.kind not in "fcV":
        return "" if np.array_equal(a, b) else "other values"
    return _distance(a.astype(np.complex128), b.astype(np.complex128), _TOLERANCE.get(a.dtype.itemsize, 1e-2))


def _distance(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], tolerance: float) -> str:
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return _ELSEWHERE
    error = float(np.abs(a[finite] - b[finite]).max(initial=0))
    scale = float(np.abs(a[finite]).max(initial=1))
    return "" if error <= tolerance * scale else f"off by {error:.3g}, at a scale of {scale:.3g}"
