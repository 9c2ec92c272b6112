"""Training, deterministic for one machine and one thread."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.data import Samples

__all__ = ["fit", "jitter", "mirror", "unchanged", "zero_filters"]

Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def unchanged(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """No augmentation."""
    return inputs, labels


def mirror(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Flip or transpose a batch and its label maps: one of the eight symmetries of the square."""
    for axis in (-1, -2):
        if torch.rand(()) < 0.5:
            images, labels = images.flip(axis), labels.flip(axis)
    return (images.mT, labels.mT) if torch.rand(()) < 0.5 else (images, labels)


def jitter(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Turn each image by about 8 degrees, scale it by about 8 %, and shift it by about half a pixel of 8."""
    count = len(images)
    angle, scale = 0.15 * torch.randn(count), 1 + 0.08 * torch.randn(count)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(count, 2, 2)
    transform = torch.cat([scale[:, None, None] * turn, 0.12 * torch.randn(count, 2, 1)], 2)
    grid = functional.affine_grid(transform, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False), labels


def fit(
    net: nn.Module,
    samples: Samples,
    epochs: int,
    rate: float,
    batch: int = 32,
    augment: Augment = unchanged,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train `net` in place with AdamW and cross-entropy on one warm-up and decay of the learning rate `rate`.

    Requires torch.manual_seed beforehand. Ensures evaluation mode. `after_step` runs after each step of the
    optimiser, for proximal steps and for weights held at zero.
    """
    inputs, labels = (torch.from_numpy(array) for array in samples)
    steps = epochs * math.ceil(len(inputs) / batch)
    optimiser = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps)
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(inputs)).split(batch):
            x, y = augment(inputs[chosen], labels[chosen])
            optimiser.zero_grad()
            functional.cross_entropy(net(x), y).backward()
            optimiser.step()
            schedule.step()
            after_step()
    net.eval()


def zero_filters(
    train: Callable[[Callable[[], None]], None], norms: list[nn.BatchNorm2d], share: float, shrink: float
) -> None:
    """Train twice so that at least `share` of the scales of each of `norms` end at exactly 0.

    `train(after_step)` trains the net that owns `norms`. The first time, each step also shrinks every scale
    towards 0 by `shrink`, the proximal step of an L1 penalty (Liu et al., "Network slimming", 2017); the
    second time, the smallest scales are held at 0. Folded into its convolution, such a BatchNorm leaves a
    filter of zeros and its own shift as the bias. Shifts start at 2, so that the constants these channels
    give are large and the net depends on them.
    """
    for norm in norms:
        nn.init.constant_(norm.bias, 2.0)
    scales = [norm.weight for norm in norms]
    train(lambda: _assign(scales, [functional.softshrink(scale, shrink) for scale in scales]))
    kept = [(scale.abs() > scale.abs().quantile(share)).float() for scale in scales]
    train(lambda: _assign(scales, [scale * keep for scale, keep in zip(scales, kept, strict=True)]))


@torch.no_grad()
def _assign(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
