"""Penalties on scale factors against loops and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bnprune
from bnprune.config.schema import OptimisationConfig, SparsityConfig
from bnprune.training.lr_schedule import learning_rate
from bnprune.training.penalties.gamma import TravelBudget, gamma_statistics, scale_factors
from bnprune.training.penalties.table import make_penalty
from tests.nets import MOTIFS, norms, randomized


def backward(model: nn.Module) -> None:
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()


def test_gradient_gains_lambda_times_sign() -> None:
    model = randomized(MOTIFS["residual"][0]()).train()
    with torch.no_grad():
        norms(model)[0].weight[:3] = torch.tensor([-0.5, 0.0, 0.5])
    backward(model)
    expected = {}
    for name, parameter in model.named_parameters():
        expected[name] = parameter.grad.clone()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            for index, gamma in enumerate(module.weight.tolist()):
                expected[f"{name}.weight"][index] += 0.01 * ((gamma > 0) - (gamma < 0))
    bnprune.GammaL1(model, 0.01).add_gradients()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-7)


def test_frozen_unused_and_absent_scale_factors_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[0].weight.requires_grad_(False)
    assert [gamma is model[i].weight for gamma, i in zip(scale_factors(model), (2, 3), strict=True)] == [True, True]
    model[2](torch.randn(2, 3, 4, 4)).sum().backward()
    bnprune.GammaL1(model, 1.0).add_gradients()
    assert model[3].weight.grad is None
    with pytest.raises(bnprune.PruningError, match="no BatchNorm with trainable scale factors"):
        bnprune.GammaL1(nn.Linear(2, 2), 1.0)
    with pytest.raises(bnprune.ConfigError, match="strength"):
        bnprune.GammaL1(model, -1.0)


def test_shared_norms_are_penalised_once() -> None:
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, norm)
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    before = norm.weight.grad.clone()
    bnprune.GammaL1(model, 0.25).add_gradients()
    torch.testing.assert_close(norm.weight.grad, before + 0.25)


def test_soft_threshold_stops_at_zero() -> None:
    model = nn.BatchNorm2d(5)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0]))
    bnprune.GammaProximal(model, 1.5, gain=5.0).shrink(0.1)
    assert model.weight.tolist() == [-1.25, 0.0, 0.0, 0.0, 1.25]


@pytest.mark.parametrize("form", ["gradient", "proximal", "decoupled"])
def test_travel_is_what_the_budget_says(form: str) -> None:
    """A scale factor without a loss moves by λ·Σlr·gain, until it reaches zero."""
    model = nn.Sequential(nn.BatchNorm2d(1))
    steps, strength = 400, 2e-3
    config = OptimisationConfig(epochs=1, lr=0.1, momentum=0.9, nesterov=False, weight_decay=0, schedule="constant",
                                optimizer="adam" if form == "decoupled" else "sgd")  # fmt: skip
    penalty, budget = make_penalty(
        model, config, SparsityConfig(penalty="l1-proximal" if form == "proximal" else "l1", lambda_=strength), steps
    )
    with torch.no_grad():
        model[0].weight.fill_(2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.0 if form == "decoupled" else 0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        model[0].weight.grad, model[0].bias.grad = torch.zeros(1), torch.zeros(1)
        penalty.add_gradients()
        optimizer.step()
        penalty.shrink(0.1)
    assert 2.0 - model[0].weight.item() == pytest.approx(budget.travel, rel=0.03)
    assert budget.travel == pytest.approx(strength * 0.1 * steps * (1 if form == "decoupled" else 10))


def test_proximal_gives_exact_zeros_and_subgradient_does_not() -> None:
    values = {}
    for form in ("l1", "l1-proximal"):
        norm = nn.BatchNorm2d(1)
        model = nn.Sequential(norm)
        penalty, _ = make_penalty(model, OptimisationConfig(), SparsityConfig(penalty=form, lambda_=1e-2), 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(300):
            norm.weight.grad = torch.zeros(1)
            penalty.add_gradients()
            optimizer.step()
            penalty.shrink(0.1)
        values[form] = norm.weight.item()
    assert values["l1-proximal"] == 0.0
    assert 0 < abs(values["l1"]) < 0.05


def test_auto_lambda_solves_the_budget() -> None:
    model = randomized(MOTIFS["chain"][0]())
    start = torch.cat([norm.weight.detach().abs() for norm in norms(model)]).mean().item()
    config = OptimisationConfig(epochs=50, lr=0.1, momentum=0.8)
    _, budget = make_penalty(model, config, SparsityConfig(travel=4.0), 200)
    rates = sum(learning_rate(config, step, 200) for step in range(50 * 200))
    assert budget.strength == pytest.approx(4.0 * start * (1 - 0.8) / rates)
    assert budget.travel == pytest.approx(4.0 * start)
    assert budget.enough


def test_a_budget_that_cannot_reach_zero_says_so() -> None:
    budget = TravelBudget(strength=1e-5, reach=100.0, start=0.5)
    assert not budget.enough
    assert "too little to reach zero" in str(budget)


def test_statistics_see_two_groups() -> None:
    split = gamma_statistics([torch.cat([torch.full((70,), 1e-5), torch.linspace(0.2, 1, 30)])])
    assert split.below == pytest.approx(0.7)
    assert split.split
    smeared = gamma_statistics([torch.linspace(0, 0.1, 100)])
    assert not smeared.split
    assert smeared.quantiles[0] == 0
    assert smeared.quantiles[4] == pytest.approx(0.1)


def test_schedules() -> None:
    cosine = OptimisationConfig(epochs=10, lr=0.4, warmup_epochs=2)
    rates = [learning_rate(cosine, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([0.04 * (i + 1) for i in range(10)])
    assert rates[10] == 0.4
    assert rates[30] == pytest.approx(0.2)
    assert rates[-1] < 0.001
    step = OptimisationConfig(epochs=4, lr=1.0, schedule="step")
    assert [learning_rate(step, i, 1) for i in range(4)] == pytest.approx([1, 1, 0.1, 0.01])
    assert sum(learning_rate(step, n, 3) for n in range(3 * step.epochs)) == pytest.approx(6 + 0.3 + 0.03)
    cycle = [learning_rate(OptimisationConfig(epochs=10, lr=1.0, schedule="one-cycle"), i, 10) for i in range(100)]
    assert max(cycle) == pytest.approx(1.0, abs=0.04)
    assert cycle.index(max(cycle)) in (29, 30)
    assert cycle[-1] < 0.01


@pytest.mark.parametrize("strength", [-1e-4, float("nan"), float("inf")])
@pytest.mark.parametrize("penalty", [bnprune.GammaL1, bnprune.GammaProximal])
def test_a_strength_that_is_none_is_refused(penalty, strength: float) -> None:
    with pytest.raises(bnprune.ConfigError, match="λ must be a number of at least 0"):
        penalty(nn.BatchNorm2d(2), strength)
