"""ResNets for 32x32 images: post-activation (He et al. 2016a, section 4.2) and pre-activation (He et al. 2016b)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def _conv3x3(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride, 1, bias=False)


class ZeroPad(nn.Module):
    """The parameter-free shortcut: every second pixel, and new channels filled with zeros ("option A")."""

    def __init__(self, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = before
        self.after = after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, before + C + after, H/stride, W/stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, out, stride)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = _conv3x3(out, out)
        self.bn2 = nn.BatchNorm2d(out)
        extra = out - channels
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or extra:
            self.shortcut = ZeroPad(stride, extra // 2, extra - extra // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, out, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of basic blocks, 16, 32 and 64 channels wide.

    Args:
        depth: 6n + 2, such as 20, 32, 44, 56 or 110.
        num_classes: Outputs of the classifier.
        in_channels: Channels of the input images.
        width: Channels of the first stage.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth: must be 6n + 2, such as 20 or 56 (got {depth})")
        self.conv1 = _conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        stages = []
        for stage in range(3):
            blocks = []
            for block in range((depth - 2) // 6):
                out = width * 2**stage
                blocks.append(BasicBlock(channels, out, 2 if stage and not block else 1))
                channels = out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes)."""
        y = self.stages(F.relu(self.bn1(self.conv1(x))))
        return self.fc(self.pool(y).flatten(1))  # type: ignore[no-any-return]


class PreActBottleneck(nn.Module):
    """BatchNorm and ReLU before each of three convolutions (1x1, 3x3, 1x1), beside a shortcut."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        out = planes * 4
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, stride)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, 4 * planes, H/stride, W/stride)."""
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        y = self.conv3(F.relu(self.bn3(y)))
        return y + self.shortcut(x)  # type: ignore[no-any-return]


class PreResNet(nn.Module):
    """Three stages of pre-activation bottlenecks with 16, 32 and 64 planes.

    Args:
        depth: 9n + 2, such as 164.
        num_classes: Outputs of the classifier.
        in_channels: Channels of the input images.
    """

    def __init__(self, depth: int = 164, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 11 or depth % 9 != 2:
            raise ValueError(f"depth: must be 9n + 2, such as 164 (got {depth})")
        self.conv1 = _conv3x3(in_channels, 16)
        channels = 16
        stages = []
        for stage in range(3):
            blocks = []
            for block in range((depth - 2) // 9):
                planes = 16 * 2**stage
                blocks.append(PreActBottleneck(channels, planes, 2 if stage and not block else 1))
                channels = planes * 4
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes)."""
        y = F.relu(self.bn(self.stages(self.conv1(x))))
        return self.fc(self.pool(y).flatten(1))  # type: ignore[no-any-return]
