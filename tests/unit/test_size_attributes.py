"""Sizes that modules keep in attributes shrink with the channels they count."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from tests.nets import conv_bn, head, kill, outputs, randomized

X = torch.zeros(1, 3, 8, 8)


class Splits(nn.Module):
    """Sizes of a split in a list, a tuple or integers, as MixNet, InceptionNeXt and FasterNet keep them."""

    def __init__(self, sizes) -> None:
        super().__init__()
        self.a, self.c = conv_bn(3, 12), nn.Sequential(conv_bn(12, 8), head(8))
        self.sizes = sizes if isinstance(sizes, list | tuple) else None
        self.first, self.second = 4, 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sizes = self.sizes if self.sizes is not None else [self.first, self.second]
        parts = torch.split(self.a(x), sizes, 1)
        return self.c(torch.cat([part * (i + 1) for i, part in enumerate(parts)], 1))


@pytest.mark.parametrize("sizes", [[4, 8], (3, 4, 5), [4, 4, 4], None])
def test_split_sizes_shrink_and_parts_are_independent(sizes) -> None:
    model = randomized(Splits(sizes))
    with torch.no_grad():
        model.a[1].weight.copy_(torch.tensor([0.01] * 2 + [1.0] * 10))
    result = bnprune.prune(model, X, ratio=2 / 20)
    slim = result.model
    kept = list(slim.sizes) if slim.sizes is not None else [slim.first, slim.second]
    expected = {2: [2, 8], 3: [1, 4, 5]}.get(len(kept)) if sizes != [4, 4, 4] else [2, 4, 4]
    assert kept == expected
    assert sum(kept) == slim.a[0].out_channels == 10
    assert type(slim.sizes) is type(model.sizes)
    assert not result.report.refusals
    assert (model.sizes, model.first, model.second) == (sizes, 4, 8), "the original is untouched"


def test_the_best_channel_of_a_part_stays_if_the_ratio_asks_for_all_of_it() -> None:
    model = randomized(Splits([4, 8]))
    with torch.no_grad():
        model.a[1].weight.copy_(torch.tensor([0.01, 0.01, 0.03, 0.01] + [1.0] * 8))
        model.c[0][1].weight.fill_(1.0)
    result = bnprune.prune(model, X, ratio=5 / 20)
    assert result.model.sizes[0] == 1
    assert result.model.a[1].weight[0].item() == pytest.approx(0.03)
    assert result.report.channels_before == 20


class Blur(nn.Module):
    """Anti-aliasing with a buffer, and the number of groups in an attribute of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.channels = conv_bn(3, 8), head(8), 8
        self.register_buffer("kernel", torch.full((8, 1, 3, 3), 1 / 9), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(F.conv2d(self.a(x), self.kernel, stride=2, groups=self.channels))


class Scales(nn.Module):
    """Res2Net: pieces of equal width, the width in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.width = conv_bn(3, 12), 4
        self.convs = nn.ModuleList([conv_bn(4, 4) for _ in range(2)])
        self.c = nn.Sequential(conv_bn(12, 8), head(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pieces = torch.split(self.a(x), self.width, 1)
        out = [pieces[0]]
        for conv, piece in zip(self.convs, pieces[1:], strict=True):
            out.append(conv(piece + out[-1]))
        return self.c(torch.cat(out, 1))


class Halves(nn.Module):
    """CSPNet: half of an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self.a, self.b = 8, conv_bn(3, 8), conv_bn(4, 4)
        self.c = nn.Sequential(conv_bn(8, 8), head(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.a(x).split(self.total // 2, 1)
        return self.c(torch.cat([left, self.b(right)], 1))


@pytest.mark.parametrize("build", [Blur, Scales, Halves])
def test_widths_in_attributes_shrink(build) -> None:
    result = bnprune.prune(randomized(build()), X, ratio=0.5)
    assert not result.report.refusals
    assert result.model.a[0].out_channels < build().a[0].out_channels
    again = bnprune.apply(bnprune.PruningPlan.from_json(result.plan.to_json()), randomized(build()))
    assert vars(again).keys() == vars(result.model).keys() - {"_bnprune_input"}  # a plan knows no example input
    again(X)


@pytest.mark.parametrize("build", [lambda: Splits([4, 8]), Blur, Halves])
def test_function_is_kept(build) -> None:
    torch.manual_seed(0)
    model = kill(randomized(build()).double(), 2 if build is Halves else 1)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    slim = bnprune.prune(model, x, ratio=0.25, proof=False).model
    torch.testing.assert_close(outputs(slim, x), outputs(model, x), rtol=0, atol=1e-10)


def test_an_integer_that_is_no_width_is_left_alone() -> None:
    """`heads` happens to equal the width; changing it does not help, so it keeps its value."""

    class Coincidence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c, self.repeats = conv_bn(3, 8), nn.Sequential(conv_bn(8, 8), head(8)), 8

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.c(y.view(1, 8, 8, 8) * len(range(self.repeats)))

    result = bnprune.prune(randomized(Coincidence()), X, ratio=0.5)
    assert result.model.repeats == 8
    assert result.model.a[0].out_channels == 8


def test_one_attribute_for_two_widths_keeps_both() -> None:
    class Contested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.width = conv_bn(3, 8), conv_bn(3, 8), 4
            self.c = nn.Sequential(conv_bn(16, 8), head(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = [*self.a(x).split(self.width, 1), *self.b(x).split(self.width, 1)]
            return self.c(torch.cat(parts[::-1], 1))

    model = randomized(Contested())
    with torch.no_grad():
        model.a[1].weight.mul_(0.01)
    result = bnprune.prune(model, X, ratio=0.4)
    assert result.model.width == 4
    assert result.model.a[0].out_channels == result.model.b[0].out_channels == 8


@pytest.mark.parametrize("proof", [True, False])
@pytest.mark.parametrize("groups", [8, property(lambda module: module.weight.shape[0])], ids=["class", "property"])
def test_a_size_that_a_class_keeps_is_not_set(groups, proof: bool) -> None:
    """What the class says holds for all of its objects: channels that rely on a number of its stay."""
    depthwise = type("Depthwise", (nn.Module,), {
        "groups": groups,
        "forward": lambda self, x: F.conv2d(x, self.weight, padding=1, groups=self.groups),
    })()  # fmt: skip
    depthwise.weight = nn.Parameter(torch.randn(8, 1, 3, 3))
    model = randomized(nn.Sequential(conv_bn(3, 8), depthwise, nn.BatchNorm2d(8), conv_bn(8, 8), head(8)))
    result = bnprune.prune(model, X, ratio=0.5, proof=proof)
    bnprune.apply(result.plan, model)
    assert result.model[1].weight.shape[0] == (8 if isinstance(groups, int) else result.model[0][0].out_channels)
    assert result.report.ratio_realised == 0.5
