"""Convolutions of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from tests.nets import Net, conv_bn, head, noise, randomized
from tests.patterns.builder import X, assert_trains, assert_unchanged, checked, framed, tail, width


def test_depthwise() -> None:
    result = checked(framed(lambda n, x: n.tail(n.dw(n.stem(x))), dw=conv_bn(16, 16, groups=16), tail=tail(16)))
    assert result.model.dw[0].groups == width(result.model.stem) < 16


def test_depthwise_with_a_multiplier() -> None:
    result = checked(framed(lambda n, x: n.tail(n.dw(n.stem(x))), dw=conv_bn(16, 32, groups=16), tail=tail(32)))
    assert width(result.model.dw) == 2 * result.model.dw[0].groups < 32


@pytest.mark.parametrize(("groups", "parts"), [(2, 2), (4, 1), (8, 1)])
def test_grouped(groups: int, parts: int) -> None:
    net = framed(lambda n, x: n.tail(n.g(n.stem(x))), g=conv_bn(16, 16, groups=groups), tail=tail(16))
    assert width(checked(net, parts=parts, off=0.05).model.g) < 16


def test_groups_equal_to_a_single_output() -> None:
    """`groups == out_channels == 1` is an ordinary convolution, not a depthwise one."""
    net = framed(lambda n, x: n.tail(n.one(n.stem(x))), one=nn.Conv2d(16, 1, 3, groups=1), tail=tail(1))
    assert checked(net).model.one.in_channels < 16


@pytest.mark.parametrize(("groups", "parts"), [(1, 1), (2, 2), (16, 1)])
def test_transposed(groups: int, parts: int) -> None:
    up = nn.Sequential(nn.ConvTranspose2d(16, 16, 4, 2, 1, groups=groups, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    result = checked(framed(lambda n, x: n.tail(n.up(n.stem(x))), up=up, tail=tail(16)), parts=parts)
    assert width(result.model.up) < 16


def test_dilated() -> None:
    dilated = nn.Sequential(nn.Conv2d(16, 16, 3, padding=2, dilation=2), nn.BatchNorm2d(16), nn.ReLU())
    result = checked(framed(lambda n, x: n.tail(n.d(n.stem(x))), d=dilated, tail=tail(16)))
    assert result.model.d[0].dilation == (2, 2)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_one_two_and_three_dimensions(dims: int) -> None:
    conv, up = getattr(nn, f"Conv{dims}d"), getattr(nn, f"ConvTranspose{dims}d")
    norm, pool = getattr(nn, f"BatchNorm{dims}d"), getattr(nn, f"AdaptiveAvgPool{dims}d")
    net = nn.Sequential(
        conv(3, 16, 3, padding=1), norm(16), nn.ReLU(), conv(16, 16, 3, padding=1, groups=16), norm(16), nn.ReLU(),
        up(16, 16, 2), norm(16), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    checked(net, noise(2, 3, *[6] * dims))


def test_pixel_shuffle() -> None:
    net = framed(lambda n, x: n.tail(n.up(n.stem(x))), up=nn.PixelShuffle(2), tail=tail(4))
    assert width(checked(net, off=0.05).model.stem) % 4 == 0


def test_pixel_unshuffle() -> None:
    net = framed(lambda n, x: n.tail(n.down(n.stem(x))), down=nn.PixelUnshuffle(2), tail=tail(64))
    assert checked(net).model.tail[0][0].in_channels % 4 == 0


def test_zero_padded_shortcut() -> None:
    """ResNet's option A: the narrow stream meets zeros in the wide one; channels beyond the narrow part stay."""

    def forward(n, x):
        x = n.stem(x)
        return n.tail(F.relu(n.wide(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))))

    wide = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24))
    checked(framed(forward, wide=wide, tail=tail(24)), free=48, dead=0.2)


