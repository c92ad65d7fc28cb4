"""One block, Parameter or head used at several places; parameters used without layers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.nets import Net, conv_bn, head
from tests.patterns.builder import checked, framed, tail, width


def test_a_block_called_twice() -> None:
    result = checked(framed(lambda n, x: n.tail(n.b(n.b(n.stem(x)))), b=conv_bn(16, 16), tail=tail(16)))
    assert width(result.model.b) == width(result.model.stem) < 16


def test_a_block_called_on_two_streams() -> None:
    layers = {"down": conv_bn(16, 16, stride=2), "b": conv_bn(16, 12), "head": head(12)}
    result = checked(framed(lambda n, x: n.head(n.b(y := n.stem(x))) + n.head(n.b(n.down(y))), **layers))
    assert width(result.model.down) == width(result.model.stem) < 16


def test_one_module_under_two_names() -> None:
    block = conv_bn(16, 16)
    result = checked(framed(lambda n, x: n.tail(n.b(n.a(n.stem(x)))), a=block, b=block, tail=tail(16)))
    assert result.model.a is result.model.b


def test_one_parameter_in_two_modules() -> None:
    first, second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    second.weight = first.weight
    layers = {"a": first, "na": nn.BatchNorm2d(16), "b": second, "nb": nn.BatchNorm2d(16), "tail": tail(16)}
    net = framed(lambda n, x: n.tail(F.relu(n.nb(n.b(F.relu(n.na(n.a(n.stem(x)))))))), **layers)
    result = checked(net)
    assert result.model.a.weight is result.model.b.weight
    assert result.model.b.in_channels == result.model.b.out_channels < 16


def test_a_parameter_used_forwards_and_transposed() -> None:
    """A tied autoencoder."""

    def forward(n, x):
        z = F.relu(n.norm(n.encode(n.stem(x))))
        return n.tail(n.last(F.conv_transpose2d(z, n.encode.weight, padding=1)))

    layers = {"encode": nn.Conv2d(16, 12, 3, padding=1), "norm": nn.BatchNorm2d(12), "last": nn.BatchNorm2d(16)}
    result = checked(framed(forward, **layers, tail=tail(16)))
    assert width(result.model.encode) < 12


def test_feature_pyramid_with_shared_heads() -> None:
    def forward(n, x):
        c1 = n.stem(x)
        c2 = n.c2(c1)
        p2 = n.l2(c2)
        p1 = n.l1(c1) + F.interpolate(p2, scale_factor=2.0)
        return {"boxes": [n.box(p) for p in (p1, p2)], "classes": [n.cls(p) for p in (p1, p2)]}

    layers = {"c2": conv_bn(16, 24, stride=2), "l1": conv_bn(16, 16, 1), "l2": conv_bn(24, 16, 1)}
    heads = {name: nn.Sequential(conv_bn(16, 16), nn.Conv2d(16, out, 1)) for name, out in (("box", 4), ("cls", 3))}
    result = checked(framed(forward, **layers, **heads))
    assert width(result.model.l1) == width(result.model.l2) == result.model.box[0][0].in_channels < 16


class Raw(nn.Module):
    """Parameters without layers, used through `torch.nn.functional`."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(12, 16, 3, 3) / 12), nn.Parameter(torch.randn(12))
        self.scale, self.shift = nn.Parameter(torch.rand(12)), nn.Parameter(torch.randn(12))
        self.register_buffer("mean", torch.zeros(12))
        self.register_buffer("var", torch.ones(12))
        self.v = nn.Parameter(torch.randn(16, 12) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, self.w, self.b, padding=1)
        x = F.relu(F.batch_norm(x, self.mean, self.var, self.scale, self.shift, self.training))
        return F.linear(x.permute(0, 2, 3, 1), self.v).permute(0, 3, 1, 2)


def test_raw_parameters_with_functional_calls() -> None:
    net = framed(lambda n, x: n.tail(n.raw(n.stem(x))), raw=Raw(), tail=tail(16))
    with torch.no_grad():
        net.raw.scale[:6] = 0
        net.raw.shift[:6] = 0
    result = checked(net, free=16 + 12 + 16)
    assert result.model.raw.w.shape[0] == result.model.raw.v.shape[1] == result.model.raw.mean.shape[0] < 12


def test_parameters_in_a_list_and_a_matrix_product() -> None:
    class Mix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.ParameterList([nn.Parameter(torch.randn(16, 8) / 4), nn.Parameter(torch.randn(8, 16) / 4)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.permute(0, 2, 3, 1)
            for matrix in self.maps:
                y = (y @ matrix).relu()
            return y.permute(0, 3, 1, 2)

    checked(framed(lambda n, x: n.tail(n.mix(n.stem(x))), mix=Mix(), tail=tail(16)))


def test_a_learned_embedding_of_channels_and_positions() -> None:
    class Embed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.randn(1, 16, 8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.position

    result = checked(framed(lambda n, x: n.tail(n.embed(n.stem(x))), embed=Embed(), tail=tail(16)))
    assert result.model.embed.position.shape == (1, width(result.model.stem), 8, 8)


def test_weighted_fusion_of_inputs() -> None:
    """BiFPN: one learned weight per input."""

    class Fuse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.rand(2))

        def forward(self, *streams: torch.Tensor) -> torch.Tensor:
            w = F.relu(self.w)
            return sum(w[i] / (w.sum() + 1e-4) * s for i, s in enumerate(streams))

    layers = {"a": conv_bn(16, 16), "fuse": Fuse(), "tail": tail(16)}
    checked(framed(lambda n, x: n.tail(n.fuse(y := n.stem(x), n.a(y))), **layers))


def test_parallel_experts_stacked_by_a_learned_mixture() -> None:
    """CondConv: a kernel mixed per network from several; its channels follow the mixture."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.mix = nn.Parameter(torch.randn(3, 16, 16, 1, 1) / 4), nn.Parameter(torch.rand(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(x, (self.mix.view(3, 1, 1, 1, 1) * self.weight).sum(0))

    layers = {"mixed": Mixed(), "norm": nn.BatchNorm2d(16), "tail": tail(16)}
    result = checked(framed(lambda n, x: n.tail(F.relu(n.norm(n.mixed(n.stem(x))))), **layers))
    assert result.model.mixed.weight.numel() < 768


def test_siamese() -> None:
    net = Net(
        lambda n, a, b: n.fc((n.body(a) - n.body(b)).abs()),
        body=nn.Sequential(conv_bn(3, 16), conv_bn(16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        fc=nn.Linear(16, 1),
    )
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    checked(net, (x, x.flip(3)))
