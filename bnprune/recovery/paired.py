"""Confidence bounds of the loss of a network against another one that was evaluated on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Protocol

import torch

CONFIDENCE = 0.95
"""Confidence of every one-sided bound."""
_RESAMPLES = 4000
_CHUNK = 2**21
"""Samples that are drawn at once."""
_STEPS = 60
"""Bisections, after which a bound is exact to 1e-18."""


class Sampled(Protocol):
    """The score of a network, with the data for computing its uncertainty."""

    @property
    def value(self) -> float:
        """The mean over all samples; larger is better."""
        ...

    @property
    def count(self) -> int:
        """Samples."""
        ...

    @property
    def samples(self) -> torch.Tensor | None:
        """The score of each sample, shape (N,): True if it is right, or a number; None if there is none."""
        ...

    @property
    def halves(self) -> Sequence[float]:
        """The values on random halves of the samples, the same for every network; empty if samples have scores."""
        ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """One-sided confidence bounds of a loss: below zero, the second network is better."""

    lower: float
    upper: float


def loss_bounds(before: Sampled, after: Sampled, error: float = 1 - CONFIDENCE) -> Bounds | None:
    """Return bounds of the value of `before` minus that of `after` on samples of the same kind.

    For right and wrong answers, see `score_bound`; for other scores per sample, `bootstrap_bounds`; without scores per
    sample, `half_sample_bounds`.

    Args:
        before: The first network.
        after: The second one, evaluated on the same samples in the same order.
        error: Probability with which each bound may be wrong.

    Returns:
        The bounds; None if there is neither a score per sample nor a value on halves.
    """
    if before.samples is not None and after.samples is not None:
        if before.samples.dtype == after.samples.dtype == torch.bool:
            return right_wrong_bounds(before.samples, after.samples, error)
        return bootstrap_bounds(before.samples, after.samples, error)
    if before.halves and after.halves:
        return half_sample_bounds(before, after, error)
    return None


# -- right and wrong -------------------------------------------------------------------------------------------------


def right_wrong_bounds(before: torch.Tensor, after: torch.Tensor, error: float) -> Bounds:
    """Return bounds from two networks' right and wrong answers, shape (N,) each."""
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    count = len(before)
    return Bounds(-score_bound(gained, lost, count, error), score_bound(lost, gained, count, error))


@lru_cache(maxsize=4096)
def score_bound(lost: int, gained: int, count: int, error: float) -> float:
    """Return the upper confidence bound of a loss of accuracy, from the samples on which two networks differ.

    The bound is the largest loss that a score test of McNemar's kind does not reject: Tango (1998), "Equivalence test
    and confidence interval for the difference in proportions for the paired-sample design", Statistics in Medicine 17,
    eq. 5 and 7. A continuity correction of half a sample keeps the error probability below `error` for few samples:
    by enumeration over 100 to 5,000 samples, losses of 0.5% to 5%, and all rates of gains, it is at most 4.9% for 5%;
    without the correction it reaches 6%.

    Args:
        lost: Samples that only the first network gets right.
        gained: Samples that only the second network gets right.
        count: All samples.
        error: Probability with which the true loss may exceed the bound.
    """
    if not count:
        return 1.0
    z = NormalDist().inv_cdf(1 - error)
    low, high = (lost - gained) / count, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        distance = count * middle - (lost - gained) - 0.5
        low, high = (low, middle) if distance >= z * _deviation(lost, gained, count, middle) else (middle, high)
    return high


def _deviation(lost: int, gained: int, count: int, loss: float) -> float:
    """Return the standard deviation of lost - gained if the loss is `loss` and gains are as likely as the data allows.

    The share of gains is the root of 2n·q² + (−lost − gained + (2n − lost + gained)·loss)·q − gained·loss·(1 − loss).
    """
    b = (2 * count - lost + gained) * loss - lost - gained
    c = gained * loss * (1 - loss)
    gains = (math.sqrt(max(b * b + 8 * count * c, 0.0)) - b) / (4 * count)
    return math.sqrt(max(count * (2 * gains + loss * (1 - loss)), 0.0))


