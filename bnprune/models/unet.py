"""A small U-Net for segmentation (Ronneberger, Fischer & Brox 2015), with BatchNorm."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def _block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Three levels of resolution; the decoder reads the features of the encoder at each of them.

    Args:
        num_classes: Classes of a pixel, with the background.
        in_channels: Channels of the input images.
        width: Channels of the first level; those of the others are 2 and 4 times as many.
    """

    def __init__(self, num_classes: int = 11, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.encode1 = nn.Sequential(_block(in_channels, width), _block(width, width))
        self.encode2 = nn.Sequential(_block(width, 2 * width), _block(2 * width, 2 * width))
        self.encode3 = nn.Sequential(_block(2 * width, 4 * width), _block(4 * width, 4 * width))
        self.decode2 = _block(6 * width, 2 * width)
        self.decode1 = _block(3 * width, width)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes, H, W)."""
        fine = self.encode1(x)
        middle = self.encode2(F.max_pool2d(fine, 2))
        coarse = self.encode3(F.max_pool2d(middle, 2))
        middle = self.decode2(torch.cat([middle, F.interpolate(coarse, size=middle.shape[-2:])], 1))
        fine = self.decode1(torch.cat([fine, F.interpolate(middle, size=fine.shape[-2:])], 1))
        return self.head(fine)  # type: ignore[no-any-return]
