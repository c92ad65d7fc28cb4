"""What the proof and the trace must not overlook: other modes, other branches, outputs nobody follows."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from bnprune.channels.pytrees import as_inputs
from bnprune.pruning.surgery import apply
from bnprune.pruning.verify import verify
from tests.nets import Net, conv_bn, head, randomized
from tests.numerics.test_verify import wrong

X = torch.zeros(1, 3, 8, 8)


def model(between, last=lambda y: y) -> nn.Module:
    """Two layers, with something between them and something behind the last."""
    return randomized(
        Net(lambda n, x: last(n.c(n.b(between(n, n.a(x))))), a=conv_bn(3, 16), b=conv_bn(16, 8), c=head(8))
    )


def test_what_happens_only_in_train_mode_is_followed() -> None:
    slim = bnprune.prune(model(lambda n, x: x + torch.ones(1, 16, 1, 1) if n.training else x), X, ratio=0.5).model
    assert slim.train()(torch.randn(4, 3, 8, 8)).shape == (4, 5)
    report = bnprune.prune(model(lambda n, x: x.roll(3, 1) if n.training else x), X, ratio=0.3).report
    assert any("is rotated" in refusal.reason for refusal in report.refusals)


def test_the_branch_other_inputs_would_take_is_followed() -> None:
    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        y = n.a(x)
        return n.c(n.b(y.roll(3, 1) if x.mean() > 1e6 else y))

    network = randomized(Net(forward, a=conv_bn(3, 16), b=conv_bn(16, 8), c=head(8)))
    report = bnprune.prune(network, X, ratio=0.3).report
    assert any("is rotated" in refusal.reason for refusal in report.refusals)


@pytest.mark.parametrize(
    "always", [lambda n, x: F.dropout(x, 0.1), lambda n, x: x * (torch.rand(x.shape[:2]) > 0.1)[..., None, None]]
)
def test_what_is_random_in_eval_mode_is_proven_with_equal_draws(always) -> None:
    result = bnprune.prune(model(always), X, ratio=0.5)
    assert result.report.ratio_realised == 0.5
    assert result.report.max_relative_error < 1e-12


class Slots:
    __slots__ = ("logits",)

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


def test_outputs_are_found_in_slots_and_missed_nowhere() -> None:
    net = randomized(nn.Sequential(conv_bn(3, 8), Net(lambda n, x: Slots(n.b(x)), b=conv_bn(8, 8))))
    assert bnprune.prune(net, X, ratio=0.4).model(X).logits.shape == (1, 8, 8, 8)
    for last in (torch.Tensor.numpy, torch.Tensor.tolist, lambda y: None):
        with pytest.raises(bnprune.TraceError, match="returns no tensor"):
            bnprune.prune(model(lambda n, x: x, last).requires_grad_(False), X, ratio=0.5)


@pytest.mark.parametrize(
    "net",
    [
        lambda: nn.Sequential(Net(lambda n, x: torch.log(x + 1e-6)), *model(lambda n, x: x).children()),
        lambda: model(lambda n, x: x, lambda y: torch.where(torch.arange(5) < 2, torch.finfo(y.dtype).min, y)),
        lambda: model(lambda n, x: x, lambda y: torch.where(torch.arange(5) < 4, float("-inf"), y)),
        lambda: model(lambda n, x: F.dropout(x, 0.1)),
    ],
    ids=["NaN where noise is negative", "a huge constant", "infinities of a mask", "equal draws"],
)
def test_a_wrong_plan_is_caught_beside_nan_huge_and_random_numbers(net) -> None:
    network = net()
    plan = bnprune.prune(network, X + 0.5, ratio=0.4).plan  # which itself is proven
    place = next(name for name, dim in plan.cuts[0].at if dim == 1)
    bad = wrong(plan, place)
    assert not verify(network, apply(bad, network), bad, as_inputs(X + 0.5)).passed


def test_a_network_that_computes_nothing_finite_is_refused() -> None:
    with pytest.raises(bnprune.ForwardError, match="cannot be proven: its outputs are not finite"):
        bnprune.prune(model(lambda n, x: x, lambda y: y / 0), X, ratio=0.5)


@pytest.mark.parametrize(
    "scaled",
    [
        lambda n, x: torch.add(x, x.abs(), alpha=1 / x.shape[1]),
        lambda n, x: x * torch.tensor(1 / x.shape[1]),
        lambda n, x: x + torch.full((), float(x.shape[1])),
        lambda n, x: x * 2 if x.shape[1] < 16 else x,
    ],
)
def test_what_is_computed_from_the_width_keeps_it(scaled) -> None:
    result = bnprune.prune(model(scaled), X, ratio=0.3)
    assert result.model.a[0].out_channels == 16
    assert result.report.refusals


def test_code_that_holds_on_to_the_original_is_named() -> None:
    network = model(lambda n, x: x)
    network.forward = lambda x: network.c(network.b(network.a(x)))
    with pytest.raises(bnprune.TraceError, match=r"a\.0: a copy .* still runs this module of the original"):
        bnprune.prune(network, X, ratio=0.5)


def test_random_numbers_and_statistics_are_left_as_they_were() -> None:
    network = model(lambda n, x: F.dropout(x, 0.1))
    before, statistics = torch.get_rng_state(), network.a[1].running_mean.clone()
    bnprune.prune(network.train(), X, ratio=0.5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(network.a[1].running_mean, statistics)
    assert network.training
