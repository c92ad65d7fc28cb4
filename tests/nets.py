"""Small networks, one per way in which channels are tied together. Shared by all tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


def conv_bn(channels: int, out: int, kernel: int = 3, *, groups: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )


class Net(nn.Module):
    """A network given as layers and a forward function over them."""

    def __init__(self, forward: Callable[..., torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        return self._forward(self, *args, **kwargs)


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def chain() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), conv_bn(8, 12), nn.MaxPool2d(2), conv_bn(12, 16), head(16))


def residual() -> nn.Module:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        return net.head(F.relu(x + net.branch(x)))

    branch = nn.Sequential(conv_bn(8, 12), nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8))
    return Net(forward, stem=conv_bn(3, 8), branch=branch, head=head(8))


def concat() -> nn.Module:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        return net.head(net.join(torch.cat([x, net.left(x), net.right(x)], 1)))

    return Net(
        forward, stem=conv_bn(3, 8), left=conv_bn(8, 6, 1), right=conv_bn(8, 10), join=conv_bn(24, 12), head=head(12)
    )


def depthwise() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8, 1), conv_bn(8, 8, groups=8), conv_bn(8, 12, 1), head(12))


def grouped() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16, 1), conv_bn(16, 16, groups=8), conv_bn(16, 12, groups=2), head(12))


def squeeze_excitation() -> nn.Module:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        return net.head(net.last(x * net.gate(x.mean((2, 3), keepdim=True))))

    gate = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Sigmoid())
    return Net(forward, stem=conv_bn(3, 16), gate=gate, last=conv_bn(16, 8), head=head(8))


def flatten() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 16, 24),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.Linear(24, 5),
    )


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))


def signal() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 12, 3), nn.BatchNorm1d(12), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 12, 3), nn.BatchNorm3d(12), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


MOTIFS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (chain, (1, 3, 8, 8)),
    "residual": (residual, (1, 3, 8, 8)),
    "concat": (concat, (1, 3, 8, 8)),
    "depthwise": (depthwise, (1, 3, 8, 8)),
    "grouped": (grouped, (1, 3, 8, 8)),
    "squeeze_excitation": (squeeze_excitation, (1, 3, 8, 8)),
    "flatten": (flatten, (1, 3, 8, 8)),
    "perceptron": (perceptron, (1, 3, 8, 8)),
    "signal": (signal, (1, 3, 16)),
    "volume": (volume, (1, 3, 6, 6, 6)),
}
"""Every motif with the shape of its input."""


def norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Every BatchNorm of a network."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a network random scale factors, shifts and statistics, so that every channel counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in norms(model):
            if norm.affine:
                norm.weight.copy_(0.2 + torch.rand(norm.num_features, generator=generator))
                norm.bias.copy_(torch.randn(norm.num_features, generator=generator) * 0.3)
            if norm.track_running_stats:
                norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator) * 0.3)
                norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
    return model


def kill(model: nn.Module, parts: int = 1) -> nn.Module:
    """Set γ = β = 0 on half of the positions of every BatchNorm: these channels carry nothing.

    The dead ones are the first half of each of `parts` equal parts, as layers of so many groups need it; layers too
    narrow for so many parts are one part.
    """
    with torch.no_grad():
        for norm in (norm for norm in norms(model) if norm.affine):
            size = norm.num_features // parts if norm.num_features >= 2 * parts else norm.num_features
            dead = torch.arange(norm.num_features) % size < size // 2
            norm.weight[dead] = 0
            norm.bias[dead] = 0
    return model


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    """Reproducible normal noise in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(model: nn.Module, *args: torch.Tensor) -> torch.Tensor:
    """Run a network in eval mode and float64."""
    model = model.double().eval()
    with torch.no_grad():
        result: torch.Tensor = model(*args)
    return result
