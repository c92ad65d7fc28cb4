"""Gates, masks, attention and recurrent tails."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from tests.nets import Net, conv_bn, head
from tests.patterns.builder import checked, framed, refusal, tail, width


def gate(channels: int, inner: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1), nn.Sigmoid()
    )


def test_squeeze_excitation() -> None:
    result = checked(framed(lambda n, x: n.tail((y := n.stem(x)) * n.gate(y)), gate=gate(16), tail=tail(16)))
    assert result.model.gate[3].out_channels == width(result.model.stem) < 16


def test_squeeze_excitation_through_linear_layers() -> None:
    def forward(n, x):
        y = n.stem(x)
        b, c, _, _ = y.size()
        scale = torch.sigmoid(n.up(F.relu(n.down(F.adaptive_avg_pool2d(y, 1).view(b, c))))).view(b, c, 1, 1)
        return n.tail(y * scale.expand_as(y))

    result = checked(framed(forward, down=nn.Linear(16, 4), up=nn.Linear(4, 16), tail=tail(16)))
    assert result.model.up.out_features == width(result.model.stem) < 16


def test_efficient_channel_attention_keeps_neighbours() -> None:
    """ECA convolves over the channels themselves: they are neighbours, and stay."""

    def forward(n, x):
        y = n.stem(x)
        scale = n.eca(y.mean((2, 3)).unsqueeze(1)).sigmoid().squeeze(1)[:, :, None, None]
        return n.tail(y * scale)

    result = checked(framed(forward, eca=nn.Conv1d(1, 1, 3, padding=1), tail=tail(16)), free=16)
    assert width(result.model.stem) == 16


def test_cbam() -> None:
    """Channel attention from average and maximum, then spatial attention from statistics over the channels.

    The mean over channels changes with their number, so they stay.
    """

    def forward(n, x):
        y = n.stem(x)
        y = y * torch.sigmoid(n.mlp(F.adaptive_avg_pool2d(y, 1)) + n.mlp(F.adaptive_max_pool2d(y, 1)))
        spatial = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)
        return n.tail(y * torch.sigmoid(n.spatial(spatial)))

    mlp = nn.Sequential(nn.Conv2d(16, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 16, 1, bias=False))
    result = checked(framed(forward, mlp=mlp, spatial=nn.Conv2d(2, 1, 7, padding=3), tail=tail(16)), free=16)
    assert width(result.model.stem) == 16
    assert refusal(result, "is reduced").site == "(network)"


def test_mask_for_all_channels() -> None:
    """[B, 1, H, W] from a convolution: it multiplies every channel and ties none."""
    mask = nn.Sequential(nn.Conv2d(16, 1, 1), nn.Sigmoid())
    result = checked(framed(lambda n, x: n.tail((y := n.stem(x)) * n.mask(y)), mask=mask, tail=tail(16)))
    assert width(result.model.mask) == 1


def test_mask_given_from_outside() -> None:
    net = framed(lambda n, x, mask: n.tail(n.stem(x) * mask), tail=tail(16))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    checked(net, (x, torch.rand(2, 1, 8, 8, dtype=torch.float64)))


def test_scale_per_channel() -> None:
    """[B, C, 1, 1] from another branch."""
    scale = nn.Sequential(conv_bn(3, 16), nn.AdaptiveAvgPool2d(1))
    result = checked(framed(lambda n, x: n.tail(n.stem(x) * n.scale(x)), scale=scale, tail=tail(16)))
    assert width(result.model.scale) == width(result.model.stem) < 16


class LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


def test_layer_scale() -> None:
    net = framed(
        lambda n, x: n.tail((y := n.stem(x)) + n.scale(n.b(y))), b=conv_bn(16, 16), scale=LayerScale(16), tail=tail(16)
    )
    assert checked(net).model.scale.gamma.shape[0] < 16


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_stochastic_depth(mode: str) -> None:
    drop = StochasticDepth(0.2, mode)
    checked(framed(lambda n, x: n.tail((y := n.stem(x)) + n.drop(n.b(y))), b=conv_bn(16, 16), drop=drop, tail=tail(16)))


def test_stochastic_depth_by_hand() -> None:
    """timm's drop path: a random number per sample, of shape (B, 1, 1, 1)."""

    def forward(n, x):
        y = n.stem(x)
        if n.training:
            return n.tail(y + n.b(y) * x.new_empty((x.shape[0],) + (1,) * 3).bernoulli_(0.8).div_(0.8))
        return n.tail(y + n.b(y))

    checked(framed(forward, b=conv_bn(16, 16), tail=tail(16)))


