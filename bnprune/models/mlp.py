"""A multilayer perceptron with BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class MLP(nn.Module):
    """Linear, BatchNorm1d, ReLU per hidden layer, then a linear classifier.

    Args:
        num_classes: Outputs of the classifier.
        in_channels: Channels of the input images.
        image_size: Height and width of the input images; inputs have in_channels * image_size² features.
        hidden: Widths of the hidden layers.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, image_size: int = 28, hidden: Sequence[int] = (256,)
    ) -> None:
        super().__init__()
        features = in_channels * image_size**2
        layers: list[nn.Module] = [nn.Flatten()]
        for width in hidden:
            layers += [nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
            features = width
        self.layers = nn.Sequential(*layers, nn.Linear(features, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_channels, image_size, image_size) to logits (N, num_classes)."""
        return self.layers(x)  # type: ignore[no-any-return]
