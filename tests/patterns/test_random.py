"""Random graphs of the patterns: whatever is put together, channels that carry nothing may go."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import bnprune
from tests.nets import Net, conv_bn, head, randomized
from tests.patterns.builder import X, assert_trains, assert_unchanged
from tests.patterns.test_attention import LayerScale, gate
from tests.patterns.test_splitting import C2f, Sliced

SIDE = X.shape[2]


class Bare(nn.Conv2d):
    """A convolution without BatchNorm behind it."""


def swap(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([second.tanh(), first], 1)


def shuffle(n: Net, x: torch.Tensor) -> torch.Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def literal_view(width: int) -> Net:
    return Net(lambda n, x: x.view(-1, width, SIDE * SIDE).tanh().view(-1, width, SIDE, SIDE))


def up(c: int) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(c, c, 2, 2), nn.BatchNorm2d(c), nn.ReLU(), nn.AvgPool2d(2))


Built = tuple[nn.Module, int]
LEAVES: dict[str, Callable[[int], Built]] = {
    "narrow": lambda c: (conv_bn(c, 8), 8),
    "wide": lambda c: (conv_bn(c, 24, 1), 24),
    "depthwise": lambda c: (conv_bn(c, c, groups=c), c),
    "multiplier": lambda c: (conv_bn(c, 2 * c, groups=c), 2 * c),
    "few groups": lambda c: (conv_bn(c, c, groups=2), c),
    "many groups": lambda c: (conv_bn(c, c, 1, groups=c // 2), c),
    "bare": lambda c: (nn.Sequential(Bare(c, 12, 3, padding=1), nn.ReLU()), 12),
    "gate": lambda c: (Net(lambda n, x: x * n.gate(x), gate=gate(c)), c),
    "mask": lambda c: (Net(lambda n, x: x * n.mask(x).sigmoid(), mask=nn.Conv2d(c, 1, 1)), c),
    "scale": lambda c: (LayerScale(c), c),
    "chunk": lambda c: (Net(lambda n, x: swap(x)), c),
    "half": lambda c: (Net(lambda n, x: x.chunk(2, 1)[1]) if c % 8 == 0 else nn.ReLU(), c // 2 if c % 8 == 0 else c),
    "slices": lambda c: (Sliced(c // 4), c),
    "shuffle": lambda c: (Net(shuffle), c),
    "shuffle module": lambda c: (nn.ChannelShuffle(2), c),
    "pixels": lambda c: (nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2), nn.MaxPool2d(3, 1, 1)), c),
    "pooling": lambda c: (nn.AvgPool2d(3, 1, 1), c),
    "transposed": lambda c: (up(c), c),
    "group norm": lambda c: (nn.GroupNorm(c // 4, c), c),
    "instance norm": lambda c: (nn.InstanceNorm2d(c, affine=True), c),
    "layer norm": lambda c: (nn.LayerNorm([c, SIDE, SIDE]), c),
    "block of yolo": lambda c: (C2f(c, 16), 16),
    "literal view": lambda c: (literal_view(c), c),
    "pre-activation": lambda c: (Net(lambda n, x: x + n.b(x), b=nn.Sequential(nn.BatchNorm2d(c), conv_bn(c, c))), c),
}


def residual(parts: list[Built], c: int) -> Built:
    body, width = parts[0]
    back = nn.Sequential(nn.Conv2d(width, c, 1, bias=False), nn.BatchNorm2d(c))
    return Net(lambda n, x: F.relu(x + n.back(n.body(x))), body=body, back=back), c


def concat(parts: list[Built], c: int) -> Built:
    (left, a), (right, b) = parts
    return Net(lambda n, x: n.join(torch.cat([n.left(x), x, n.right(x)], 1)), left=left, right=right,
               join=conv_bn(a + b + c, 16, 1)), 16  # fmt: skip


def unet(parts: list[Built], c: int) -> Built:
    body, width = parts[0]

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.interpolate(F.max_pool2d(n.body(x), 2), size=x.shape[2:]), x], 1)

    return Net(forward, body=body), width + c


def twice(parts: list[Built], c: int) -> Built:
    body, width = parts[0]
    back = conv_bn(width, c)
    return Net(lambda n, x: n.back(n.body(n.back(n.body(x)))), body=body, back=back), c


def maximum(parts: list[Built], c: int) -> Built:
    (left, a), (right, b) = parts
    ends = {"p": conv_bn(a, 12, 1), "q": conv_bn(b, 12, 1)}
    return Net(lambda n, x: torch.stack([n.p(n.left(x)), n.q(n.right(x))]).amax(0), left=left, right=right, **ends), 12


NODES: dict[str, Callable[[list[Built], int], Built]] = {
    f.__name__: f for f in (residual, concat, unet, twice, maximum)
}
HEADS: dict[str, Callable[[int], nn.Module]] = {
    "pooled": head,
    "flattened": lambda c: nn.Sequential(nn.Flatten(), nn.Linear(c * SIDE * SIDE, 5)),
    "dense": lambda c: nn.Conv2d(c, 2, 1),
    "dict": lambda c: Net(lambda n, x: {"a": n.a(x), "b": [n.b(x)]}, a=head(c), b=nn.Conv2d(c, 2, 1)),
}

Spec = Any
leaves = st.sampled_from(sorted(LEAVES))
specs = st.lists(
    st.recursive(
        leaves,
        lambda inner: st.tuples(
            st.sampled_from(sorted(NODES)),
            st.lists(inner, min_size=1, max_size=2),
            st.lists(inner, min_size=1, max_size=2),
        ),
        max_leaves=3,
    ),
    min_size=1,
    max_size=4,
)


def build(spec: Spec, c: int) -> Built:
    """Build a chain (list), a leaf (name) or a node (name and two chains) that reads `c` channels."""
    if isinstance(spec, str):
        return LEAVES[spec](c)
    if isinstance(spec, tuple):
        name, *chains = spec
        return NODES[name]([build(chain, c) for chain in chains[: 2 if name in ("concat", "maximum") else 1]], c)
    layers = []
    for part in spec:
        layer, c = build(part, c)
        layers.append(layer)
    return nn.Sequential(*layers), c


def network(spec: Spec, ending: str) -> nn.Module:
    body, c = build(spec, 16)
    return nn.Sequential(conv_bn(3, 16), body, conv_bn(c, 16), HEADS[ending](16))


def emptied(model: nn.Module, plan: bnprune.PruningPlan) -> nn.Module:
    """The network with γ = β = 0 where the plan removes BatchNorm channels, and no output of bare layers there."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for cut in plan.cuts:
            for name, dim in cut.at:
                owner, _, leaf = name.rpartition(".")
                module = model.get_submodule(owner)
                if dim == 0 and leaf in ("weight", "bias") and isinstance(module, nn.BatchNorm2d | Bare):
                    getattr(module, leaf)[list(cut.removed)] = 0
    return model


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(specs, st.sampled_from(sorted(HEADS)), st.sampled_from([0.3, 0.5, 0.8]))
def test_random_graphs(spec: Spec, ending: str, ratio: float) -> None:
    torch.manual_seed(0)
    model = randomized(network(spec, ending)).double()
    result = bnprune.prune(model, X, ratio=ratio)
    assert result.report.ratio_realised > 0
    assert_unchanged(emptied(model, result.plan), result.model, X)
    assert_trains(result.model, model, X)
