"""Compensation against its definition: γ = 0, β kept, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from bnprune.recovery.compensate import Compensation, compensate, zero_removed_gammas
from tests.nets import Net, conv_bn, head, noise, randomized

X = noise(2, 3, 12, 12)


def bn(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


def compensated(model: nn.Module, ratio: float = 0.5, x: torch.Tensor = X) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Outputs of the original with γ = 0 and of the compensated network, and what was done by layer."""
    model = randomized(model).double().eval()
    result = bnprune.prune(model, x, ratio=ratio)
    done = compensate(model, result.model, result.plan, x)
    with torch.no_grad():
        return (
            zero_removed_gammas(copy.deepcopy(model), result.plan)(x),
            result.model.eval()(x),
            {c.site: c for c in done},
        )


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
    "images one by one": lambda: Net(
        lambda n, x: torch.stack([n.d(n.c(image).mean((1, 2))) for image in n.a(x)]),
        a=conv_bn(3, 16), c=nn.Sequential(nn.Conv2d(16, 8, 3), nn.ReLU()), d=nn.Linear(8, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", POINTWISE)
def test_exact_where_every_position_sees_the_same(name: str) -> None:
    expected, got, done = compensated(POINTWISE[name]())
    assert_equal(expected, got)
    assert {c.outcome for c in done.values()} == {"exact"}
    assert all(c.compensated == c.channels > 0 for c in done.values())


def test_without_it_the_networks_differ() -> None:
    model = randomized(POINTWISE["1x1"]()).double().eval()
    result = bnprune.prune(model, X, ratio=0.5)
    with torch.no_grad():
        off = (zero_removed_gammas(copy.deepcopy(model), result.plan)(X) - result.model.eval()(X)).abs().max()
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
    assert "padding" in done["c"].reason
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
    model = randomized(net).double().eval()
    with torch.no_grad():
        model.a[1].bias.abs_()  # otherwise ReLU makes zero of half of them, and zero times anything is constant
    result = bnprune.prune(model, X, ratio=0.5)
    done = {c.site: c for c in compensate(model, result.model, result.plan, X)}
    assert done["c"].outcome == "none"
    assert "depends on the input" in done["c"].reason
    assert torch.equal(result.model.c.bias.float(), before)
    assert done["gate.1"].outcome == "exact"


def test_a_layer_without_a_bias_says_so() -> None:
    net = Net(lambda n, x: n.c(n.a(x)), a=conv_bn(3, 16), c=nn.Conv2d(16, 5, 1, bias=False))
    _, _, done = compensated(net)
    assert done["c"].outcome == "none"
    assert "no bias" in done["c"].reason


def test_with_data_the_mean_is_compensated() -> None:
    """Whatever γ is: the output is right on average over the batches given."""
    model = randomized(POINTWISE["1x1"]()).double().eval()
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


def test_with_data_layers_may_run_on_one_image_at_a_time() -> None:
    model = randomized(POINTWISE["images one by one"]()).double().eval()
    result = bnprune.prune(model, X, ratio=0.5)
    together = copy.deepcopy(result.model)
    batches = [noise(4, 3, 12, 12, seed=seed) for seed in range(3)]
    (done,) = compensate(model, result.model, result.plan, X, batches=batches)
    assert done.outcome == "mean"
    model._forward = lambda n, x: n.d(n.c(n.a(x)).mean((2, 3)))
    compensate(model, together, result.plan, X, batches=batches)
    torch.testing.assert_close(result.model.c[0].bias, together.c[0].bias, rtol=1e-12, atol=1e-12)
    assert not torch.equal(result.model.c[0].bias, model.c[0].bias)


def test_gates() -> None:
    model = Net(
        lambda n, x: n.c(n.b(y := n.a(x)) + y),
        a=conv_bn(3, 16),
        b=nn.Sequential(bn(16), conv_bn(16, 16, 1)),
        c=head(16),
    )
    model = randomized(model).double().eval()
    result = bnprune.prune(model, X, ratio=0.4, coupling="gates")
    assert result.plan.gates
    compensate(model, result.model, result.plan, X)
    with torch.no_grad():
        assert_equal(zero_removed_gammas(copy.deepcopy(model), result.plan)(X), result.model.eval()(X))


class Scaled(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight * 2, self.bias)


class Gain(nn.Conv2d):
    """A layer that scales everything, its bias included."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


class Tied(nn.Module):
    """Two readers of different streams with one weight, and one bias or two."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.a, self.b = conv_bn(3, 16), conv_bn(3, 16)
        self.c, self.d = nn.Conv2d(16, 5, 1), nn.Conv2d(16, 5, 1)
        self.d.weight = self.c.weight
        if bias:
            self.d.bias = self.c.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.a(x)) - 3 * self.d(self.b(x))


def conv(bias: bool = False) -> nn.Module:
    return nn.Conv2d(16, 16, 1, bias=bias)


TREACHEROUS = {
    "a ReLU in place before the BatchNorm": lambda: Net(
        lambda n, x: n.h(n.n(F.relu_(n.c(n.a(x))))), a=conv_bn(3, 16), c=conv(), n=bn(16), h=head(16)
    ),
    "another reader besides the BatchNorm": lambda: Net(
        lambda n, x: n.h(n.n(y := n.c(n.a(x))) + y), a=conv_bn(3, 16), c=conv(), n=bn(16), h=head(16)
    ),
    "two BatchNorms behind one layer": lambda: Net(
        lambda n, x: n.h(n.n(y := n.c(n.a(x))) - n.m(y)), a=conv_bn(3, 16), c=conv(), n=bn(16), m=bn(16), h=head(16)
    ),
    "one BatchNorm behind two layers": lambda: Net(
        lambda n, x: n.h(n.n(n.c(y := n.a(x))) - n.n(n.d(y))),
        a=conv_bn(3, 16), c=conv(), d=conv(), n=bn(16), h=head(16),
    ),
    "one layer twice": lambda: Net(
        lambda n, x: n.h(n.c(n.a(x)) - n.c(n.b(x))), a=conv_bn(3, 16), b=conv_bn(3, 16), c=conv(True), h=head(16)
    ),
    "a forward of its own": lambda: Net(lambda n, x: n.c(n.a(x)), a=conv_bn(3, 16), c=Scaled(16, 5, 3)),
    "keyword arguments": lambda: Net(lambda n, x: n.c(input=n.a(x)), a=conv_bn(3, 16), c=nn.Conv2d(16, 5, 1)),
    "tied weights": lambda: Tied(bias=False),
    "tied weights and biases": lambda: Tied(bias=True),
    "mostly zero": lambda: Net(
        lambda n, x: n.c(F.relu(n.a(x) + n.b(x) - 2)), a=conv_bn(3, 16), b=nn.Conv2d(3, 16, 1), c=nn.Conv2d(16, 5, 1)
    ),
    "pre-activation": lambda: Net(
        lambda n, x: n.h((y := n.s(n.a(x))) + n.c(n.n(y))), a=conv_bn(3, 16), s=conv(), n=bn(16), c=conv(), h=head(16)
    ),
    "transposed before a BatchNorm": lambda: Net(
        lambda n, x: n.h(n.n(n.c(n.a(x)))), a=conv_bn(3, 16), c=nn.ConvTranspose2d(16, 16, 2, 2), n=bn(16), h=head(16)
    ),
    "transposed, without a bias": lambda: Net(
        lambda n, x: n.h(n.n(n.c(n.a(x)))),
        a=conv_bn(3, 16), c=nn.ConvTranspose2d(16, 16, 3, bias=False), n=bn(16), h=head(16),
    ),
    "a bias that is scaled": lambda: Net(lambda n, x: n.c(n.a(x)), a=conv_bn(3, 16), c=Gain(16, 5, 1)),
    "a layer whose output is returned": lambda: Net(
        lambda n, x: n.h(n.n(y := n.c(n.a(x)))) + 0 * y.sum(), a=conv_bn(3, 16), c=conv(), n=bn(16), h=head(16)
    ),
    "transposed": lambda: Net(lambda n, x: n.c(n.a(x)), a=conv_bn(3, 16), c=nn.ConvTranspose2d(16, 5, 2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("coupling", ["shared", "gates"])
@pytest.mark.parametrize("name", TREACHEROUS)
def test_never_worse_and_exact_where_it_says_so(name: str, coupling: str) -> None:
    model = randomized(TREACHEROUS[name]()).double().eval()
    result = bnprune.prune(model, X, ratio=0.4, coupling=coupling)
    plain = copy.deepcopy(result.model).eval()
    done = compensate(model, result.model, result.plan, X)
    with torch.no_grad():
        expected = zero_removed_gammas(copy.deepcopy(model), result.plan)(X)
        errors = [float((network(X) - expected).abs().max()) for network in (result.model.eval(), plain)]
    assert errors[0] <= errors[1]
    if all(c.outcome == "exact" for c in done):
        assert errors[0] < 1e-9 * float(expected.abs().max())


def test_a_small_map_gets_the_mean() -> None:
    """On one position, one of nine taps sees data: all nine would do harm."""
    for size, outcome in ((1, "exact"), (2, "mean")):
        x = noise(2, 3, size, size)
        net = Net(lambda n, x: n.c(n.a(x)), a=conv_bn(3, 16), c=nn.Conv2d(16, 5, 3, padding=1))
        expected, got, done = compensated(net, x=x)
        assert done["c"].outcome == outcome
        assert_equal(expected.mean((2, 3)), got.mean((2, 3)))


def test_tokens_are_told_apart() -> None:
    """Inputs without real numbers are varied, too: after a gate nothing is constant."""
    net = Net(
        lambda n, x: n.c((y := n.b(n.e(x).transpose(1, 2))) * torch.sigmoid(n.g(y)).mean(2, keepdim=True)),
        e=nn.Embedding(50, 8), b=nn.Sequential(nn.Conv1d(8, 16, 1), nn.BatchNorm1d(16), nn.ReLU()),
        g=nn.Conv1d(16, 16, 1), c=nn.Conv1d(16, 5, 1),
    )  # fmt: skip
    model = randomized(net).double()
    with torch.no_grad():
        model.b[1].bias.abs_()
    x = torch.arange(12).view(1, 12)
    result = bnprune.prune(model, x, ratio=0.5)
    done = {c.site: c.outcome for c in compensate(model, result.model, result.plan, x)}
    assert done["c"] == "none"


@pytest.mark.parametrize("dummy", [torch.zeros(1, 12, dtype=torch.int64), torch.full((1, 12), 49)])
def test_a_dummy_of_equal_tokens(dummy: torch.Tensor) -> None:
    """Where the tokens given are all the same, others are tried; at the end of the table there are no more."""
    net = Net(
        lambda n, x: n.c(n.b(n.e(x).transpose(1, 2)).mean(2) * n.e(x).mean((1, 2))[:, None]),
        e=nn.Embedding(50, 8), b=nn.Sequential(nn.Conv1d(8, 16, 1), nn.BatchNorm1d(16), nn.ReLU()), c=nn.Linear(16, 5),
    )  # fmt: skip
    model = randomized(net).double()
    with torch.no_grad():
        model.b[1].bias.abs_()
    result = bnprune.prune(model, dummy, ratio=0.5)
    if dummy.max():
        with pytest.raises(bnprune.ForwardError, match="needs two different inputs"):
            compensate(model, result.model, result.plan, dummy)
    else:
        assert {c.site: c.outcome for c in compensate(model, result.model, result.plan, dummy)}["c"] == "none"


def test_classes_vary_with_the_noise() -> None:
    net = Net(
        lambda n, x, y: n.c(n.a(x) * n.e(y)[..., None, None]), a=conv_bn(3, 16), e=nn.Embedding(9, 16), c=head(16)
    )
    model = randomized(net).double()
    with torch.no_grad():
        model.a[1].bias.abs_()
    inputs = {"x": X, "y": torch.tensor([2, 5])}
    result = bnprune.prune(model, inputs, ratio=0.5)
    done = {c.site: c.outcome for c in compensate(model, result.model, result.plan, inputs)}
    assert done["c.2"] == "none"


def test_literal_casts_do_not_matter_with_data() -> None:
    model = randomized(Net(lambda n, x: n.c(n.a(x.float())), a=conv_bn(3, 16), c=nn.Conv2d(16, 5, 1)))
    result = bnprune.prune(model, X.float(), ratio=0.5)
    done = compensate(model, result.model, result.plan, X.float(), batches=[X.float()])
    assert [c.outcome for c in done] == ["mean"]


def test_a_border_that_outweighs_the_rest_gets_the_mean() -> None:
    """A Laplacian is zero inside: what it loses there says nothing about the border."""
    net = Net(lambda n, x: n.c(n.a(x)), a=conv_bn(3, 16), c=nn.Conv2d(16, 5, 3, padding=1))
    with torch.no_grad():
        net.c.weight.copy_(-torch.ones(3, 3).expand(5, 16, 3, 3))
        net.c.weight[..., 1, 1] = 7.5
    _, _, done = compensated(net, x=noise(2, 3, 8, 8))
    assert done["c"].outcome == "mean"


def test_batches_of_other_kinds() -> None:
    net = Net(lambda n, x, y: n.c(n.a(x) + y.mean()), a=conv_bn(3, 16), c=nn.Conv2d(16, 5, 1))
    model = randomized(net).double()
    inputs = {"x": X, "y": noise(2, 3)}
    result = bnprune.prune(model, inputs, ratio=0.5)
    for batches in ([inputs], [((X, inputs["y"]), torch.zeros(2))]):
        done = compensate(model, copy.deepcopy(result.model), result.plan, inputs, batches=batches)
        assert [c.outcome for c in done] == ["mean"]
    with pytest.raises(ValueError, match="got no batches"):
        compensate(model, result.model, result.plan, inputs, batches=[])


def test_noise_that_does_not_run() -> None:
    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        if x.min() < 0:
            raise ValueError("expected an image")
        return n.c(n.a(x))

    model = randomized(Net(forward, a=conv_bn(3, 16), c=nn.Conv2d(16, 5, 1))).double()
    result = bnprune.prune(model, X.abs(), ratio=0.5)
    assert compensate(model, result.model, result.plan, X.abs())[0].outcome == "exact"