class Attention(nn.Module):
    """Self-attention over positions with `heads` heads; sizes literal, kept in attributes, or computed."""

    def __init__(self, channels: int, heads: int, style: str) -> None:
        super().__init__()
        self.heads, self.style, self.dim = heads, style, channels
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        t = x.flatten(2).transpose(1, 2)
        d = {"literal": 4, "kept": self.dim // self.heads, "computed": -1}[self.style]
        q, k, v = self.qkv(t).view(b, h * w, 3, self.heads, d).permute(2, 0, 3, 1, 4)
        y = F.softmax(q @ k.transpose(-2, -1) / 2, -1) @ v
        return self.proj(y.transpose(1, 2).flatten(2)).transpose(1, 2).view(b, -1, h, w)


@pytest.mark.parametrize("style", ["literal", "kept", "computed"])
def test_attention_with_hard_coded_heads(style: str) -> None:
    def forward(n, x):
        return n.tail(F.relu(n.norm(n.attention(n.stem(x)))))

    net = framed(forward, attention=Attention(16, 4, style), norm=nn.BatchNorm2d(16), tail=tail(16))
    result = checked(net)
    assert result.model.attention.qkv.out_features == 48
    assert result.model.attention.proj.out_features < 16


@pytest.mark.parametrize(
    ("activation", "free"),
    [
        *((F.relu, True), (F.tanh, True), (F.relu6, True), (lambda y: 2 * y, True), (lambda y: F.pad(y, (1, 1)), True)),
        *((torch.sigmoid, False), (lambda y: F.elu(y) + 1, False), (lambda y: F.hardtanh(y, 0.2, 1.0), False)),
        *((lambda y: F.pad(y, (1, 1), value=1.0), False), (lambda y: torch.empty_like(y).copy_(y.sigmoid()), False)),
    ],
)
def test_a_product_of_activations_needs_zeros(activation, free: bool) -> None:
    """Linear attention: no weight is cut where q and k are summed over channels, so removed ones must be zero."""

    def forward(n, x):
        q, k = activation(n.q(x)).flatten(2), activation(n.k(x)).flatten(2)
        return n.tail(n.stem(x) * (q.transpose(1, 2) @ k).mean((1, 2)).view(len(x), 1, 1, 1))

    net = framed(forward, q=conv_bn(3, 16), k=conv_bn(3, 16), tail=tail(16))
    result = checked(net, free=None if free else 32)
    assert width(result.model.q) == (8 if free else 16)
    assert free or refusal(result, "where it is not zero")


def test_fused_attention() -> None:
    def forward(n, x):
        t = n.stem(x).flatten(2).transpose(1, 2)
        q, k, v = (f(t).unflatten(2, (4, 4)).transpose(1, 2) for f in (n.q, n.k, n.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return n.fc(F.relu(n.norm(n.o(y).transpose(1, 2))).mean(2))

    layers = {name: nn.Linear(16, 16) for name in "qkvo"}
    result = checked(framed(forward, **layers, norm=nn.BatchNorm1d(16), fc=nn.Linear(16, 5)))
    assert result.model.o.out_features < 16


def test_multihead_attention_module_stays_if_heads_and_width_are_one_number() -> None:
    """Of the attributes num_heads = head_dim = 4, either could be the number of heads."""

    def forward(n, x):
        t = n.stem(x).flatten(2).transpose(1, 2)
        return n.fc(n.mha(t, t, t, need_weights=False)[0].mean(1))

    net = Net(
        forward,
        stem=nn.Sequential(conv_bn(3, 16), conv_bn(16, 16)),
        mha=nn.MultiheadAttention(16, 4, batch_first=True),
        fc=nn.Linear(16, 5),
    )
    result = checked(net, free=16)
    assert width(result.model.stem[1]) == 16
    assert result.report.refusals


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_tail(kind: type[nn.RNNBase]) -> None:
    def forward(n, x):
        sequence = n.b(n.stem(x)).mean(2).transpose(1, 2)
        return n.fc(n.rnn(sequence)[0][:, -1])

    net = framed(forward, b=conv_bn(16, 16), rnn=kind(16, 12, batch_first=True), fc=nn.Linear(12, 5))
    result = checked(net)
    assert width(result.model.stem) < 16


def test_non_local_block() -> None:
    def forward(n, x):
        y = n.stem(x)
        b, _, h, w = y.shape
        q, k, v = n.q(y).view(b, -1, h * w), n.k(y).view(b, -1, h * w), n.v(y).view(b, -1, h * w)
        z = v @ (q.transpose(1, 2) @ k).softmax(-1)
        return n.head(n.o(z.view(b, -1, h, w)) + y)

    layers = {"q": conv_bn(16, 8, 1), "k": conv_bn(16, 8, 1), "v": conv_bn(16, 8, 1), "o": conv_bn(8, 16, 1)}
    result = checked(framed(forward, **layers, head=head(16)))
    assert width(result.model.q) == width(result.model.k) < 8
