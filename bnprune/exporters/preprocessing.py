"""Networks that normalise their inputs themselves, so that an exported file takes plain pixel values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bnprune.exporters.parity import dtype_of

_LARGEST_BYTE = 255


class WithPreprocessing(nn.Module):
    """A network that normalises its inputs: it takes pixel values between 0 and 1, or bytes.

    Args:
        network: Takes normalised inputs (N, C, H, W).
        mean: Subtracted from pixel values between 0 and 1, one number per channel.
        std: Divided by, one number per channel.
        byte_inputs: Take pixel values as bytes: uint8, from 0 to 255.
    """

    mean: torch.Tensor
    std: torch.Tensor
    """Both are of pixel values as they come in."""

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], *, byte_inputs: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.byte_inputs = byte_inputs
        first = next(network.parameters())
        white = _LARGEST_BYTE if byte_inputs else 1
        for name, values in (("mean", mean), ("std", std)):
            of_pixels = torch.tensor([white * value for value in values], dtype=first.dtype, device=first.device)
            self.register_buffer(name, of_pixels.view(-1, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the network returns for the normalised pixels."""
        if self.byte_inputs:
            pixels = pixels.to(self.mean.dtype)
        outputs: torch.Tensor = self.network((pixels - self.mean) / self.std)
        return outputs

    def pixels(self, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the pixel values of normalised batches; bytes are rounded."""
        for batch in batches:
            values = batch.to(self.mean) * self.std + self.mean
            yield values.round().clamp(0, _LARGEST_BYTE).to(torch.uint8) if self.byte_inputs else values


@dataclass(frozen=True, slots=True)
class InputValues:
    """The numbers that a network takes."""

    dtype: torch.dtype
    normalised: bool = True
    """False if the network normalises pixel values itself."""

    @property
    def white(self) -> int:
        """The largest value of a pixel, before it is normalised: 255 for bytes, otherwise 1."""
        return _LARGEST_BYTE if self.dtype == torch.uint8 else 1

    @property
    def type_name(self) -> str:
        """The type, such as "float32"."""
        return str(self.dtype).removeprefix("torch.")


def input_values_of(model: nn.Module) -> InputValues:
    """Return the numbers that a network takes: in the type of its parameters, unless it takes bytes."""
    if not isinstance(model, WithPreprocessing):
        return InputValues(dtype_of(model))
    return InputValues(torch.uint8 if model.byte_inputs else dtype_of(model), normalised=False)
