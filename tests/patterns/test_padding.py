"""Channels of zeros, and parts of a tensor that are written one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.nets import Net, conv_bn, head
from tests.patterns.builder import checked, framed, refusal, tail, width


def zeros_behind(n: Net, x: torch.Tensor, width: int) -> torch.Tensor:
    return torch.cat([x, x.new_zeros(x.shape[0], width - x.shape[1], *x.shape[2:])], 1)


def zeros_of_a_type(n: Net, x: torch.Tensor, width: int) -> torch.Tensor:
    padding = torch.empty(x.shape[0], width - x.shape[1], *x.shape[2:]).fill_(0).to(x.dtype)
    return torch.cat((x, padding), dim=1)


def padded(n: Net, x: torch.Tensor, width: int) -> torch.Tensor:
    return F.pad(x, (0, 0, 0, 0, 0, width - x.shape[1]))


def written_into_zeros(n: Net, x: torch.Tensor, width: int) -> torch.Tensor:
    out = x.new_zeros(x.shape[0], width, *x.shape[2:])
    out[:, : x.shape[1]] = x
    return out


def pyramid(widen: Callable[[Net, torch.Tensor, int], torch.Tensor]) -> Net:
    """A residual block whose shortcut is narrower than its branch: 16 and 24 channels."""

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        x = n.stem(x)
        y = n.branch(x)
        return n.tail(F.relu(y + widen(n, x, y.shape[1])))

    branch = nn.Sequential(conv_bn(16, 12), nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24))
    return framed(forward, branch=branch, tail=tail(24))


@pytest.mark.parametrize("widen", [zeros_behind, zeros_of_a_type, padded, written_into_zeros])
def test_zeros_go_with_the_channels_they_are_added_to(widen: Callable[[Net, torch.Tensor, int], torch.Tensor]) -> None:
    result = checked(pyramid(widen))
    kept = {cut.at[0]: cut.keep for cut in result.plan.cuts}
    behind = [c for keep in kept.values() for c in keep if c >= 16]
    assert len(behind) < 8 * len(kept)


def test_as_many_zeros_as_a_literal_says_stay() -> None:
    result = checked(pyramid(lambda n, x, _: F.pad(x, (0, 0, 0, 0, 4, 4))), free=16 + 12 + 16 + 16)
    assert refusal(result, "relies on a fixed size")
    assert width(result.model.branch[1]) == 16


def test_an_option_a_shortcut_with_a_width_in_an_attribute() -> None:
    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs))
            self.outputs = outputs

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, s = self.branch(x), F.avg_pool2d(x, 1, 2)
            zeros = s.new_zeros(s.shape[0], self.outputs - s.shape[1], *s.shape[2:])
            return F.relu(y + torch.cat([s, zeros], 1))

    net = framed(lambda n, x: n.head(n.b(n.a(n.stem(x)))), a=Block(16, 24), b=Block(24, 40), head=head(40))
    model = checked(net).model
    assert model.a.outputs == model.a.branch[0].out_channels < 24


def two_parts(write: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> Net:
    """Two layers of 16 and 8 channels write one tensor."""
    return framed(
        lambda n, x: n.tail(write(n.stem(x), n.a(x), n.b(x))), a=conv_bn(3, 16), b=conv_bn(3, 8), tail=tail(24)
    )


def in_turn(_: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = a.new_empty(a.shape[0], a.shape[1] + b.shape[1], *a.shape[2:])
    out[:, : a.shape[1]] = a
    out[:, a.shape[1] :] = b
    return out


def cropped(_: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """In the middle of the image only."""
    out = torch.zeros(a.shape[0], a.shape[1] + b.shape[1], *a.shape[2:], dtype=a.dtype)
    out[:, : a.shape[1], 2:-2, 2:-2] = a[:, :, 2:-2, 2:-2]
    out[:, a.shape[1] :, 1:, :] = b[..., 1:, :]
    return out


def copied(_: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(a.shape[0], a.shape[1] + b.shape[1], *a.shape[2:], dtype=a.dtype)
    out.narrow(1, 0, a.shape[1]).copy_(a)
    out.narrow(1, a.shape[1], b.shape[1]).add_(b)
    return out


@pytest.mark.parametrize("write", [in_turn, cropped, copied])
def test_parts_may_be_written_one_by_one(write: Callable[..., torch.Tensor]) -> None:
    result = checked(two_parts(write), off=0.05)
    assert width(result.model.a) < 16
    assert width(result.model.b) < 8


def test_a_part_at_a_fixed_place_keeps_its_channels() -> None:
    def write(_: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out = a.new_zeros(a.shape[0], 24, *a.shape[2:])
        out[:, :16] = a
        out[:, 16:] = b
        return out

    assert refusal(checked(two_parts(write), free=16), "fixed size")


def test_every_second_channel_may_be_written() -> None:
    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        a, b = n.a(x), n.b(x)
        out = a.new_zeros(a.shape[0], 2 * a.shape[1], *a.shape[2:])
        out[:, 0::2], out[:, 1::2] = a, b
        return n.tail(out)

    checked(Net(forward, a=conv_bn(3, 16), b=conv_bn(3, 16), tail=tail(32)))
