"""Compensation against its definition: γ = 0, β kept, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from bnprune.pruning.compensate import Compensation, compensate, silence
from tests.nets import Net, conv_bn, head, lively, noise

X = noise(2, 3, 12, 12)


def bn(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


def compensated(model: nn.Module, ratio: float = 0.5, x: torch.Tensor = X) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Outputs of the silenced original and of the compensated network, and what was done by layer."""
    model = lively(model).double().eval()
    result = bnprune.prune(model, x, ratio=ratio)
    done = compensate(model, result.model, result.plan, x)
    with torch.no_grad():
        return silence(copy.deepcopy(model), result.plan)(x), result.model.eval()(x), {c.site: c for c in done}


def assert_equal(expected: torch.Tensor, got: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


POINTWISE = {
    "1x1": lambda: Net(lambda n, x: n.c(n.b(n.a(x))), a=conv_bn(3, 16), b=conv_bn(16, 16, 1), c=nn.Conv2d(16, 5, 1)),
    "unpadded 3x3": lambda: Net(lambda n, x: n.c(n.a(x)), a=conv_bn(3, 16), c=nn.Conv2d(16, 5, 3)),
    "linear": lambda: Net(lambda n, x: n.c(n.a(x)), a=conv_bn(3, 16), c=head(16)),
    "flatten": lambda: Net(lambda n, x: n.c(n.a(x).flatten(1)), a=conv_bn(3, 16), c=nn.Linear(16 * 144, 5)),
    "add": lambda: Net(lambda n, x: n.c(n.a(x) + n.b(x)), a=conv_bn(3, 16), b=conv_bn(3, 16), c=nn.Conv2d(16, 5, 1)),
    "concat": lambda: Net(
        lambda n, x: n.c(torch.cat([n.a(x), n.b(x)], 1)), a=conv_bn(3, 8), b=conv_bn(3, 16), c=nn.Conv2d(24, 5, 1)
    ),
    "max-pool": lambda: Net(lambda n, x: n.c(F.max_pool2d(n.a(x), 2)), a=conv_bn(3, 16), c=nn.Conv2d(16, 5, 1)),
    "average-pool": lambda: Net(lambda n, x: n.c(F.avg_pool2d(n.a(x), 2)), a=conv_bn(3, 16), c=nn.Conv2d(16, 5, 1)),
    "circular padding": lambda: Net(
        lambda n, x: n.c(n.a(x)), a=conv_bn(3, 16), c=nn.Conv2d(16, 5, 3, padding=1, padding_mode="circular")
    ),
    "BatchNorm behind": lambda: Net(
        lambda n, x: n.d(n.c(n.a(x))),
        a=conv_bn(3, 16),
        c=nn.Conv2d(16, 8, 1, bias=False),
        d=nn.Sequential(bn(8), head(8)),
    ),
    "depthwise": lambda: Net(
        lambda n, x: n.c(n.d(n.a(x))),
        a=conv_bn(3, 16),
        d=nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), bn(16)),
        c=nn.Conv2d(16, 5, 1),
    ),
    "grouped": lambda: Net(
        lambda n, x: n.c(n.a(x)), a=conv_bn(3, 16), c=nn.Sequential(nn.Conv2d(16, 8, 1, groups=2), bn(8), head(8))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", POINTWISE)
def test_exact_where_every_position_sees_the_same(name: str) -> None:
    expected, got, done = compensated(POINTWISE[name]())
    assert_equal(expected, got)
    assert {c.outcome for c in done.values()} == {"exact"}
    assert all(c.made_up == c.channels > 0 for c in done.values())


def test_without_it_the_networks_differ() -> None:
    model = lively(POINTWISE["1x1"]()).double().eval()
    result = bnprune.prune(model, X, ratio=0.5)
    with torch.no_grad():
        off = (silence(copy.deepcopy(model), result.plan)(X) - result.model.eval()(X)).abs().max()
    assert off > 0.01


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.Hardswish(), nn.Sigmoid()])
def test_any_activation(activation: nn.Module) -> None:
    """Also those that are not zero at zero."""
    a = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16), activation)
    expected, got, done = compensated(nn.Sequential(a, nn.Conv2d(16, 5, 1)))
    assert_equal(expected, got)
    assert done["1"].outcome == "exact"