def samples_needed(loss: float, error: float = 1 - CONFIDENCE) -> int | None:
    """Return the smallest number of samples for which `score_bound(0, 0, ...)` is at most `loss`; None for a loss of 0.

    With 0 lost and gained, the bound solves n·loss − 0.5 = z·√(n·loss·(1 − loss)), a quadratic equation in √n.
    """
    if loss <= 0:
        return None
    half = NormalDist().inv_cdf(1 - error) * math.sqrt(loss * (1 - loss)) / 2
    return math.ceil(((half + math.sqrt(half * half + loss / 2)) / loss) ** 2)


# -- other scores ----------------------------------------------------------------------------------------------------


def bootstrap_bounds(before: torch.Tensor, after: torch.Tensor, error: float) -> Bounds:
    """Return bounds from two networks' scores per sample, shape (N,) each, by a paired bootstrap of the mean.

    Percentiles of 4,000 resamples (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3), with a
    fixed seed. One sample with the largest possible difference is added on the side of the bound, because a bootstrap
    ignores losses that do not occur in the samples: for N equal scores in [0, 1], this gives the "rule of three", 3/N
    at 95%. The largest difference is the range of all scores and 0.
    """
    first, second = before.double(), after.double()
    seen = torch.cat([first, second, first.new_zeros(1)])
    span = seen.max() - seen.min()
    differences = first - second
    upper = _quantile(torch.cat([differences, span[None]]), 1 - error)
    return Bounds(-_quantile(torch.cat([-differences, span[None]]), 1 - error), upper)


def _quantile(differences: torch.Tensor, share: float) -> float:
    generator = torch.Generator().manual_seed(0)
    size, chunk = len(differences), max(_CHUNK // len(differences), 1)
    means = [
        differences[torch.randint(size, (min(chunk, _RESAMPLES - start), size), generator=generator)].mean(1)
        for start in range(0, _RESAMPLES, chunk)
    ]
    ordered = torch.cat(means).sort().values
    return float(ordered[min(math.ceil(share * _RESAMPLES), _RESAMPLES - 1)])


def half_sample_bounds(before: Sampled, after: Sampled, error: float) -> Bounds:
    """Return bounds from two networks' values on the same random halves of the samples.

    A mean over a random half differs from that over all samples with the variance that the latter has itself
    (McCarthy 1969, "Pseudo-replication: half samples", Review of the International Statistical Institute 37). Half of
    the halves are complements of the others, so a t distribution with half as many degrees of freedom is used. The
    bounds are at least as wide as those for losses that do not occur in the samples: ln(1/error)/N of the larger value.
    """
    loss = before.value - after.value
    deviations = [one - two - loss for one, two in zip(before.halves, after.halves, strict=True)]
    error_of_mean = math.sqrt(sum(deviation**2 for deviation in deviations) / len(deviations))
    unseen = -math.log(error) / max(before.count, 1) * max(abs(before.value), abs(after.value))
    width = max(_t_quantile(1 - error, max(len(deviations) // 2, 1)) * error_of_mean, unseen)
    return Bounds(loss - width, loss + width)


def _t_quantile(share: float, freedom: int) -> float:
    """Return a quantile of Student's t distribution (Abramowitz and Stegun 1964, 26.7.5)."""
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, start=1))


HALVES = 10
"""Splits of the samples into two halves."""


def values_on_halves(count: int, value: Callable[[torch.Tensor], float]) -> tuple[float, ...]:
    """Evaluate on random halves of the samples, and on their complements; always the same ones.

    Args:
        count: All samples.
        value: Evaluates on the samples with the given indices, shape (n,).

    Returns:
        The values, a half after its complement; empty if there are fewer than two samples.
    """
    if count < 2:
        return ()
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(count, generator=generator) for _ in range(HALVES)]
    even = count // 2 * 2  # of an odd number, a random sample is left out, so that both halves are equal
    return tuple(value(half.sort().values) for order in orders for half in order[:even].chunk(2))