def test_unet_skip() -> None:
    def forward(n, x):
        x = n.stem(x)
        y = n.up(n.deep(n.down(x)))
        return n.tail(torch.cat([x, y], 1))

    layers = {
        "down": conv_bn(16, 32, stride=2), "deep": conv_bn(32, 32),
        "up": nn.Sequential(nn.ConvTranspose2d(32, 16, 2, 2), nn.BatchNorm2d(16), nn.ReLU()), "tail": tail(32),
    }  # fmt: skip
    checked(framed(forward, **layers))


def test_unet_that_pads_to_the_skip_and_interpolates() -> None:
    def forward(n, x):
        x = n.stem(x)
        y = F.interpolate(n.down(x), scale_factor=2, mode="bilinear")
        y = F.pad(y, [0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]])
        return n.out(n.join(torch.cat([y, x], 1)))

    layers = {"down": conv_bn(16, 32, stride=2), "join": conv_bn(48, 16), "out": nn.Conv2d(16, 2, 1)}
    checked(framed(forward, **layers), X[:, :, :7, :7])


def test_convolutions_without_norm_beside_ones_with() -> None:
    """A layer without γ keeps its width, is named, and loses the inputs its neighbours give up."""
    net = framed(lambda n, x: n.tail(F.relu(n.bare(n.stem(x)))), bare=nn.Conv2d(16, 12, 3), tail=tail(12))
    result = checked(net)
    assert width(result.model.bare) == 12
    assert result.model.bare.in_channels < 16
    assert any(why.site == "bare" and "no BatchNorm" in why.reason for why in result.report.refusals)


def test_inception_like_branches_with_pooling() -> None:
    def forward(n, x):
        x = n.stem(x)
        return n.head(torch.cat([n.a(x), n.b(x), n.c(F.max_pool2d(x, 3, 1, 1))], 1))

    layers = {"a": conv_bn(16, 8, 1), "b": conv_bn(16, 12), "c": conv_bn(16, 4, 1), "head": head(24)}
    checked(framed(forward, **layers))


def tied_to_what_stays() -> nn.Module:
    """A grouped convolution with two outputs per input ties what it reads to a stream of a literal width."""

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        x = n.wide(n.stem(x))
        return n.head(x + n.same(x.reshape(-1, 32, 64)).unflatten(2, (8, 8)))

    wide = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(32))
    return Net(forward, stem=conv_bn(3, 16), wide=wide, same=nn.Identity(), head=head(32))


def test_a_gate_stands_behind_a_grouped_convolution_where_nothing_could_go_without() -> None:
    net = randomized(tied_to_what_stays())
    with torch.no_grad():
        for norm, dead in ((net.stem[1], 8), (net.wide[1], 16)):
            norm.weight[:dead], norm.bias[:dead] = 0, 0.5 if norm is net.wide[1] else 0
    result = bnprune.prune(net, X.float(), ratio=0.5)
    assert [(gate.at, gate.kind, len(gate.keep)) for gate in result.plan.gates] == [("wide.1", "write", 16)]
    assert result.model.wide[0].groups == width(result.model.stem) == 8
    assert any(note.code == "gates.required" for note in result.report.notes)
    assert_unchanged(net, result.model, X)
    assert_trains(result.model, net, X)


@pytest.mark.parametrize("macs", [0.5, 0.4, 0.35])
def test_least_widths_give_way_where_gates_are_needed_too(macs: float) -> None:
    net = randomized(tied_to_what_stays())
    with torch.no_grad():
        net.wide[1].weight *= 0.2
    report = bnprune.prune(net, X.float(), macs=macs, criterion="gamma").report
    assert any(note.code == "gates.required" for note in report.notes)
    assert report.macs_after <= macs * report.macs_before


def test_no_gate_stands_behind_a_grouped_convolution_where_something_goes_anyway() -> None:
    net = nn.Sequential(tied_to_what_stays().wide, tail(32))
    assert not bnprune.prune(randomized(nn.Sequential(conv_bn(3, 16), net)), X.float(), ratio=0.5).plan.gates