def test_zero_padding_is_exact_inside() -> None:
    net = Net(lambda n, x: n.c(n.a(x)), a=conv_bn(3, 16), c=nn.Conv2d(16, 5, 3, padding=1))
    expected, got, done = compensated(net)
    assert done["c"] == Compensation("c", 8, 8, "interior", done["c"].reason)
    assert "zero padding" in done["c"].reason
    assert_equal(expected[..., 1:-1, 1:-1], got[..., 1:-1, 1:-1])
    assert (expected - got)[..., 0, :].abs().max() > 0.01


def test_a_padded_average_is_exact_inside() -> None:
    net = Net(lambda n, x: n.c(F.avg_pool2d(n.a(x), 3, 1, 1)), a=conv_bn(3, 16), c=nn.Conv2d(16, 5, 1))
    expected, got, done = compensated(net)
    assert done["c"].outcome == "interior"
    assert "border" in done["c"].reason
    assert_equal(expected[..., 1:-1, 1:-1], got[..., 1:-1, 1:-1])


def test_what_is_multiplied_is_not_compensated() -> None:
    """Squeeze-excitation: act(β) times a number that depends on the image."""
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Sigmoid())
    net = Net(lambda n, x: n.c((y := n.a(x)) * n.gate(y)), a=conv_bn(3, 16), gate=gate, c=nn.Conv2d(16, 5, 1))
    before = net.c.bias.detach().clone()
    model = lively(net).double().eval()
    with torch.no_grad():
        model.a[1].bias.abs_()  # otherwise ReLU makes zero of half of them, and zero times anything is constant
    result = bnprune.prune(model, X, ratio=0.5)
    done = {c.site: c for c in compensate(model, result.model, result.plan, X)}
    assert done["c"].outcome == "none"
    assert "multiplied" in done["c"].reason
    assert torch.equal(result.model.c.bias.float(), before)
    assert done["gate.1"].outcome == "exact"


def test_a_layer_without_a_bias_says_so() -> None:
    net = Net(lambda n, x: n.c(n.a(x)), a=conv_bn(3, 16), c=nn.Conv2d(16, 5, 1, bias=False))
    _, _, done = compensated(net)
    assert done["c"].outcome == "none"
    assert "no bias" in done["c"].reason


def test_with_data_the_mean_is_made_up() -> None:
    """Whatever γ is: the output is right on average over the batches given."""
    model = lively(POINTWISE["1x1"]()).double().eval()
    result = bnprune.prune(model, X, ratio=0.3, exclude=["b"])
    batches = [(noise(4, 3, 12, 12, seed=seed), torch.zeros(4)) for seed in range(3)]
    plain = copy.deepcopy(result.model).eval()
    done = compensate(model, result.model, result.plan, X, batches=batches)
    assert {c.outcome for c in done} == {"mean"}
    inputs = torch.cat([batch for batch, _ in batches])
    dense, slim, bare = ({}, {}, {})
    for network, seen in ((model, dense), (result.model.eval(), slim), (plain, bare)):
        network.b[0].register_forward_hook(lambda m, args, out, seen=seen: seen.update(mean=out.mean((0, 2, 3))))
        with torch.no_grad():
            network(inputs)
    norm = result.model.b[1].running_mean - plain.b[1].running_mean
    torch.testing.assert_close(slim["mean"] - norm, dense["mean"], rtol=0, atol=1e-12)
    assert (bare["mean"] - dense["mean"]).abs().max() > 1e-3


def test_gates() -> None:
    model = Net(
        lambda n, x: n.c(n.b(y := n.a(x)) + y),
        a=conv_bn(3, 16),
        b=nn.Sequential(bn(16), conv_bn(16, 16, 1)),
        c=head(16),
    )
    model = lively(model).double().eval()
    result = bnprune.prune(model, X, ratio=0.4, coupling="gates")
    assert result.plan.gates
    compensate(model, result.model, result.plan, X)
    with torch.no_grad():
        assert_equal(silence(copy.deepcopy(model), result.plan)(X), result.model.eval()(X))
