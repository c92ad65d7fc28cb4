"""λ over time, as a function of the optimizer step and of γ: nothing to save, nothing to resume, equal on all ranks."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bnprune.config.schema import OptimisationConfig, SparsityConfig
from bnprune.training.lr_schedule import Reals, learning_rates
from bnprune.training.penalties.structured import Groups

_ARRIVE = 0.7
"""Share of the budget by which the wanted share is to be at zero; with the rest it is held there."""
_LATEST = 0.02
"""What is left of the budget is never taken for less than this share, or λ would grow without bound."""
_AHEAD = 4.0
"""Proportional gain: without resistance, γ falls like the budget that is left to this power."""
_CLEAR = 5.0
"""Multiple of epsilon down to which the penalty pulls what is to live."""
_BLOCK = 1 << 14
"""Steps that are worked out at once."""


class Course:
    """The parts of a training that decide how far a penalty can move γ, step by step.

    Worked out in blocks of steps, so that long trainings take neither time nor memory.
    """

    def __init__(self, config: OptimisationConfig, sparsity: SparsityConfig, steps_per_epoch: int, gain: float) -> None:
        self._rates = lambda steps: gain * learning_rates(config, steps, steps_per_epoch)
        self._sparsity = sparsity
        self._total = config.epochs * steps_per_epoch
        sums = [float(self._moved(first)[-1]) for first in range(0, self._total, _BLOCK)]
        self._before: list[float] = [0.0, *itertools.accumulate(sums)]
        """Σ lr · factor · gain before each block, and in the end."""
        self._block: tuple[int, Reals] = -1, np.zeros(0)
        """The block asked for last, and the sums before each of its steps."""

    @property
    def reach(self) -> float:
        """Σ lr · factor · gain over all steps: λ times this is how far γ can move."""
        return self._before[-1]

    def factor(self, step: int) -> float:
        """Return what λ is multiplied by in a step, counted from 0."""
        return float(factors(self._sparsity, np.array([step]), self._total)[0])

    def used(self, step: int) -> float:
        """Return Σ lr · factor · gain before a step."""
        block, place = divmod(step, _BLOCK)
        if self._block[0] != block:
            self._block = block, self._before[block] + np.concatenate([[0.0], self._moved(block * _BLOCK)])
        return float(self._block[1][place])

    def _moved(self, first: int) -> Reals:
        """Return Σ lr · factor · gain from a step on, after each step of a block."""
        steps = np.arange(first, min(first + _BLOCK, self._total))
        return np.cumsum(self._rates(steps) * factors(self._sparsity, steps, self._total))


def factors(sparsity: SparsityConfig, steps: NDArray[np.int64], total: int) -> Reals:
    """Return what λ is multiplied by in steps, counted from 0, of so many."""
    first = sparsity.schedule_share * total
    match sparsity.schedule:
        case "warmup":
            return np.asarray(steps + 1 > first, np.float64)  # the last step always counts
        case "ramp":
            return np.minimum(1.0, (steps + 1) / first)
    return np.ones(len(steps))


@dataclass(frozen=True)
class Scheduled:
    """λ times the factor of each step."""

    strength: float
    course: Course

    def __call__(self, step: int, gammas: torch.Tensor) -> float:
        """Return λ of a step."""
        return self.strength * self.course.factor(step)


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
        left = max(_ARRIVE * self.course.reach - self.course.used(step), _LATEST * self.course.reach)
        needed = (highest * (_AHEAD / left)).clamp_(self.usual, self.limit)
        usual = (magnitudes > _CLEAR * self.epsilon) * self.usual
        return torch.where(ranks <= highest, needed, usual).mul_(self.course.factor(step))
