"""Confidence bounds of a loss on the same samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pytest
import torch

from bnprune.recovery.paired import (
    bootstrap_bounds,
    half_sample_bounds,
    loss_bounds,
    right_wrong_bounds,
    samples_needed,
    score_bound,
    values_on_halves,
)


@dataclass(frozen=True)
class Found:
    value: float
    count: int
    samples: torch.Tensor | None = None
    halves: tuple[float, ...] = ()


def score_statistic(lost: int, gained: int, count: int, loss: float) -> float:
    """The score statistic with the share of gains that maximizes the likelihood, found on a fine grid."""
    gains = np.linspace(1e-9, (1 - loss) / 2 - 1e-9, 2_000_001)
    same = count - lost - gained
    likelihood = lost * np.log(gains + loss) + gained * np.log(gains) + same * np.log(1 - 2 * gains - loss)
    best = float(gains[likelihood.argmax()])
    return (count * loss - (lost - gained) - 0.5) / math.sqrt(count * (2 * best + loss * (1 - loss)))


@pytest.mark.parametrize(("lost", "gained", "count"), [(1, 3, 143), (9, 4, 143), (60, 41, 2000)])
def test_the_bound_is_the_loss_that_a_score_test_just_rejects(lost: int, gained: int, count: int) -> None:
    for error in (0.05, 0.0125):
        bound = score_bound(lost, gained, count, error)
        found = score_statistic(lost, gained, count, bound)
        assert found == pytest.approx(NormalDist().inv_cdf(1 - error), abs=1e-3)


@pytest.mark.parametrize("gains", [0.0, 0.005, 0.03])
def test_the_bound_is_too_small_in_at_most_one_case_of_twenty(gains: float) -> None:
    """All outcomes of 250 samples whose true loss is 2%, each with its probability."""
    count, loss, missed, whole = 250, 0.02, 0.0, 0.0
    for lost in range(40):
        for gained in range(40 if gains else 1):
            same = count - lost - gained
            ways = math.comb(count, lost) * math.comb(count - lost, gained)
            probability = ways * (gains + loss) ** lost * gains**gained * (1 - 2 * gains - loss) ** same
            whole += probability
            missed += probability * (score_bound(lost, gained, count, 0.05) < loss)
    assert whole == pytest.approx(1, abs=1e-6)
    assert 0.005 < missed <= 0.05


def test_only_samples_on_which_two_networks_differ_make_a_bound_wide() -> None:
    before = torch.arange(1000) % 5 > 0
    same = right_wrong_bounds(before, before, 0.05)
    other = right_wrong_bounds(before, before.roll(1), 0.05)  # as many right, but other ones
    expected = 0.5 + 1.6449 * math.sqrt(1000 * same.upper * (1 - same.upper))  # losses at the bound
    assert 1000 * same.upper == pytest.approx(expected, rel=1e-4)
    assert same.lower == -same.upper
    assert other.upper == pytest.approx(1.645 * math.sqrt(400) / 1000 + 0.0005, abs=5e-4)
    worse = before & (torch.arange(1000) % 50 != 1)
    found = right_wrong_bounds(before, worse, 0.05)
    assert 0 < found.lower < 0.02 < found.upper
    assert right_wrong_bounds(worse, before, 0.05).lower == pytest.approx(-found.upper)


@pytest.mark.parametrize("error", [0.05, 0.0125])
def test_the_number_of_samples_that_a_tolerance_needs(error: float) -> None:
    for loss in (0.005, 0.01, 0.05, 0.3):
        needed = samples_needed(loss, error)
        assert needed is not None
        assert score_bound(0, 0, needed, error) <= loss < score_bound(0, 0, needed - 1, error)
    assert samples_needed(0.0) is None


def test_a_bootstrap_knows_that_it_has_not_seen_every_loss() -> None:
    scores = torch.linspace(0, 1, 300)
    bounds = bootstrap_bounds(scores, scores, 0.05)
    assert bounds.upper == pytest.approx(3 / 301, rel=1e-3)  # the rule of three
    assert bounds.lower == pytest.approx(-3 / 301, rel=1e-3)
    assert bootstrap_bounds(torch.ones(300), torch.ones(300), 0.05).upper == pytest.approx(3 / 301, rel=1e-3)


def test_a_bootstrap_is_paired() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2000, generator=generator)
    losses = 0.02 + 0.05 * torch.randn(2000, generator=generator)
    bounds = bootstrap_bounds(scores, scores - losses, 0.05)
    width = 1.645 * 0.05 / math.sqrt(2000)  # unpaired, it would be eight times as wide
    assert bounds.upper - float(losses.mean()) == pytest.approx(width, rel=0.5)
    assert float(losses.mean()) - bounds.lower == pytest.approx(width, rel=0.5)


def test_halves_vary_as_much_as_the_mean_over_all_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    widths = []
    for _ in range(50):
        one, two = torch.rand(2, 400, generator=generator)
        first, second = (
            Found(float(x.mean()), 400, None, values_on_halves(400, lambda half, x=x: float(x[half].mean())))
            for x in (one, two)
        )
        found = half_sample_bounds(first, second, 0.05)
        widths.append((found.upper - found.lower) / 2)
        assert found.upper + found.lower == pytest.approx(2 * (first.value - second.value), abs=1e-6)
    width = 1.812 * math.sqrt(2 / 12 / 400)  # t with 10 degrees of freedom; two uniform scores
    assert sum(widths) / 50 == pytest.approx(width, rel=0.1)


def test_halves_are_complements_and_the_same_every_time() -> None:
    seen: list[torch.Tensor] = []
    values_on_halves(11, lambda half: seen.append(half) or 0.0)  # type: ignore[func-returns-value]
    assert len(seen) == 20
    assert all(len(half) == 5 for half in seen)
    assert all(not set(one.tolist()) & set(two.tolist()) for one, two in zip(seen[::2], seen[1::2], strict=True))
    again: list[torch.Tensor] = []
    values_on_halves(11, lambda half: again.append(half) or 0.0)  # type: ignore[func-returns-value]
    assert all(torch.equal(one, two) for one, two in zip(seen, again, strict=True))
    assert values_on_halves(1, lambda half: 1 / len(half)) == ()


def test_the_bounds_follow_from_what_a_task_measures() -> None:
    right, score = torch.ones(100, dtype=torch.bool), torch.ones(100)
    assert loss_bounds(Found(1.0, 100, right), Found(1.0, 100, right)) == right_wrong_bounds(right, right, 0.05)
    assert loss_bounds(Found(1.0, 100, score), Found(1.0, 100, score)) == bootstrap_bounds(score, score, 0.05)
    halves = loss_bounds(Found(0.5, 100, None, (0.4, 0.6)), Found(0.5, 100, None, (0.4, 0.6)))
    assert halves is not None
    assert halves.upper == pytest.approx(-math.log(0.05) / 100 / 2)  # equal on both halves: losses not seen
    assert loss_bounds(Found(0.5, 100), Found(0.5, 100)) is None
