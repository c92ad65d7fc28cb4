"""λ schedules: λ as a function of the optimizer step and of γ.

A schedule has no state of its own, so there is nothing to save or to resume, and all ranks compute the same λ.

How far γ can fall. With SGD, learning rate η and momentum μ, a constant gradient λ·sign(γ) moves γ in the long run by
λ·η/(1-μ) per step. So over a training, the penalty can move γ by at most

    B = λ · Σ η_t · f_t · gain,    gain = 1/(1-μ) for SGD, and 1 for a penalty that is applied after the step,

with the factor f_t of the schedule (warm-up, ramp). If B is below the initial γ, no γ can reach zero: Liu et al., ICCV
2017, tune λ by hand for this reason. Here, `lambda: auto` steers λ to a target, or solves
B = travel · mean|γ| for λ, with the recipe's `train.sparsity.travel`.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bnprune.config.schema import OptimisationConfig, SparsityConfig
from bnprune.training.lr_schedule import Reals, learning_rates
from bnprune.training.penalties.structured import Groups

_DEADLINE = 0.7
"""Share of Σ lr · factor · gain after which the target is to be reached; the rest of the training keeps it there."""
_SMALLEST_REST = 0.02
"""What is left of this sum counts as at least this share of it; otherwise, λ would grow without bound."""
_STEERING_GAIN = 4.0
"""Exponent with which γ falls if the loss does not resist: γ ~ rest^4, see `Steered`."""
_KEPT_ABOVE = 5.0
"""Channels that are to stay are not pulled if |γ| is below this multiple of epsilon."""
_BLOCK = 1 << 14
"""Steps that are computed at once."""


class Travel(Protocol):
    """How far a penalty with λ = 1 can move γ in a training."""

    @property
    def reach(self) -> float:
        """Σ lr · factor · gain over all steps."""
        ...

    def factor(self, step: int) -> float:
        """Return the factor on λ in a step, counted from 0."""
        ...

    def used(self, step: int) -> float:
        """Return Σ lr · factor · gain before a step."""
        ...


class TravelSchedule:
    """How far a penalty with λ = 1 can move γ, step by step: the sums Σ η_t · f_t · gain.

    Computed in blocks of steps, so that long trainings take neither time nor memory.

    Args:
        config: Optimizer, learning rate and epochs.
        sparsity: The schedule of λ.
        steps_per_epoch: Optimizer steps.
        gain: 1/(1-momentum) for SGD; 1 for penalties that are applied after the step.
    """

    def __init__(self, config: OptimisationConfig, sparsity: SparsityConfig, steps_per_epoch: int, gain: float) -> None:
        self._rates = lambda steps: gain * learning_rates(config, steps, steps_per_epoch)
        self._sparsity = sparsity
        self._total = config.epochs * steps_per_epoch
        sums = [float(self._moved(first)[-1]) for first in range(0, self._total, _BLOCK)]
        self._before: list[float] = [0.0, *itertools.accumulate(sums)]
        """Σ lr · factor · gain before each block, and at the end."""
        self._block: tuple[int, Reals] = -1, np.zeros(0)
        """The last requested block, and the sums before each of its steps."""

    @property
    def reach(self) -> float:
        """Σ lr · factor · gain over all steps; λ times this is how far γ can fall."""
        return self._before[-1]

    def factor(self, step: int) -> float:
        """Return the factor on λ in a step, counted from 0."""
        return float(factors(self._sparsity, np.array([step]), self._total)[0])

    def used(self, step: int) -> float:
        """Return Σ lr · factor · gain before a step."""
        block, place = divmod(step, _BLOCK)
        if self._block[0] != block:
            self._block = block, self._before[block] + np.concatenate([[0.0], self._moved(block * _BLOCK)])
        return float(self._block[1][place])

    @property
    def steps_to_deadline(self) -> int:
        """Optimizer steps, from the first in which λ is not 0, in which a target is to be reached (see `Steered`)."""
        steps = range(self._total)
        first = bisect.bisect_right(steps, 0.0, key=self.used) - 1
        return bisect.bisect_left(steps, _DEADLINE * self.reach, key=self.used) - first

    def _moved(self, first: int) -> Reals:
        """Return Σ lr · factor · gain from a step on, after each step of a block."""
        steps = np.arange(first, min(first + _BLOCK, self._total))
        return np.cumsum(self._rates(steps) * factors(self._sparsity, steps, self._total))


def factors(sparsity: SparsityConfig, steps: NDArray[np.int64], total: int) -> Reals:
    """Return the factor on λ in each of `steps`, counted from 0, of a training of `total` steps."""
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
    travel: Travel

    def __call__(self, step: int, gammas: torch.Tensor) -> float:
        """Return λ of a step."""
        return self.strength * self.travel.factor(step)


@dataclass(frozen=True)
class Steered:
    """λ that brings a wanted share of the scale factors to zero by the end of the training, and no more.

    Channels are ranked by the largest |γ| among those that must go together, as they are when they are cut. The lowest
    of them, up to the wanted share, are to go; the others are to stay. With h, the largest |γ| of those to go, and r,
    the distance that γ could still move at λ = 1 before the deadline (`_DEADLINE`):

        λ for channels to go    = max(usual, 4 · h / r), at most `limit`
        λ for channels to stay  = usual while |γ| > 5 epsilon, else 0

    If the loss does not resist, dh/dr = 4 h / r: h falls like r^4, and λ falls with it to the usual one. If the loss
    resists, h stays while r shrinks, and λ grows. Example: h = 0.5 and r = 100 give 4 · 0.5 / 100 = 0.02; with the same
    h and r = 50, λ is 0.04.

    Channels to stay are pulled too, since a useless channel can have started high: it then comes down and takes the
    place of another one. They stop short of zero, from where they can recover.
    """

    share: float
    """Wanted share of all scale factors."""
    groups: Groups
    travel: Travel
    epsilon: float
    """A scale factor below this counts as zero."""
    usual: float
    """λ that is computed from `travel`."""
    limit: float
    """Largest λ."""

    def __call__(self, step: int, gammas: torch.Tensor) -> torch.Tensor:
        """Return λ of a step for each of the scale factors (n,)."""
        magnitudes = gammas.abs()
        ranks = self.groups.reduce(magnitudes, "max")
        position = min(max(1, math.ceil(self.share * len(ranks))), self.groups.count)
        highest = torch.kthvalue(ranks, position).values
        reach = self.travel.reach
        rest = max(_DEADLINE * reach - self.travel.used(step), _SMALLEST_REST * reach)
        to_go = (highest * (_STEERING_GAIN / rest)).clamp_(self.usual, self.limit)
        to_stay = (magnitudes > _KEPT_ABOVE * self.epsilon) * self.usual
        return torch.where(ranks <= highest, to_go, to_stay).mul_(self.travel.factor(step))
