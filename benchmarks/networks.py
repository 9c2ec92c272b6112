"""The standard architectures, written out as torch modules and exported to ONNX.

Each class follows its paper and, at ``width=1, depth=1``, has the reference implementation's parameter count.
``width`` scales the channels and ``depth`` the number of blocks, so that a test can export a small network
with the full network's topology.

The weights are random but not trivial. Convolutions and linear layers are drawn by He et al.'s rule
(arXiv:1502.01852). A BatchNorm has gains from U(0.5, 1.5) and offsets from N(0, 0.2), and running statistics
that miss those of one batch of random images by as much. So none of the four can be left out unnoticed, and
activations keep their size at any depth and width (arXiv:1511.06422). With x the input and c a channel:

    mean[c] = E[x[c]] + s N(0, 0.2),   var[c] = s^2 U(0.5, 1.5),   s^2 = mean over c of Var(x[c])

Example:
    $ python benchmarks/networks.py resnet50 resnet50.onnx --width 0.25
"""

from __future__ import annotations

import argparse
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "NETWORKS",
    "Network",
    "build",
    "densenet121",
    "efficientnet_like",
    "export",
    "mobilenet_v2",
    "random_images",
    "resnet18",
    "resnet50",
    "resnext50",
    "shufflenet_v2",
    "unet",
    "vit",
]

Exporter = Literal["legacy", "dynamo"]


@dataclass(frozen=True)
class Network:
    """A module and the shape of its one input, without the batch axis.

    Attributes:
        module: takes (batch, *input_shape) float32; classifiers return (batch, classes), U-Net returns
            (batch, classes, height, width).
        input_shape: (channels, height, width).
    """

    module: nn.Module
    input_shape: tuple[int, int, int]


