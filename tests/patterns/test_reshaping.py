"""Flatten, unflatten and other changes of shape."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.nets import conv_bn, head, noise
from tests.patterns.builder import X, checked, framed, refusal, tail, width


def mlp(features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))


def test_flatten_computed() -> None:
    net = framed(lambda n, x: n.fc(torch.flatten(n.b(n.stem(x)), 1)), b=conv_bn(16, 8, stride=2), fc=mlp(8 * 16))
    assert checked(net).model.fc[0].in_features % 16 == 0


def test_flatten_by_the_size_of_the_batch() -> None:
    net = framed(lambda n, x: n.fc(n.b(n.stem(x)).view(x.size(0), -1)), b=conv_bn(16, 8, stride=2), fc=mlp(8 * 16))
    checked(net)


def test_flatten_with_a_literal_width() -> None:
    net = framed(lambda n, x: n.fc(n.b(n.stem(x)).view(-1, 128)), b=conv_bn(16, 8, stride=2), fc=mlp(128))
    result = checked(net, free=32)
    assert width(result.model.b) == 8
    assert width(result.model.stem) < 16
    assert "view" in refusal(result, "relies on a fixed size").reason


def test_flatten_by_a_width_the_module_keeps() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.fc = 128, mlp(128)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.view(-1, self.features))

    result = checked(framed(lambda n, x: n.flat(n.b(n.stem(x))), b=conv_bn(16, 8, stride=2), flat=Flat()))
    assert result.model.flat.features == result.model.flat.fc[0].in_features < 128


def generator(view) -> nn.Module:
    """A linear layer whose output is made an image: a generator's first step."""
    layers = {"fc": nn.Sequential(nn.Linear(6, 512), nn.BatchNorm1d(512), nn.ReLU()), "tail": tail(32)}
    from tests.nets import Net

    return Net(lambda n, x: n.tail(view(n.fc(x))), **layers)


def test_unflatten_with_literal_sizes() -> None:
    result = checked(generator(lambda x: x.view(-1, 32, 4, 4)), noise(2, 6), free=16)
    assert width(result.model.fc) == 512
    assert "view" in refusal(result, "relies on a fixed size").reason


def test_unflatten_with_computed_channels() -> None:
    result = checked(generator(lambda x: x.view(x.shape[0], -1, 4, 4)), noise(2, 6))
    assert width(result.model.fc) % 16 == 0


def test_unflatten_module() -> None:
    """`nn.Unflatten` keeps its sizes in an attribute, where surgery can change them."""
    unflatten = nn.Unflatten(1, (32, 4, 4))
    result = checked(generator(unflatten), noise(2, 6), free=16)
    assert refusal(result, "relies on a fixed size")


def test_unflatten_submodule() -> None:
    net = nn.Sequential(
        nn.Linear(6, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Unflatten(1, (32, 4, 4)), conv_bn(32, 16), head(16)
    )
    result = checked(net, noise(2, 6))
    assert result.model[3].unflattened_size[0] * 16 == result.model[0].out_features < 512


def test_stack_and_max() -> None:
    """Maxout and multi-branch fusion: what meets in a maximum goes together."""
    layers = {"a": conv_bn(16, 16, 1), "b": conv_bn(16, 16), "tail": tail(16)}
    net = framed(lambda n, x: n.tail(torch.stack([n.a(y := n.stem(x)), n.b(y)]).max(0).values), **layers)
    result = checked(net)
    assert width(result.model.a) == width(result.model.b) < 16


def test_maxout_over_parts() -> None:
    checked(framed(lambda n, x: n.tail(n.stem(x).unflatten(1, (2, -1)).amax(1)), tail=tail(8)), parts=2, off=0.04)


def test_permuted_to_channels_last_and_back() -> None:
    def forward(n, x):
        y = F.gelu(n.fc(n.stem(x).permute(0, 2, 3, 1)))
        return n.tail(y.permute(0, 3, 1, 2))

    checked(framed(forward, fc=nn.Linear(16, 8), tail=tail(8)))


def test_einsum() -> None:
    class Project(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("bchw,oc->bohw", x, self.weight)

    norm = nn.BatchNorm2d(16)
    result = checked(framed(lambda n, x: n.tail(F.relu(n.norm(n.p(n.stem(x))))), p=Project(), norm=norm, tail=tail(16)))
    assert result.model.p.weight.numel() < 256


def test_einsum_of_two_activations() -> None:
    """Bilinear pooling: what is flattened belongs to two channels at once, so both stay."""

    def forward(n, x):
        y = n.stem(x)
        return n.fc(torch.einsum("bchw,bdhw->bcd", n.a(y), n.b(y)).flatten(1))

    net = framed(forward, a=conv_bn(16, 8), b=conv_bn(16, 4), fc=nn.Linear(32, 5))
    result = checked(net, free=16)
    assert result.model.fc.in_features == 32
    refusal(result, "relies on a fixed size")


def test_space_to_depth_by_hand() -> None:
    """YOLO's focus layer."""

    def focus(x):
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)

    checked(framed(lambda n, x: n.tail(focus(n.stem(x))), tail=tail(64)), X)
