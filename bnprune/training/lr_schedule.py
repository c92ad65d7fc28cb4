"""Learning rate schedules: functions of the optimizer step, without a state to save or to resume."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnprune.config.schema import OptimisationConfig

Reals = NDArray[np.floating[Any]]


def learning_rate(config: OptimisationConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0 over the whole training."""
    return float(learning_rates(config, np.array([step]), steps_per_epoch)[0])


def learning_rates(config: OptimisationConfig, steps: NDArray[np.int64], steps_per_epoch: int) -> Reals:
    """Return the learning rates of steps, counted from 0 over the whole training.

    `cosine` ends at zero (Loshchilov & Hutter 2017); `step` divides by 10 at each milestone (the paper: 50% and 75%);
    `one-cycle` rises linearly for the first 30%, then falls to zero along a cosine (Smith & Topin 2018).
    """
    total = config.epochs * steps_per_epoch
    warmup = config.warmup_epochs * steps_per_epoch
    rising = np.minimum((steps + 1) / max(1.0, warmup), 1.0)
    progress = (steps - warmup) / max(1, total - warmup)
    rates: Reals = config.lr * np.where(steps < warmup, rising, _factors(config, progress))
    return rates


def _factors(config: OptimisationConfig, progress: Reals) -> Reals | float:
    match config.schedule:
        case "cosine":
            return _falling(progress)
        case "step":
            return 0.1 ** sum((progress >= milestone for milestone in config.milestones), np.zeros_like(progress))
        case "one-cycle":
            rise = 0.3
            return np.where(
                progress < rise, np.maximum(progress / rise, 0.04), _falling((progress - rise) / (1 - rise))
            )
        case "constant":
            return 1.0


def _falling(progress: Reals) -> Reals:
    halves: Reals = 0.5 * (1 + np.cos(math.pi * progress))
    return halves
