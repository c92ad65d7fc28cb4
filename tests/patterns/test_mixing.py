"""Operators that mix elements in space: Fourier transforms, sorting."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.nets import Net, conv_bn
from tests.patterns.builder import checked, framed, refusal, tail


def filtered(n: Net, x: torch.Tensor) -> torch.Tensor:
    """A global filter, as in GFNet, equal for all channels."""
    spectrum = torch.fft.rfft2(x, norm="ortho")
    return torch.fft.irfft2(spectrum * torch.view_as_complex(n.filter), s=x.shape[-2:], norm="ortho")


def phases(n: Net, x: torch.Tensor) -> torch.Tensor:
    """Real and imaginary parts as further channels, as in FFC."""
    spectrum = torch.view_as_real(torch.fft.fft2(x)).permute(0, 1, 4, 2, 3)
    return spectrum.flatten(1, 2)[:, ::2]


def sorted_rows(n: Net, x: torch.Tensor) -> torch.Tensor:
    return x.sort(-1).values + x.sort(dim=2, stable=True).values


def largest(n: Net, x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).topk(16, dim=2).values.unflatten(2, (4, 4))


def aliased(n: Net, x: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=x.dtype).set_(x.detach())  # it has no gradient


def network(between: Callable[[Net, torch.Tensor], torch.Tensor]) -> Net:
    net = framed(lambda n, x: n.tail(between(n, n.a(n.stem(x)))), a=conv_bn(16, 16), tail=tail(16))
    net.filter = nn.Parameter(torch.rand(8, 5, 2) + 0.5)
    return net


@pytest.mark.parametrize("between", [filtered, phases, sorted_rows, largest, aliased])
def test_channels_pass_beside_space(between: Callable[[Net, torch.Tensor], torch.Tensor]) -> None:
    checked(network(between))


def test_channels_that_are_sorted_stay() -> None:
    assert refusal(checked(network(lambda n, x: x.sort(1).values), free=32), "is mixed across channels")