def channels(base: int, width: float, divisor: int = 4) -> int:
    """Scale a channel count to a multiple of ``divisor``, never more than 10 % below ``base * width``.

    The rounding of MobileNet's reference code, ``_make_divisible``; width 1 keeps a multiple as it is.
    """
    rounded = max(divisor, int(base * width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * base * width else rounded


def repeats(base: int, depth: float) -> int:
    """Scale a number of blocks; at least one stays."""
    return max(1, round(base * depth))


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution with 'same' padding, BatchNorm, and the activation unless it is None."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


class Classifier(nn.Module):
    """Average over the image, flatten, one linear layer: (batch, inputs, h, w) to (batch, classes)."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return logits


# ResNet and ResNeXt


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet, arXiv:1512.03385, figure 5 left)."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            conv_norm(inputs, inner, 3, stride=stride, groups=groups),
            conv_norm(inner, outputs, 3, groups=groups, activation=None),
        )
        self.shortcut = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(residual(x) + shortcut(x))."""
        return F.relu(self.residual(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut (arXiv:1512.03385, figure 5 right; with groups: arXiv:1611.05431)."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            conv_norm(inputs, inner),
            conv_norm(inner, inner, 3, stride=stride, groups=groups),
            conv_norm(inner, outputs, activation=None),
        )
        self.shortcut = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(residual(x) + shortcut(x))."""
        return F.relu(self.residual(x) + self.shortcut(x))


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return the identity where shapes agree, else a 1x1 convolution (option B of the ResNet paper)."""
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return conv_norm(inputs, outputs, stride=stride, activation=None)


class ResNet(nn.Module):
    """Stem and four stages of residual blocks (He et al. 2016, arXiv:1512.03385).

    Args:
        block: the kind of block.
        stages: (inner channels, output channels, number of blocks) of each stage.
        stem: channels after the 7x7 convolution.
        classes: number of logits.
        groups: groups of the inner convolution.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        stages: Sequence[tuple[int, int, int]],
        stem: int,
        classes: int,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, stem, 7, stride=2), nn.MaxPool2d(3, 2, 1))
        blocks: list[nn.Module] = []
        inputs = stem
        for stage, (inner, outputs, count) in enumerate(stages):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(inputs, inner, outputs, stride, groups))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = Classifier(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.blocks(self.stem(x)))
        return logits


def resnet18(*, width: float = 1.0, depth: float = 1.0, image: int = 224, classes: int = 1000) -> Network:
    """ResNet-18, 11.7 M parameters (arXiv:1512.03385, table 1)."""
    sizes = [channels(64 << stage, width) for stage in range(4)]
    stages = [(size, size, repeats(2, depth)) for size in sizes]
    return Network(ResNet(BasicBlock, stages, sizes[0], classes), (3, image, image))


def resnet50(*, width: float = 1.0, depth: float = 1.0, image: int = 224, classes: int = 1000) -> Network:
    """ResNet-50, 25.6 M parameters (arXiv:1512.03385, table 1; stride in the 3x3 convolution, 'v1.5')."""
    sizes = [channels(64 << stage, width) for stage in range(4)]
    stages = [(size, 4 * size, repeats(n, depth)) for size, n in zip(sizes, (3, 4, 6, 3), strict=True)]
    return Network(ResNet(Bottleneck, stages, sizes[0], classes), (3, image, image))


def resnext50(*, width: float = 1.0, depth: float = 1.0, image: int = 224, classes: int = 1000) -> Network:
    """ResNeXt-50 (32x4d), 25.0 M parameters (Xie et al. 2017, arXiv:1611.05431, table 1).

    ``width`` scales the number of groups; a group keeps its 4, 8, 16, 32 channels.
    """
    groups = max(2, round(32 * width))
    stages = [
        (groups * (4 << stage), channels(256 << stage, width), repeats(n, depth))
        for stage, n in enumerate((3, 4, 6, 3))
    ]
    return Network(ResNet(Bottleneck, stages, channels(64, width), classes, groups), (3, image, image))


# MobileNetV2 and EfficientNet


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise, optional squeeze-excite, linear 1x1 projection (arXiv:1801.04381, figure 3).

    The expansion is left out where it would not expand; the shortcut exists where shapes agree.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        expansion: int,
        kernel: int,
        stride: int,
        activation: type[nn.Module],
        squeeze: int | None = None,
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_norm(inputs, inner, activation=activation))
        layers.append(conv_norm(inner, inner, kernel, stride=stride, groups=inner, activation=activation))
        if squeeze is not None:
            layers.append(SqueezeExcite(inner, squeeze, activation))
        layers.append(conv_norm(inner, outputs, activation=None))
        self.residual = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return residual(x), plus x where shapes agree."""
        residual: Tensor = self.residual(x)
        return x + residual if self.has_shortcut else residual


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channels' means (arXiv:1709.01507, equations 2 to 4)."""

    def __init__(self, inputs: int, squeeze: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(inputs, squeeze, 1)
        self.activation = activation()
        self.expand = nn.Conv2d(squeeze, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x times its gate, (batch, inputs, 1, 1)."""
        return x * torch.sigmoid(self.expand(self.activation(self.reduce(self.pool(x)))))


class InvertedResidualNet(nn.Module):
    """Stem, inverted residual blocks, 1x1 convolution, classifier: MobileNetV2 and EfficientNet.

    Args:
        stages: (expansion, output channels, number of blocks, first stride, kernel) of each stage.
        stem: channels after the first convolution.
        last: channels before the classifier.
        classes: number of logits.
        activation: the nonlinearity.
        squeeze_ratio: squeeze-excite with a block's input channels divided by this, or None for none.
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, int, int, int, int]],
        stem: int,
        last: int,
        classes: int,
        activation: type[nn.Module],
        squeeze_ratio: int | None = None,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = [conv_norm(3, stem, 3, stride=2, activation=activation)]
        inputs = stem
        for expansion, outputs, count, first_stride, kernel in stages:
            for index in range(count):
                block = InvertedResidual(
                    inputs,
                    outputs,
                    expansion=expansion,
                    kernel=kernel,
                    stride=first_stride if index == 0 else 1,
                    activation=activation,
                    squeeze=None if squeeze_ratio is None else max(1, inputs // squeeze_ratio),
                )
                blocks.append(block)
                inputs = outputs
        blocks.append(conv_norm(inputs, last, activation=activation))
        self.blocks = nn.Sequential(*blocks)
        self.head = Classifier(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.blocks(x))
        return logits


def mobilenet_v2(*, width: float = 1.0, depth: float = 1.0, image: int = 224, classes: int = 1000) -> Network:
    """MobileNetV2, 3.5 M parameters, ReLU6 (Sandler et al. 2018, arXiv:1801.04381, table 2).

    Unlike in the paper, a width below 1 also scales the last 1280 channels.
    """
    table = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    stages = [(t, channels(c, width, 8), repeats(n, depth), s, 3) for t, c, n, s in table]
    module = InvertedResidualNet(stages, channels(32, width, 8), channels(1280, width, 8), classes, nn.ReLU6)
    return Network(module, (3, image, image))


def efficientnet_like(
    *, width: float = 1.0, depth: float = 1.0, image: int = 224, classes: int = 1000
) -> Network:
    """EfficientNet-B0 without stochastic depth, 5.3 M parameters (arXiv:1905.11946, table 1)."""
    table = [
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ]
    stages = [(t, channels(c, width, 8), repeats(n, depth), s, k) for t, c, n, s, k in table]
    stem, last = channels(32, width, 8), channels(1280, width, 8)
    return Network(
        InvertedResidualNet(stages, stem, last, classes, nn.SiLU, squeeze_ratio=4), (3, image, image)
    )


# DenseNet


class DenseLayer(nn.Module):
    """BN, ReLU, 1x1 to 4k channels, BN, ReLU, 3x3 to k channels (DenseNet-B, arXiv:1608.06993, section 3)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.squeeze = conv_norm(inputs, 4 * growth)
        self.grow = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return the k new channels computed from all earlier ones."""
        grown: Tensor = self.grow(self.squeeze(F.relu(self.norm(torch.cat(features, 1)))))
        return grown


class DenseBlock(nn.Module):
    """Layers that each read everything before them; returns the concatenation of it all."""

    def __init__(self, inputs: int, growth: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(inputs + index * growth, growth) for index in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """Return x with count * growth channels appended."""
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """DenseNet-BC: dense blocks joined by transitions that halve channels and size (arXiv:1608.06993)."""

    def __init__(self, growth: int, counts: Sequence[int], classes: int) -> None:
        super().__init__()
        features = 2 * growth
        layers: list[nn.Module] = [conv_norm(3, features, 7, stride=2), nn.MaxPool2d(3, 2, 1)]
        for index, count in enumerate(counts):
            layers.append(DenseBlock(features, growth, count))
            features += count * growth
            layers += [nn.BatchNorm2d(features), nn.ReLU()]
            if index < len(counts) - 1:
                layers += [nn.Conv2d(features, features // 2, 1, bias=False), nn.AvgPool2d(2)]
                features //= 2
        self.features = nn.Sequential(*layers)
        self.head = Classifier(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.features(x))
        return logits


def densenet121(*, width: float = 1.0, depth: float = 1.0, image: int = 224, classes: int = 1000) -> Network:
    """DenseNet-121, 8.0 M parameters (arXiv:1608.06993, table 1); ``width`` scales the growth."""
    counts = [repeats(n, depth) for n in (6, 12, 24, 16)]
    return Network(DenseNet(channels(32, width), counts, classes), (3, image, image))


# ShuffleNetV2


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave groups of n: channel g * n + i moves to i * groups + g (arXiv:1707.01083, section 3.1)."""
    batch, count, height, width = x.size()
    x = x.view(batch, groups, count // groups, height, width)
    return x.transpose(1, 2).contiguous().view(batch, count, height, width)


class ShuffleUnit(nn.Module):
    """Half the channels pass, half are convolved, then both are shuffled (arXiv:1807.11164, figure 3c, 3d).

    With stride 2 both branches read all channels and are convolved.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.splits = stride == 1
        self.passing: nn.Module = nn.Identity()
        if not self.splits:
            self.passing = nn.Sequential(
                conv_norm(inputs, inputs, 3, stride=stride, groups=inputs, activation=None),
                conv_norm(inputs, half),
            )
        self.residual = nn.Sequential(
            conv_norm(half if self.splits else inputs, half),
            conv_norm(half, half, 3, stride=stride, groups=half, activation=None),
            conv_norm(half, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the shuffled concatenation of the two branches."""
        left, right = x.chunk(2, 1) if self.splits else (x, x)
        return channel_shuffle(torch.cat((self.passing(left), self.residual(right)), 1), 2)


class ShuffleNetV2(nn.Module):
    """Stem, three stages of shuffle units, 1x1 convolution, classifier (arXiv:1807.11164, table 5)."""

    def __init__(self, stem: int, stages: Sequence[tuple[int, int]], last: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, stem, 3, stride=2), nn.MaxPool2d(3, 2, 1))
        units: list[nn.Module] = []
        inputs = stem
        for outputs, count in stages:
            units.append(ShuffleUnit(inputs, outputs, 2))
            units += [ShuffleUnit(outputs, outputs, 1) for _ in range(count - 1)]
            inputs = outputs
        self.units = nn.Sequential(*units)
        self.last = conv_norm(inputs, last)
        self.head = Classifier(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.last(self.units(self.stem(x))))
        return logits


def shufflenet_v2(
    *, width: float = 1.0, depth: float = 1.0, image: int = 224, classes: int = 1000
) -> Network:
    """ShuffleNetV2 x1.0, 2.3 M parameters (Ma et al. 2018, arXiv:1807.11164, table 5)."""
    stages = [(channels(c, width), repeats(n, depth)) for c, n in ((116, 4), (232, 8), (464, 4))]
    module = ShuffleNetV2(channels(24, width), stages, channels(1024, width), classes)
    return Network(module, (3, image, image))


# U-Net


class UNet(nn.Module):
    """Contracting and expanding path with skip concatenations (arXiv:1505.04597, figure 1).

    'Same' padding and BatchNorm, as today's implementations have them.

    Args:
        sizes: channels of each level, the finest first.
        classes: channels of the output map.
    """

    def __init__(self, sizes: Sequence[int], classes: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        pairs = list(itertools.pairwise(sizes))
        self.down = nn.ModuleList(self._double(fine, coarse) for fine, coarse in [(3, sizes[0]), *pairs])
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, 2) for fine, coarse in reversed(pairs))
        self.merge = nn.ModuleList(self._double(2 * fine, fine) for fine, _ in reversed(pairs))
        self.head = nn.Conv2d(sizes[0], classes, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(conv_norm(inputs, outputs, 3), conv_norm(outputs, outputs, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of logits, (batch, classes, height, width)."""
        skips: list[Tensor] = []
        for level, convolve in enumerate(self.down):
            x = convolve(x if level == 0 else self.pool(x))
            skips.append(x)
        for enlarge, merge, skip in zip(self.up, self.merge, reversed(skips[:-1]), strict=True):
            x = merge(torch.cat((skip, enlarge(x)), 1))
        logits: Tensor = self.head(x)
        return logits


def unet(*, width: float = 1.0, depth: float = 1.0, image: int = 256, classes: int = 2) -> Network:
    """U-Net with 64 to 1024 channels, 31.0 M parameters (arXiv:1505.04597).

    ``depth`` scales the number of halvings, 4; ``image`` must be a multiple of 2 to that power.
    """
    halvings = repeats(4, depth)
    if image % (1 << halvings):
        raise ValueError(
            f"unet: image is {image}, expected a multiple of {1 << halvings}; change image or depth"
        )
    sizes = [channels(64 << level, width) for level in range(halvings + 1)]
    return Network(UNet(sizes, classes), (3, image, image))


# Vision transformer


class Attention(nn.Module):
    """Multi-head self-attention with one linear layer for query, key, value (arXiv:1706.03762, section 3.2).

    Args:
        size: channels of a token, a multiple of ``heads``.
        heads: number of heads.
        fused: call torch's scaled_dot_product_attention instead of matmul, softmax, matmul.
    """

    def __init__(self, size: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads = heads
        self.head_size = size // heads
        self.fused = fused
        self.qkv = nn.Linear(size, 3 * size)
        self.projection = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens, (batch, tokens, size)."""
        batch, tokens, size = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_size).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        if self.fused:
            attended = F.scaled_dot_product_attention(query, key, value)
        else:
            scores = torch.matmul(query * self.head_size**-0.5, key.transpose(-2, -1))
            attended = torch.matmul(scores.softmax(-1), value)
        projected: Tensor = self.projection(attended.transpose(1, 2).reshape(batch, tokens, size))
        return projected


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP, each with a shortcut (ViT, arXiv:2010.11929, equations 2 and 3)."""

    def __init__(self, size: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size, eps=1e-6)
        self.attention = Attention(size, heads, fused)
        self.norm2 = nn.LayerNorm(size, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens, same shape."""
        x = x + self.attention(self.norm1(x))
        refined: Tensor = x + self.mlp(self.norm2(x))
        return refined


class VisionTransformer(nn.Module):
    """Patches to tokens, transformer blocks, the class token to logits (arXiv:2010.11929, figure 1)."""

    def __init__(
        self, size: int, heads: int, layers: int, patch: int, image: int, classes: int, fused: bool
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, size, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, size))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (image // patch) ** 2, size))
        self.blocks = nn.Sequential(*(TransformerBlock(size, heads, fused) for _ in range(layers)))
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.head = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.class_token.expand(tokens.shape[0], -1, -1), tokens), 1)
        logits: Tensor = self.head(self.norm(self.blocks(tokens + self.positions))[:, 0])
        return logits


def vit(
    *,
    width: float = 1.0,
    depth: float = 1.0,
    image: int = 224,
    classes: int = 1000,
    fused_attention: bool = False,
) -> Network:
    """ViT-S/16: 384 wide, 12 layers, 6 heads, 22.1 M parameters (arXiv:2010.11929; size of arXiv:2012.12877).

    ``width`` scales the number of heads; a head keeps its 64 channels.
    """
    if image % 16:
        raise ValueError(f"vit: image is {image}, expected a multiple of the patch size 16; change image")
    heads = max(1, round(6 * width))
    module = VisionTransformer(64 * heads, heads, repeats(12, depth), 16, image, classes, fused_attention)
    return Network(module, (3, image, image))


NETWORKS: dict[str, Callable[..., Network]] = {
    "densenet121": densenet121,
    "efficientnet_like": efficientnet_like,
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "resnext50": resnext50,
    "shufflenet_v2": shufflenet_v2,
    "unet": unet,
    "vit": vit,
    "vit_sdpa": partial(vit, fused_attention=True),
}


# Weights and export


def randomise(network: Network) -> None:
    """Draw all weights from torch's current random state; the module docstring gives the distributions."""
    for module in network.module.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
        elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, VisionTransformer):
            nn.init.normal_(module.class_token, std=0.2)
            nn.init.normal_(module.positions, std=0.2)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.2)
    norms = [module for module in network.module.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(_draw_running_statistics) for norm in norms]
    with torch.inference_mode():
        network.module(random_images(network.input_shape, 2))
    for hook in hooks:
        hook.remove()


def _draw_running_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Set the running statistics near those of the batch that arrives; the module docstring says how."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean = inputs[0].mean((0, 2, 3))
    variance = inputs[0].var((0, 2, 3), correction=0).mean().clamp_min(1e-3).item()
    norm.running_mean.normal_(0, 0.2 * math.sqrt(variance)).add_(mean)
    norm.running_var.uniform_(0.5 * variance, 1.5 * variance)


def random_images(shape: tuple[int, int, int], count: int) -> Tensor:
    """Draw (count, *shape) images: blobs, which tell images apart after pooling, and half as much noise."""
    blobs = F.interpolate(torch.randn(count, shape[0], 6, 6), shape[1:], mode="bicubic")
    return blobs + 0.5 * torch.randn(count, *shape)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, so that sums, hence weights, do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def build(
    name: str,
    *,
    width: float = 1.0,
    depth: float = 1.0,
    image: int | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> Network:
    """Build a network with its random weights, in evaluation mode; torch's global random state is left alone.

    Args:
        name: a key of ``NETWORKS``.
        width: factor on the channels.
        depth: factor on the number of blocks.
        image: height and width of the input; None for the paper's (224, U-Net 256).
        classes: number of classes; None for 1000 (U-Net 2).
        seed: same seed, same weights.

    Raises:
        ValueError: the name is unknown, or the image does not fit the network.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}, expected one of {', '.join(NETWORKS)}")
    sizes = {key: value for key, value in (("image", image), ("classes", classes)) if value is not None}
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        network = NETWORKS[name](width=width, depth=depth, **sizes)
        network.module.eval()
        randomise(network)
    return network


def export(
    name: str,
    path: str | Path,
    *,
    exporter: Exporter = "legacy",
    width: float = 1.0,
    depth: float = 1.0,
    image: int | None = None,
    classes: int | None = None,
    batch: int | None = 1,
    seed: int = 0,
    opset: int = 18,
) -> Network:
    """Write a network as one ONNX file with the weights inside, input ``input`` and output ``output``.

    Args:
        name: a key of ``NETWORKS``.
        path: the file to write.
        exporter: torch's TorchScript exporter ('legacy') or the one built on torch.export ('dynamo').
        width: factor on the channels.
        depth: factor on the number of blocks.
        image: height and width of the input; None for the paper's.
        classes: number of classes; None for the paper's.
        batch: fixed batch size, or None for a symbolic one named 'batch'.
        seed: same seed, same weights.
        opset: version of the ONNX operator set.

    Returns:
        The network that was written, to compare outputs with.

    Raises:
        ValueError: see ``build``.
    """
    network = build(name, width=width, depth=depth, image=image, classes=classes, seed=seed)
    # torch.export takes a size of 1 for a constant, so the example of a symbolic batch has 2.
    example = torch.zeros(2 if batch is None else batch, *network.input_shape)
    to_file = partial(
        torch.onnx.export,
        network.module,
        (example,),
        str(path),
        input_names=["input"],
        output_names=["output"],
        opset_version=opset,
    )
    with warnings.catch_warnings(), one_thread():
        warnings.simplefilter("ignore")
        if exporter == "legacy":
            axes = {"input": {0: "batch"}, "output": {0: "batch"}} if batch is None else None
            to_file(dynamo=False, dynamic_axes=axes)
        else:
            shapes = ({0: torch.export.Dim("batch")},) if batch is None else None
            to_file(dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False)
    return network


def main(arguments: Sequence[str] | None = None) -> None:
    """Export the network named on the command line."""
    parser = argparse.ArgumentParser(description="Export a standard architecture with random weights.")
    parser.add_argument("name", choices=list(NETWORKS))
    parser.add_argument("path", type=Path, help="the ONNX file to write")
    parser.add_argument("--exporter", choices=("legacy", "dynamo"), default="legacy")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the channels")
    parser.add_argument("--depth", type=float, default=1.0, help="factor on the number of blocks")
    parser.add_argument("--image", type=int, help="height and width of the input (default: the paper's)")
    parser.add_argument("--classes", type=int, help="number of classes (default: the paper's)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--symbolic-batch", action="store_const", const=None, dest="batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--opset", type=int, default=18)
    options = parser.parse_args(arguments)
    try:
        network = export(**vars(options))
    except ValueError as error:
        parser.error(str(error))
    parameters = sum(parameter.numel() for parameter in network.module.parameters())
    print(f"{options.path}: {options.name}, {parameters:,} parameters, input {network.input_shape}")


if __name__ == "__main__":
    main()
