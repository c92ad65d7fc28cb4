"""VGG for 32x32 images, as Network Slimming lays it out: BatchNorm after every convolution, one linear classifier."""

from __future__ import annotations

import torch
from torch import nn

# Output channels of the convolutions, "M" for 2x2 max pooling (Simonyan & Zisserman 2015, table 1; the fifth pooling
# is a global average here, so inputs from 16x16 upwards fit).
_LAYOUTS: dict[int, tuple[int | str, ...]] = {
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    13: (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    16: (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512),
    19: (64, 64, "M", 128, 128, "M", *(256,) * 4, "M", *(512,) * 4, "M", *(512,) * 4),
}


class VGG(nn.Module):
    """Convolution, BatchNorm, ReLU in a chain; global average pooling; one linear layer.

    Args:
        depth: 11, 13, 16 or 19.
        num_classes: Outputs of the classifier.
        in_channels: Channels of the input images.
        width: Factor on every layer's output channels.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for entry in _LAYOUTS[depth]:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2))
                continue
            out = max(1, round(entry * width))
            layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            channels = out
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes)."""
        return self.classifier(self.pool(self.features(x)).flatten(1))  # type: ignore[no-any-return]
