"""The network and the data of own-network.yaml. Both functions are examples: replace them by your own.

The images are drawn here, so that the recipe runs as it is: a disc, a square or a cross, of some size, somewhere, with
noise.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

SIZE = 24


def network(width: int) -> nn.Module:
    """Return a network: any module that takes images (N, 1, 24, 24) and returns a score for each class (N, 3)."""

    def block(channels: int, out: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    return nn.Sequential(
        block(1, width // 2),
        nn.MaxPool2d(2),
        block(width // 2, width),
        nn.MaxPool2d(2),
        block(width, width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )


def data() -> tuple[Dataset, Dataset]:
    """Return two data sets of pairs (image tensor, label): for training, and for the test at the end.

    Images to validate with are held out from those for training; return three data sets to choose them yourself.
    """
    return shapes(1200, seed=0), shapes(300, seed=1)


def shapes(count: int, seed: int) -> Dataset:
    """Draw images (1, 24, 24) and their labels: 0 for a disc, 1 for a square, 2 for a cross."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=random)
    radius = torch.rand(count, 1, 1, generator=random) * 5 + 3
    middle = torch.rand(2, count, 1, 1, generator=random) * (SIZE - 2 * 8) + 8
    place = torch.arange(SIZE, dtype=torch.float32)
    down, right = (place.view(1, -1, 1) - middle[0]).abs(), (place.view(1, 1, -1) - middle[1]).abs()
    inside = torch.maximum(down, right) < radius
    drawn = [inside & (down.hypot(right) < radius), inside, inside & (torch.minimum(down, right) < radius / 3)]
    images = torch.stack(drawn)[labels, torch.arange(count)].float()
    noisy = images + 0.3 * torch.randn(images.shape, generator=random)
    return TensorDataset(noisy.unsqueeze(1), labels)
