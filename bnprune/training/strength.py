"""λ over time, as a function of the optimizer step and of γ: nothing to save, nothing to resume, equal on all ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import torch

from bnprune.config import OptimisationConfig, SparsityConfig
from bnprune.training.schedule import learning_rate
from bnprune.training.structured import Groups

_ARRIVE = 0.7
"""Share of the budget by which the wanted share is to be at zero; with the rest it is held there."""
_LATEST = 0.02
"""What is left of the budget is never taken for less than this share, or λ would grow without bound."""
_AHEAD = 4.0
"""Proportional gain: without resistance, γ falls like the budget that is left to this power."""
_CLEAR = 5.0
"""Multiple of epsilon down to which the penalty pulls what is to live."""


@dataclass(frozen=True)
class Course:
    """The parts of a training that decide how far a penalty can move γ, step by step."""

    factors: tuple[float, ...]
    """What λ is multiplied by in each optimizer step."""
    used: tuple[float, ...]
    """Σ lr · factor · gain before each step, and in the end."""

    @property
    def reach(self) -> float:
        """Σ lr · factor · gain over all steps: λ times this is how far γ can move."""
        return self.used[-1]


def chart(config: OptimisationConfig, sparsity: SparsityConfig, steps_per_epoch: int, gain: float) -> Course:
    """Work out a course from learning rates and the schedule of λ."""
    total = config.epochs * steps_per_epoch
    factors = tuple(factor(sparsity, step, total) for step in range(total))
    rates = (learning_rate(config, step, steps_per_epoch) for step in range(total))
    moved = accumulate((rate * f * gain for rate, f in zip(rates, factors, strict=True)), initial=0.0)
    return Course(factors, tuple(moved))


def factor(sparsity: SparsityConfig, step: int, total: int) -> float:
    """Return what λ is multiplied by in a step, counted from 0, of so many."""
    first = sparsity.schedule_share * total
    match sparsity.schedule:
        case "warmup":
            return float(step + 1 > first)  # the last step always counts
        case "ramp":
            return min(1.0, (step + 1) / first)
    return 1.0


@dataclass(frozen=True)
class Scheduled:
    """λ times the factor of each step."""

    strength: float
    course: Course

    def __call__(self, step: int, gammas: torch.Tensor) -> float:
        """Return λ of a step."""
        return self.strength * self.course.factors[step]


@dataclass(frozen=True)
class Steered:
    """λ that brings a wanted share of the scale factors to zero by the end of the training, and no more.

    Channels rank by the largest |γ| among those that must go together, as they will when they are cut. The wanted share
    that ranks lowest is pulled to zero, each γ of what ranks higher at most close to it: so a useless channel comes
    down however high it began, and when too many do, the rest of them stays where it could recover.

    What is to live is pulled by the λ of the travel budget. So is what is to die, until it falls behind: λ is at least
    in proportion to how far the last of the wanted share is from zero, over how far the learning rates yet to come
    would take it at λ = 1. Where the loss resists, the distance stays, time runs out, and λ grows.
    """

    share: float
    """Wanted share of all scale factors."""
    groups: Groups
    course: Course
    epsilon: float
    """A scale factor below this counts as zero."""
    usual: float
    """λ of the travel budget."""
    limit: float
    """Largest λ."""

    def __call__(self, step: int, gammas: torch.Tensor) -> torch.Tensor:
        """Return λ of a step for each of the scale factors (n,)."""
        magnitudes = gammas.abs()
        ranks = self.groups.reduce(magnitudes, "max")
        position = min(max(1, math.ceil(self.share * len(ranks))), self.groups.count)
        highest = torch.kthvalue(ranks, position).values
        left = max(_ARRIVE * self.course.reach - self.course.used[step], _LATEST * self.course.reach)
        needed = (highest * (_AHEAD / left)).clamp_(self.usual, self.limit)
        usual = (magnitudes > _CLEAR * self.epsilon) * self.usual
        return torch.where(ranks <= highest, needed, usual).mul_(self.course.factors[step])
