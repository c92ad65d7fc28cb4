"""Blocks of known networks that combine several patterns, and operators nothing is known about."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from tests.nets import Net, conv_bn, randomized
from tests.patterns.builder import X, checked, framed, refusal, tail, width


def test_temporal_shift() -> None:
    """TSM: slices of a tensor are written, shifted, into another one of the same shape."""

    def forward(n, x):
        y = n.stem(x)
        out, fold = torch.zeros_like(y), y.shape[1] // 4
        out[:-1, :fold] = y[1:, :fold]
        out[1:, fold : 2 * fold] = y[:-1, fold : 2 * fold]
        out[:, 2 * fold :] = y[:, 2 * fold :]
        return n.tail(out)

    checked(framed(forward, tail=tail(16)), parts=4, off=0.07)


def test_two_layers_written_into_one_tensor_go_together() -> None:
    def forward(n, x):
        out = torch.zeros_like(n.stem(x))
        half = out.shape[1] // 2
        out[:, :half] = n.other(x)[:, :half].tanh()
        out[:, half:] = n.stem(x)[:, half:]
        return n.tail(out)

    result = checked(framed(forward, other=conv_bn(3, 16), tail=tail(16)), parts=2, off=0.05)
    assert width(result.model.other) == width(result.model.stem) < 16


def test_circular_padding() -> None:
    """Written piece by piece into an empty tensor."""
    conv = nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")
    result = checked(
        framed(lambda n, x: n.tail(n.c(n.stem(x)).relu()), c=nn.Sequential(conv, nn.BatchNorm2d(16)), tail=tail(16))
    )
    assert width(result.model.c) < 16


class Res2Net(nn.Module):
    """Parts of the channels pass through convolutions one after the other; the width is kept in an attribute."""

    def __init__(self, sizes: int | list[int]) -> None:
        super().__init__()
        self.width = sizes
        self.convs = nn.ModuleList(conv_bn(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.split(self.width, 1)
        out = [parts[0]]
        for conv, part in zip(self.convs, parts[1:], strict=True):
            out.append(conv(part if len(out) == 1 else out[-1] + part))
        return torch.cat(out, 1)


def test_res2net() -> None:
    result = checked(framed(lambda n, x: n.tail(n.b(n.stem(x))), b=Res2Net(4), tail=tail(16)), parts=4, off=0.07)
    assert result.model.b.width == width(result.model.b) < 4


def test_split_attention() -> None:
    """ResNeSt: two halves, weighted by a softmax over them, are added."""

    def forward(n, x):
        y = n.c(n.stem(x))
        b, halves = y.shape[0], y.view(y.shape[0], 2, -1, *y.shape[2:])
        scale = n.up(n.down(halves.sum(1).mean((2, 3), keepdim=True))).view(b, 2, -1).softmax(1)
        return n.tail((halves * scale[..., None, None]).sum(1))

    layers = {"c": conv_bn(16, 32, groups=2), "down": conv_bn(16, 8, 1), "up": nn.Conv2d(8, 32, 1), "tail": tail(16)}
    result = checked(framed(forward, **layers), parts=2, off=0.05)
    assert width(result.model.c) == width(result.model.up) < 32


def test_selective_kernels() -> None:
    """SKNet: branches are stacked and added with softmax weights."""

    def forward(n, x):
        y = n.stem(x)
        branches = torch.stack([n.a(y), n.b(y)], 1)
        z = n.z(branches.sum(1).mean((2, 3)))
        weights = torch.stack([n.p(z), n.q(z)], 1).softmax(1)[..., None, None]
        return n.tail((branches * weights).sum(1))

    linears = {"z": nn.Linear(16, 8), "p": nn.Linear(8, 16), "q": nn.Linear(8, 16)}
    result = checked(framed(forward, a=conv_bn(16, 16), b=conv_bn(16, 16), **linears, tail=tail(16)))
    assert result.model.p.out_features == width(result.model.a) < 16


def test_ghost_module() -> None:
    """Cheap depthwise features beside the real ones, cut to a kept number."""

    class Ghost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.oup, self.primary, self.cheap = 24, conv_bn(16, 12, 1), conv_bn(12, 12, groups=12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.primary(x)
            return torch.cat([y, self.cheap(y)], 1)[:, : self.oup]

    checked(framed(lambda n, x: n.tail(n.g(n.stem(x))), g=Ghost(), tail=tail(24)))


def test_coordinates_beside_channels() -> None:
    def forward(n, x):
        y = n.stem(x)
        rows = torch.linspace(-1, 1, 8, dtype=y.dtype).view(1, 1, 8, 1).expand(y.shape[0], 1, 8, 8)
        return n.tail(torch.cat([y, rows], 1))

    checked(framed(forward, tail=tail(17)))


KEPT = {
    "rolled": (lambda y: y.roll(1, 1), "is rotated"),
    "normalised": (lambda y: F.normalize(y, dim=1), "is reduced"),
    "centred": (lambda y: y - y.mean(1, keepdim=True), "is reduced"),
    "softmax": (lambda y: y.softmax(1), "is mixed"),
    "compared": (lambda y: torch.cdist(y, y), "without a rule (aten::_cdist_forward)"),
    "picked": (lambda y: y[:, [3, 1, 2]], "picked by an index"),
    "taken apart": (lambda y: torch.stack([p * 2 for p in y.unbind(1)], 1), "picked by its index"),
    "argmax": (lambda y: y * (y.argmax(1, keepdim=True) > 3), "is reduced"),
    "transposed": (lambda y: y.transpose(1, 2).repeat(1, 2, 1, 1), "is mixed across channels"),
    "numbered": (lambda y: y * torch.arange(1.0, 17).view(1, 16, 1, 1), "depend on the position"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_go_stays_with_site_reason_and_fix(name: str) -> None:
    operator, reason = KEPT[name]
    size = operator(torch.zeros(1, 16, 8, 8)).shape[1]
    net = framed(lambda n, x: n.tail(n.op(n.stem(x))), op=Net(lambda n, y: operator(y)), tail=tail(size))
    result = checked(net, free=16)
    assert width(result.model.stem) == 16
    assert refusal(result, reason).site in ("op", "tail.0.0")


def test_nothing_can_go() -> None:
    net = nn.Sequential(conv_bn(3, 16), nn.LayerNorm([16, 8, 8]), nn.Conv2d(16, 2, 1))
    with pytest.raises(
        bnprune.PruningError, match=r"nothing can be pruned(.|\n)*1: shares LayerNorm statistics.*fix: "
    ):
        bnprune.prune(randomized(net).double(), X, ratio=0.5)


def test_an_analysis_that_fails_names_operator_and_module(monkeypatch) -> None:
    from bnprune.channels.ops.spec import _SPECS, OpSpec

    monkeypatch.setitem(_SPECS, "aten::cat", OpSpec(labels=lambda *_: 1 / 0))
    net = framed(lambda n, x: n.tail(n.join(n.stem(x))), join=Net(lambda n, x: torch.cat([x, x], 1)), tail=tail(32))
    with pytest.raises(bnprune.TraceError, match=r"^join: the rule of aten::cat failed: division by zero"):
        bnprune.prune(net.double(), X, ratio=0.5)
