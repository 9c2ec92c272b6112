"""What has to agree in normalisations: their parameters are as many as what they scale."""

from __future__ import annotations

from onnxprune.consistency.site import Site

__all__ = ["batch_norm", "embed_layer_norm", "group_norm", "instance_norm", "layer_norm", "skip_layer_norm"]

_PER_CHANNEL = 21  # the opset from which GroupNormalization has a scale for each channel; before, for each group


def batch_norm(site: Site) -> None:
    """scale, B, mean, var are [C].  https://onnx.ai/onnx/operators/onnx__BatchNormalization.html"""
    if site.integer("spatial", 1):
        _expect_vectors(site, range(1, 5), 1)


def instance_norm(site: Site) -> None:
    """scale and B are [C].  https://onnx.ai/onnx/operators/onnx__InstanceNormalization.html"""
    _expect_vectors(site, range(1, 3), 1)


def group_norm(site: Site) -> None:
    """C is a multiple of num_groups; scale and bias are [C] (before opset 21: [num_groups]).

    https://onnx.ai/onnx/operators/onnx__GroupNormalization.html
    """
    groups = site.integer("num_groups", 1)
    site.expect_multiple(0, 1, groups, "num_groups")
    for k in (1, 2):
        if site.opset >= _PER_CHANNEL:
            site.expect_shape(k, [site.size(0, 1)], "one a channel")
        else:
            site.expect_shape(k, [groups], "one a group")


def layer_norm(site: Site) -> None:
    """scale and bias broadcast to the axes that are normalised.

    https://onnx.ai/onnx/operators/onnx__LayerNormalization.html
    """
    shape, axis = site.shape(0), site.integer("axis", -1)
    if shape is not None and -len(shape) <= axis < len(shape):
        for k in range(1, len(site.node.input)):
            site.expect_onto(k, shape, "the data")


def skip_layer_norm(site: Site) -> None:
    """skip is as wide as the data; gamma, beta and bias are as long: com.microsoft.Skip…LayerNormalization."""
    site.expect_size(1, -1, site.size(0, -1), "as the data")
    _expect_vectors(site, range(2, len(site.node.input)), -1)


def embed_layer_norm(site: Site) -> None:
    """All embeddings are equally wide, gamma and beta as long: com.microsoft.EmbedLayerNormalization."""
    width = site.size(2, 1)
    for k in (3, 4):
        site.expect_size(k, 1, width, "as the word embedding")
    for k in (5, 6):
        site.expect_shape(k, [width], "as the word embedding")


def _expect_vectors(site: Site, inputs: range, axis: int) -> None:
    for k in inputs:
        site.expect_shape(k, [site.size(0, axis)], f"as the data along axis {axis}")
