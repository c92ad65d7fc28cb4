"""From configuration to penalty: λ solved from the travel budget, and the form that suits the optimizer."""

from __future__ import annotations

from torch import nn

from bnprune.config import OptimisationConfig, SparsityConfig
from bnprune.training.schedule import total_rate
from bnprune.training.sparsity import Budget, GammaL1, GammaProximal, Penalty, mean_gamma, require_scale_factors

_STRONGEST_SGD = 0.02
_STRONGEST_ADAPTIVE = 0.3
"""Limits of `lambda: auto`. A stronger pull beats the loss's gradient on every γ, useful or not: a few times 0.01 for
SGD, 1 for adaptive optimizers, which normalise it. Short trainings that would need more cannot become sparse safely."""


def make_penalty(
    model: nn.Module, config: OptimisationConfig, sparsity: SparsityConfig | None, steps_per_epoch: int
) -> tuple[Penalty | None, Budget | None]:
    """Build the penalty of a training, and say how far it can move the scale factors.

    Args:
        model: The network as it is before training.
        config: Optimizer and schedule; momentum amplifies a term in the gradient by 1/(1-momentum).
        sparsity: The penalty; None or `penalty: none` for no sparsity.
        steps_per_epoch: Optimizer steps.

    Raises:
        PruningError: The network has no trainable BatchNorm scale factor.
    """
    if sparsity is None or sparsity.penalty == "none":
        return None, None
    sgd = config.optimizer == "sgd"
    gain = 1 / (1 - config.momentum) if sgd else 1.0
    start = mean_gamma(require_scale_factors(model))
    reach = total_rate(config, steps_per_epoch) * gain
    solved = min(sparsity.travel * start / reach, _strongest(config))
    strength = solved if sparsity.lambda_ == "auto" else sparsity.lambda_
    penalty: Penalty = (
        GammaProximal(model, strength, gain=gain)
        if sparsity.penalty == "l1-proximal"
        else GammaL1(model, strength, decoupled=not sgd)
    )
    return penalty, Budget(strength, reach, start)


def advice(budget: Budget, config: OptimisationConfig, sparsity: SparsityConfig) -> str:
    """Say what would bring the scale factors to zero, where the budget does not."""
    needed = budget.start / budget.reach
    if needed > _strongest(config):
        return "Train longer (train.epochs), raise train.lr, or let γ start lower (model.gamma_init)."
    if sparsity.lambda_ == "auto":
        return f"Raise train.sparsity.travel above 1 (got {sparsity.travel:g})."
    return f"Raise train.sparsity.lambda above {needed:.2g}, or set it to auto."


def _strongest(config: OptimisationConfig) -> float:
    return _STRONGEST_SGD if config.optimizer == "sgd" else _STRONGEST_ADAPTIVE
