"""Channels that are cut into parts: chunk, split, slices, shuffles."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from tests.nets import conv_bn, randomized
from tests.patterns.builder import X, checked, framed, refusal, tail, width


def swapped(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Parts in reverse order, so that a wrong cut cannot go unnoticed."""
    return torch.cat([F.relu(part) * (index + 1) for index, part in enumerate(parts[::-1])], 1)


def test_chunk() -> None:
    checked(framed(lambda n, x: n.tail(swapped(n.stem(x).chunk(2, 1))), tail=tail(16)), parts=2, off=0.04)


def test_chunk_into_four_of_which_one_is_used() -> None:
    checked(framed(lambda n, x: n.tail(n.stem(x).chunk(4, 1)[2]), tail=tail(4)), parts=4)


def test_split_by_a_size_computed_from_the_shape() -> None:
    net = framed(lambda n, x: n.tail(swapped((y := n.stem(x)).split(y.shape[1] // 2, 1))), tail=tail(16))
    checked(net, parts=2, off=0.04)


def test_split_by_a_literal_size() -> None:
    result = checked(framed(lambda n, x: n.tail(swapped(n.stem(x).split(8, 1))), tail=tail(16)), free=16)
    assert width(result.model.stem) == 16
    assert "relies on a fixed size" in refusal(result, "split").reason


def test_split_into_literal_unequal_parts() -> None:
    result = checked(framed(lambda n, x: n.tail(swapped(n.stem(x).split([4, 12], 1))), tail=tail(16)), parts=4, free=16)
    assert width(result.model.stem) == 16
    refusal(result, "split")


def test_split_by_sizes_kept_in_a_list() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes = [6, 10]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = x.split(self.sizes, 1)
            return torch.cat([second.tanh(), first], 1)

    net = framed(lambda n, x: n.tail(n.parts(n.stem(x))), parts=Parts(), tail=tail(16))
    result = checked(net)
    assert sum(result.model.parts.sizes) == width(result.model.stem) < 16
    assert min(result.model.parts.sizes) == 1


class C2f(nn.Module):
    """The block of YOLOv8 as ultralytics writes it: chunk, and a list that grows by concatenation."""

    def __init__(self, c1: int, c2: int, n: int = 2) -> None:
        super().__init__()
        self.c = c2 // 2
        self.cv1, self.cv2 = conv_bn(c1, 2 * self.c, 1), conv_bn((2 + n) * self.c, c2, 1)
        self.m = nn.ModuleList(nn.Sequential(conv_bn(self.c, self.c), conv_bn(self.c, self.c)) for _ in range(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            y.append(y[-1] + block(y[-1]))
        return self.cv2(torch.cat(y, 1))


class C2fSplit(C2f):
    """Its twin for export: split by the width the module keeps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1))
        y.extend(y[-1] + block(y[-1]) for block in self.m)
        return self.cv2(torch.cat(y, 1))


def test_c2f_of_yolov8() -> None:
    result = checked(framed(lambda n, x: n.tail(n.block(n.stem(x))), block=C2f(16, 16), tail=tail(16)), parts=2)
    assert width(result.model.block.cv1) < 16
    assert width(result.model.block.m[0][1]) < 8


def test_c2f_split_by_the_width_it_keeps() -> None:
    result = checked(framed(lambda n, x: n.tail(n.block(n.stem(x))), block=C2fSplit(16, 16), tail=tail(16)), parts=2)
    assert result.model.block.c == width(result.model.block.m[0][1]) < 8


class Sliced(nn.Module):
    """Takes channels apart at a bound it keeps."""

    def __init__(self, bound: int) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, self.bound :].tanh(), x[:, : self.bound]], 1)


def test_slices_by_a_stored_integer() -> None:
    for bound, parts in ((8, 2), (6, 1)):
        net = framed(lambda n, x: n.tail(n.part(n.stem(x))), part=Sliced(bound), tail=tail(16))
        result = checked(net, parts=parts, off=0.04)
        assert 0 < result.model.part.bound < bound


def test_slices_by_literal_bounds() -> None:
    net = framed(lambda n, x: n.tail(torch.cat([(y := n.stem(x))[:, 6:].tanh(), y[:, :6]], 1)), tail=tail(16))
    result = checked(net, parts=8, free=16)
    assert width(result.model.stem) == 16
    refusal(result, "slice")


def test_slices_with_a_stride() -> None:
    net = framed(lambda n, x: n.tail(torch.cat([(y := n.stem(x))[:, ::2].tanh(), y[:, 1::2]], 1)), tail=tail(16))
    checked(net)


def test_channel_shuffle_by_hand_between_grouped_convolutions() -> None:
    def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
        b, c, h, w = x.shape
        return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)

    layers = {"a": conv_bn(16, 16, 1, groups=2), "b": conv_bn(16, 16, 1, groups=2), "tail": tail(16)}
    result = checked(framed(lambda n, x: n.tail(n.b(shuffle(n.a(n.stem(x)), 2))), **layers), parts=4, dead=0.2)
    assert width(result.model.a) < 16


def test_channel_shuffle_built_in() -> None:
    layers = {"a": conv_bn(16, 16, 1, groups=2), "shuffle": nn.ChannelShuffle(2), "tail": tail(16)}
    result = checked(framed(lambda n, x: n.tail(n.shuffle(n.a(n.stem(x)))), **layers), parts=2)
    assert width(result.model.a) < 16


def test_channel_shuffle_that_ties_everything() -> None:
    """Groups that go as a whole, then dealt out to all parts: every channel hangs on every other."""
    layers = {"a": conv_bn(16, 16, 1, groups=4), "shuffle": nn.ChannelShuffle(4), "tail": tail(16)}
    result = checked(framed(lambda n, x: n.tail(n.shuffle(n.a(n.stem(x)))), **layers), free=16)
    assert refusal(result, "is mixed across channels").site == "shuffle"


def test_channel_shuffle_is_numerically_right() -> None:
    """A shuffle followed by a linear map of known weights, computed by hand on the channels that stay."""
    net = framed(lambda n, x: n.c(F.channel_shuffle(n.stem(x), 4)), c=nn.Conv2d(16, 2, 1))
    model = randomized(net).double().eval()
    result = bnprune.prune(model, X, ratio=0.5)
    keep = next(torch.tensor(cut.keep) for cut in result.plan.cuts if ("stem.1.weight", 0) in cut.at)
    order = torch.arange(16).view(4, 4).t().reshape(-1)
    place = [order.tolist().index(channel) for channel in range(16)]
    y = model.stem(X)[:, keep]
    expected = torch.einsum("oc,bchw->bohw", model.c.weight[:, [place[k] for k in keep.tolist()], 0, 0], y)
    got = result.model.eval()(X) - result.model.c.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_gated_linear_unit() -> None:
    checked(framed(lambda n, x: n.tail(F.glu(n.stem(x), 1)), tail=tail(8)), parts=2, off=0.04)
