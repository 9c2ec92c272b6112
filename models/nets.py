"""The networks, in PyTorch. Each is built without arguments and takes a batch of what its docstring names."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.data import PARENTS

__all__ = ["GraphConvNet", "MixedScaleDense", "ResNet", "UNet", "VisionTransformer"]


def _conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class ResidualBlock(nn.Module):
    """[N, inputs, H, W] → [N, outputs, H / stride, W / stride]: two 3x3 convolutions and a shortcut.

    The shortcut is a strided 1x1 convolution where the shape changes and the identity elsewhere.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.inner = nn.Sequential(*_conv_norm(inputs, outputs, stride=stride))
        self.outer = nn.Sequential(*_conv_norm(outputs, outputs))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_norm(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.outer(functional.relu(self.inner(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """Digits [N, 1, 8, 8] → logits [N, 10]: a stem, two blocks of 32, two of 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm(1, 32), nn.ReLU())
        self.blocks = nn.Sequential(
            ResidualBlock(32, 32),
            ResidualBlock(32, 32),
            ResidualBlock(32, 64, stride=2),
            ResidualBlock(64, 64),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.adaptive_avg_pool2d(self.blocks(self.stem(image)), 1)
        logits: Tensor = self.head(x.flatten(1))
        return logits

    def inner_norms(self) -> list[nn.BatchNorm2d]:
        """The BatchNorm after the inner convolution of each block; a scale of 0 there zeroes a filter."""
        inner = [block.get_submodule("inner.1") for block in self.blocks]
        return [norm for norm in inner if isinstance(norm, nn.BatchNorm2d)]


def _double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*_conv_norm(inputs, outputs), nn.ReLU(), *_conv_norm(outputs, outputs), nn.ReLU())


class UNet(nn.Module):
    """Circles [N, 1, H, W] → logits [N, 5, H, W], H and W multiples of 4: two levels down, 16 to 64 channels.

    Ronneberger et al., "U-Net" (2015): each decoder level sees the encoder's maps of its resolution, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder1 = _double_conv(1, 16)
        self.encoder2 = _double_conv(16, 32)
        self.bottom = _double_conv(32, 64)
        self.up2 = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.decoder2 = _double_conv(64, 32)
        self.up1 = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.decoder1 = _double_conv(32, 16)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        skip1 = self.encoder1(image)
        skip2 = self.encoder2(functional.max_pool2d(skip1, 2))
        x = self.bottom(functional.max_pool2d(skip2, 2))
        x = self.decoder2(torch.cat([self.up2(x), skip2], 1))
        x = self.decoder1(torch.cat([self.up1(x), skip1], 1))
        logits: Tensor = self.head(x)
        return logits


class MixedScaleDense(nn.Module):
    """Circles [N, 1, H, W] → logits [N, 5, H, W]: 28 layers of one channel each, all connected to all before.

    Pelt and Sethian, "A mixed-scale dense convolutional neural network for image analysis" (2018): layer i
    is one 3x3 convolution, dilated by 1 + i mod 10, of the image and all earlier maps; a 1x1 convolution of
    all of them gives the logits.
    """

    def __init__(self, depth: int = 28) -> None:
        super().__init__()
        dilations = [1 + i % 10 for i in range(depth)]
        self.layers = nn.ModuleList(nn.Conv2d(1 + i, 1, 3, padding=d, dilation=d) for i, d in enumerate(dilations))
        self.head = nn.Conv2d(1 + depth, 5, 1)
        for layer in self.layers:
            nn.init.normal_(layer.get_parameter("weight"), std=(2 / (9 * (1 + depth))) ** 0.5)
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, image: Tensor) -> Tensor:
        maps = [image]
        for layer in self.layers:
            maps.append(functional.relu(layer(torch.cat(maps, 1))))
        logits: Tensor = self.head(torch.cat(maps, 1))
        return logits


def _skeleton_adjacency() -> Tensor:
    """The bones and the joints themselves as a matrix [V, V] whose columns sum to 1."""
    adjacency = torch.eye(len(PARENTS))
    for joint, parent in enumerate(PARENTS[1:], start=1):
        adjacency[joint, parent] = adjacency[parent, joint] = 1
    return adjacency / adjacency.sum(0)


class GraphLayer(nn.Module):
    """[N, inputs, T, V] → [N, outputs, T, V]: three learned adjacencies, concat, 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        bones = _skeleton_adjacency()
        starts = (bones, bones @ bones, torch.eye(len(bones)))
        self.adjacencies = nn.ParameterList(nn.Parameter(start.clone()) for start in starts)
        self.mix = nn.Sequential(*_conv_norm(3 * inputs, outputs, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(torch.cat([x @ adjacency for adjacency in self.adjacencies], 1))
        return mixed


class GraphConvNet(nn.Module):
    """Skeletons [N, 3, 32, 20] → logits [N, 8]: graph layers, a temporal convolution and a dense head.

    After Sahbi's graph convolutional networks for skeleton-based recognition: several learned adjacency
    matrices a layer, and a fully connected layer over the channels of all joints, which holds most of the
    weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(*_conv_norm(3, 32, 1), nn.ReLU())
        self.graph1 = GraphLayer(32, 64)
        self.time = nn.Sequential(
            nn.Conv2d(64, 64, (5, 1), stride=(2, 1), padding=(2, 0), bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        )
        self.graph2 = GraphLayer(64, 64)
        self.hidden = nn.Linear(64 * len(PARENTS), 64)
        self.head = nn.Linear(64, 8)

    def forward(self, skeleton: Tensor) -> Tensor:
        x = functional.avg_pool2d(self.graph1(self.embed(skeleton)), (2, 1))
        x = self.graph2(self.time(x)).mean(2)
        logits: Tensor = self.head(functional.relu(self.hidden(x.flatten(1))))
        return logits


class Attention(nn.Module):
    """[N, tokens, width] → the same: multi-head self-attention with one joint projection for Q, K and V."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = functional.scaled_dot_product_attention(*qkv.unbind(0))
        projected: Tensor = self.projection(x.transpose(1, 2).reshape(batch, tokens, width))
        return projected


class TransformerBlock(nn.Module):
    """[N, tokens, width] → the same: attention and a perceptron, each normalised first and added."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.perceptron(self.norm2(x))
        return x


class VisionTransformer(nn.Module):
    """Digits [N, 1, 8, 8] → logits [N, 10]: 2x2 patches, a class token, four blocks of four heads."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, 4, 2 * width) for _ in range(4)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        # torch.export takes len(image), unlike image.shape[0], for a constant.
        patches = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(image.shape[0], -1, -1), patches], 1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits
