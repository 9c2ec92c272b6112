"""Random models: what can be appended to a tensor, by its rank, how a model begins and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from generate import OPSETS, Builder, Choices, Seeded, Step, Value, grow
from generate_any import (
    activation,
    broadcast_branches,
    channel_sum,
    clip,
    concat,
    gather,
    pad,
    pass_through,
    power,
    ratio,
    resized,
    shuffle,
    similarity,
    slice_,
    softmax,
    split,
    squeeze_all,
    tile,
    unit_norm,
    with_constant,
    with_other,
    with_shared_vector,
)
from generate_images import (
    batch_norm,
    channels_last,
    conv,
    conv_transpose,
    depth_to_space,
    flatten,
    group_norm,
    instance_norm,
    local_response,
    pool,
    pooled_head,
    prelu,
    residual,
    resize,
    space_to_depth,
    spatial_gate,
    squeeze_excite,
    to_tokens,
    to_vector,
)
from generate_rare import RARE_ANY, RARE_IMAGE, RARE_TOKENS, RARE_VECTOR, quantised_stem
from generate_tokens import (
    attention,
    einsum,
    gated,
    layer_norm,
    linear,
    merged_heads,
    mix_tokens,
    projection,
    recurrent,
    swap_axes,
    to_image,
)
from generate_unusual_images import UNUSUAL_IMAGE
from generate_unusual_tokens import UNUSUAL_ANY, UNUSUAL_TOKENS, UNUSUAL_VECTOR
from generate_vectors import gemm, unflatten
from onnx import ModelProto

__all__ = ["random_model", "unusual_model"]


def random_model(choices: Choices | int) -> ModelProto:
    """A model from a seed, or from the decisions of hypothesis."""
    return grow(Seeded(choices) if isinstance(choices, int) else choices, stem, steps, close)


def unusual_model(choices: Choices | int) -> ModelProto:
    """A model in which every third step or so is of a kind, or has attributes, that are seldom seen."""
    choices = Seeded(choices) if isinstance(choices, int) else choices
    return grow(choices, stem, unusual_steps, close, (*OPSETS, 8, 14, 16, 20, 22, 25, 26))


_ANY: tuple[Step, ...] = (
    activation, activation, clip, with_constant, with_constant, with_other, with_other, broadcast_branches,
    unit_norm, ratio, power, softmax, concat, concat, split, slice_, slice_, gather, pad, tile, pass_through,
    shuffle, with_shared_vector, squeeze_all, channel_sum, channel_sum, similarity,
)  # fmt: skip
_IMAGE: tuple[Step, ...] = (
    conv, conv, conv, conv, conv, conv_transpose, conv_transpose, residual, batch_norm, batch_norm, instance_norm,
    group_norm, local_response, prelu, pool, pool, resize, depth_to_space, depth_to_space, space_to_depth,
    squeeze_excite, squeeze_excite, spatial_gate, channels_last, flatten, pooled_head, to_tokens, to_vector,
)  # fmt: skip
_SEQUENCE: tuple[Step, ...] = (
    conv, conv_transpose, batch_norm, group_norm, prelu, pool, squeeze_excite, residual, pooled_head,
)  # fmt: skip
_TOKENS: tuple[Step, ...] = (
    linear, linear, mix_tokens, gated, layer_norm, attention, attention, merged_heads, recurrent, einsum, swap_axes,
    to_image, to_vector, flatten,
)  # fmt: skip
_VECTOR: tuple[Step, ...] = (gemm, gemm, gemm, linear, gated, unflatten, unflatten, batch_norm)


def steps(b: Builder, x: Value) -> Sequence[Step]:
    """What can be appended to a tensor: mostly what is common, now and then what is not."""
    rare = b.chance(4)
    if x.rank == 4:
        return (*RARE_ANY, *RARE_IMAGE) if rare else (*_ANY, *_IMAGE)
    if x.rank == 3:
        common = (*_ANY, *_TOKENS, *(_SEQUENCE if b.dtype == np.float32 else ()))
        return (*RARE_ANY, *RARE_TOKENS) if rare else common
    if x.rank == 2:
        return (*RARE_ANY, *RARE_VECTOR) if rare else (*_ANY, *_VECTOR)
    return (pass_through,)


def unusual_steps(b: Builder, x: Value) -> Sequence[Step]:
    """As ``steps``, but what is common only half of the time."""
    if x.rank not in (2, 3, 4) or b.chance(2):
        return steps(b, x)
    image = UNUSUAL_IMAGE if x.rank == 4 and b.dtype == np.float32 else ()
    special = {4: (*image, *RARE_IMAGE), 3: (*UNUSUAL_TOKENS, *RARE_TOKENS), 2: (*UNUSUAL_VECTOR, *RARE_VECTOR)}
    return special[x.rank] if b.chance(2) else (*UNUSUAL_ANY, *RARE_ANY)


def stem(b: Builder, x: Value) -> Value:
    """What the model input goes through first, so that there are channels that may leave."""
    wide = b.size(4, 10)
    quantised = quantised_stem(b, x) if b.chance(6) else None
    if quantised is not None:
        x = quantised
    if x.rank == 4:
        y = b.node(
            "Conv", [x, b.weight((wide, x.shape[1], 1, 1), x.shape[1]), b.vector(wide)], resized(x.shape, 1, wide)
        )
    else:
        y = projection(b, x, wide)
    return y if b.chance(2) else activation(b, y)


def close(b: Builder, x: Value) -> Value:
    """An output reads its tensor through a weight, mostly, so that the tensor's channels may leave."""
    if b.chance(5):
        return b.node("Identity", [x])
    if x.rank == 4 and b.chance(2):
        return flatten(b, x)
    ends: dict[int, Callable[[Builder, Value], Value]] = {4: conv, 3: linear, 2: gemm}
    return ends[x.rank](b, x)
