"""Networks that normalise their inputs themselves, so that an exported file takes plain pixel values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn


class WithPreprocessing(nn.Module):
    """A network that normalises its inputs: it takes pixel values between 0 and 1.

    Args:
        network: Takes normalised inputs (N, C, H, W).
        mean: Subtracted, one number per channel.
        std: Divided by, one number per channel.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        first = next(network.parameters())
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=first.dtype, device=first.device).view(-1, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the network returns for the normalised pixels."""
        outputs: torch.Tensor = self.network((pixels - self.mean) / self.std)
        return outputs

    def pixels(self, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the pixel values of normalised batches."""
        for batch in batches:
            yield batch.to(self.mean) * self.std + self.mean
