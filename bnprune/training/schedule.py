"""Learning rates as a function of the optimizer step: nothing to save, nothing to resume."""

from __future__ import annotations

import math

from bnprune.config import OptimisationConfig


def learning_rate(config: OptimisationConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0 over the whole training.

    `cosine` ends at zero (Loshchilov & Hutter 2017); `step` divides by 10 at each milestone (the paper: 50% and 75%);
    `one-cycle` rises linearly for the first 30%, then falls to zero along a cosine (Smith & Topin 2018).
    """
    total = config.epochs * steps_per_epoch
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return config.lr * _factor(config, progress)


def _factor(config: OptimisationConfig, progress: float) -> float:
    match config.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "step":
            return 0.1 ** sum(progress >= milestone for milestone in config.milestones)
        case "one-cycle":
            rise = 0.3
            if progress < rise:
                return max(progress / rise, 0.04)
            return 0.5 * (1 + math.cos(math.pi * (progress - rise) / (1 - rise)))
        case "constant":
            return 1.0
