"""Attention heads whose number or width is computed from a shape: the units that the code accepts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from tests.nets import Net, conv_bn, noise, randomized
from tests.patterns.builder import X, assert_trains, assert_unchanged, checked, framed, level, tail, width

HEADS, DIM = 2, 8


def tokens(image: torch.Tensor) -> torch.Tensor:
    return image.flatten(2).transpose(1, 2)


class Projection(nn.Sequential):
    """Linear and BatchNorm over tokens of shape (N, T, C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[1](self[0](x).transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    """Attention over tokens; `style` says how heads, width and scale are computed."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style, self.heads, self.scale = style, HEADS, DIM**-0.5
        self.q, self.k, self.v = (
            Projection(nn.Linear(HEADS * DIM, HEADS * DIM), nn.BatchNorm1d(HEADS * DIM)) for _ in range(3)
        )
        self.o = nn.Linear(HEADS * DIM, HEADS * DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.q(x), self.k(x), self.v(x)
        match self.style:
            case "width of the input":
                q, k, v = (t.view(b, n, self.heads, c // self.heads).transpose(1, 2) for t in (q, k, v))
            case "width of the queries" | "scale from the width":
                d = q.shape[-1] // self.heads
                q, k, v = (t.reshape(b, n, self.heads, d).transpose(1, 2) for t in (q, k, v))
            case "any number of heads" | "fused":
                q, k, v = (t.reshape(b, n, -1, DIM).transpose(1, 2) for t in (q, k, v))
        if self.style == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            scale = q.shape[-1] ** -0.5 if self.style == "scale from the width" else self.scale
            y = (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v
        y = y.transpose(1, 2)
        return self.o(y.reshape(b, n, c) if self.style == "width of the input" else y.flatten(2))


@pytest.mark.parametrize(
    ("style", "parts"),
    [
        ("width of the input", HEADS),
        ("width of the queries", HEADS),
        ("scale from the width", 1),
        ("any number of heads", 1),
        ("fused", 1),
    ],
)
def test_heads_are_pruned_by_position_or_as_a_whole(style: str, parts: int) -> None:
    """Dead channels are equal positions of all heads (parts = heads), or the first head (parts = 1)."""

    def forward(n, x):
        y = n.stem(x)
        out = n.attention(tokens(y)).transpose(1, 2).reshape(len(x), -1, 8, 8)
        return n.tail(F.relu(n.norm(out)))

    layers = {"attention": Attention(style), "norm": nn.BatchNorm2d(16), "tail": tail(16)}
    result = checked(framed(forward, **layers), parts=parts, off=0.3)
    widths = {width(getattr(result.model.attention, name)) for name in "qkv"}
    assert len(widths) == 1
    assert max(widths) <= 8
    assert result.model.attention.heads == (1 if parts == 1 else HEADS)


class AttentionPool(nn.Module):
    """CLIP's attention pool: the width of the heads is that of the input over their number, the scale follows it."""

    def __init__(self, channels: int, heads: int, out: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(channels, channels) for _ in range(3))
        self.o, self.heads = nn.Linear(channels, out), heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x])
        y, _ = F.multi_head_attention_forward(
            query=x[:1], key=x, value=x, embed_dim_to_check=x.shape[-1], num_heads=self.heads, in_proj_weight=None,
            in_proj_bias=torch.cat([self.q.bias, self.k.bias, self.v.bias]), bias_k=None, bias_v=None,
            add_zero_attn=False, dropout_p=0.0, out_proj_weight=self.o.weight, out_proj_bias=self.o.bias,
            use_separate_proj_weight=True, q_proj_weight=self.q.weight, k_proj_weight=self.k.weight,
            v_proj_weight=self.v.weight, need_weights=False, training=self.training,
        )  # fmt: skip
        return y[0]


def test_attention_pool_of_clip_loses_whole_heads() -> None:
    """The slim network equals the original in which the removed heads and their input channels are zero."""
    channels, d = 24, 4
    net = Net(
        lambda n, x: n.pool(n.body(n.stem(x))),
        stem=conv_bn(3, 16),
        body=conv_bn(16, channels),
        pool=AttentionPool(channels, channels // d, 5),
    )
    net = level(randomized(net)).double()
    removed = torch.arange(channels) % 12 < d  # heads 0 and 3
    with torch.no_grad():
        net.body[1].weight[removed] = 0.01
    result = bnprune.prune(net, X, ratio=8 / 40)
    assert (result.model.pool.heads, width(result.model.body), result.report.channels_before) == (4, 16, 40)
    zeroed = copy.deepcopy(net)
    with torch.no_grad():
        for tensor in (zeroed.body[1].weight, zeroed.body[1].bias):
            tensor[removed] = 0
        for layer in (zeroed.pool.q, zeroed.pool.k, zeroed.pool.v):
            layer.weight[removed], layer.bias[removed] = 0, 0
    assert_unchanged(zeroed, result.model, noise(2, 3, 8, 8, seed=7))
    assert_trains(result.model, net, X)


def test_multihead_attention_module_loses_whole_heads() -> None:
    def forward(n, x):
        t = tokens(n.stem(x))
        return n.fc(n.mha(t, t, t, need_weights=False)[0].mean(1))

    net = Net(forward, stem=conv_bn(3, 24), mha=nn.MultiheadAttention(24, 3, batch_first=True), fc=nn.Linear(24, 5))
    result = bnprune.prune(level(randomized(net)).double(), X, ratio=1 / 3)
    mha = result.model.mha
    assert (mha.embed_dim, mha.num_heads, mha.head_dim) == (16, 2, 8)
    assert width(result.model.stem) == 16


def test_attention_weights_that_are_averaged_over_heads_keep_them() -> None:
    """The mean over heads depends on their number."""

    def forward(n, x):
        t = tokens(n.body(n.stem(x)))
        y, weights = n.mha(t, t, t)
        return n.fc(y.mean(1)), weights

    layers = {"body": conv_bn(16, 24), "mha": nn.MultiheadAttention(24, 3, batch_first=True), "fc": nn.Linear(24, 5)}
    result = bnprune.prune(level(randomized(framed(forward, **layers))).double(), X, ratio=0.5)
    assert (result.model.mha.num_heads, width(result.model.body), width(result.model.stem)) == (3, 24, 8)


def test_a_cache_that_an_earlier_forward_pass_has_filled_is_not_carried_over() -> None:
    """LeViT caches the biases of its heads by device: in the slim network they have another width."""

    class CachedBias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.cache, self.table = nn.Parameter(torch.randn(16)), {}, {"scale": torch.ones(1)}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.device.type not in self.cache or self.training:
                self.cache[x.device.type] = self.bias * 2
            return x * self.cache[x.device.type][:, None, None] * self.table["scale"]

    model = framed(lambda n, x: n.tail(n.shift(n.stem(x))), shift=CachedBias(), tail=tail(16))
    with torch.no_grad():
        model(X.float())
    slim = checked(model).model
    assert slim.shift.cache == {}
    assert slim.shift.table.keys() == {"scale"}
    assert model.shift.cache["cpu"].shape == (16,)
