"""Sparsity: penalties that push BatchNorm scale factors γ towards zero, and what they can be expected to reach.

Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, equation (1):
the loss plus λ Σ|γ|, whose subgradient adds λ·sign(γ) to the gradient of γ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from bnprune.errors import ConfigError, PruningError


def scale_factors(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable scale factors of every BatchNorm, each once."""
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
            weight = module.weight
            if isinstance(weight, nn.Parameter) and weight.requires_grad:
                found[id(weight)] = weight
    return list(found.values())


class Penalty(Protocol):
    """A penalty on scale factors, applied once per optimizer step."""

    strength: float
    """λ"""

    def add_gradients(self) -> None:
        """Call after backward, gradient unscaling and clipping, and before `optimizer.step()`."""
        ...

    def shrink(self, lr: float) -> None:
        """Call after `optimizer.step()` with the learning rate of that step."""
        ...


class GammaL1:
    """The paper's penalty: adds λ·sign(γ) to the gradient of every scale factor.

    With adaptive optimizers (Adam, AdamW) a term in the gradient is normalised away; `decoupled` moves γ by
    lr·λ towards zero after the step instead, without crossing it.

    Example::

        penalty = bnprune.GammaL1(model, 1e-4)
        loss.backward()
        penalty.add_gradients()
        optimizer.step()

    Args:
        model: The network; BatchNorms that are frozen or without scale factors are left out.
        strength: λ, at least 0.
        decoupled: Leave gradients alone; shrink after the step.

    Raises:
        ConfigError: λ is negative or not a number.
        PruningError: The network has no trainable BatchNorm scale factor.
    """

    def __init__(self, model: nn.Module, strength: float, *, decoupled: bool = False) -> None:
        self.strength = _checked(strength)
        self.decoupled = decoupled
        self.gammas = require_scale_factors(model)

    def add_gradients(self) -> None:
        """Add λ·sign(γ) to the gradients. Call after unscaling and clipping, before `optimizer.step()`."""
        if self.decoupled or not self.strength:
            return
        pairs = [(gamma.grad, gamma) for gamma in self.gammas if gamma.grad is not None]
        if not pairs:
            return
        gradients, gammas = (list(column) for column in zip(*pairs, strict=True))
        with torch.no_grad():
            torch._foreach_add_(gradients, torch._foreach_sign(gammas), alpha=self.strength)

    def shrink(self, lr: float) -> None:
        """Decoupled form: move γ by lr·λ towards zero. Call after `optimizer.step()`."""
        if self.decoupled and self.strength:
            soft_threshold(self.gammas, lr * self.strength)


class GammaProximal:
    """Proximal L1 (ISTA): after the step, γ ← sign(γ)·max(|γ| - lr·λ·gain, 0), which gives exact zeros.

    `gain` is 1/(1-momentum) for SGD, so that λ pulls as hard as in `GammaL1`, whose momentum amplifies it.

    Raises:
        ConfigError: λ is negative or not a number.
        PruningError: The network has no trainable BatchNorm scale factor.
    """

    def __init__(self, model: nn.Module, strength: float, *, gain: float = 1.0) -> None:
        self.strength = _checked(strength)
        self.gain = gain
        self.gammas = require_scale_factors(model)

    def add_gradients(self) -> None:
        """Do nothing: the penalty acts after the step."""

    def shrink(self, lr: float) -> None:
        """Apply the soft threshold. Call after `optimizer.step()`."""
        if self.strength:
            soft_threshold(self.gammas, lr * self.strength * self.gain)


def _checked(strength: float) -> float:
    if not 0 <= strength < math.inf:  # also false for NaN
        raise ConfigError(f"strength: λ must be a number of at least 0 (got {strength}).")
    return strength


def require_scale_factors(model: nn.Module) -> list[nn.Parameter]:
    """Return the scale factors, or say that there are none.

    Raises:
        PruningError: The network has no trainable BatchNorm scale factor.
    """
    gammas = scale_factors(model)
    if not gammas:
        raise PruningError(
            "the network has no BatchNorm with trainable scale factors (γ): a sparsity penalty has nothing to act on."
        )
    return gammas


def soft_threshold(gammas: Sequence[torch.Tensor], threshold: float) -> None:
    """Move every value by `threshold` towards zero and stop there, in place."""
    with torch.no_grad():
        magnitudes = torch._foreach_abs(list(gammas))
        torch._foreach_sub_(magnitudes, threshold)
        torch._foreach_clamp_min_(magnitudes, 0.0)
        signs = torch._foreach_sign(list(gammas))
        torch._foreach_mul_(magnitudes, signs)
        torch._foreach_copy_(list(gammas), magnitudes)


# -- the travel budget -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Budget:
    """How far the penalty can move a scale factor over the whole training: B = λ · Σ lr · gain."""

    strength: float
    """λ"""
    reach: float
    """Σ lr · gain over all optimizer steps; gain is 1/(1-momentum) for SGD, 1 for decoupled penalties."""
    start: float
    """Mean |γ| before training."""

    @property
    def travel(self) -> float:
        """B, in units of γ."""
        return self.strength * self.reach

    @property
    def enough(self) -> bool:
        """Whether the penalty could bring an average γ to zero against no resistance."""
        return self.travel >= self.start

    def __str__(self) -> str:
        text = f"λ = {self.strength:.3g} can move γ by {self.travel:.2g}; mean |γ| is {self.start:.2g}"
        if not self.strength:
            return "no sparsity penalty"
        return text if self.enough else f"{text}: too little to reach zero, so nothing will become sparse"


def mean_gamma(gammas: Sequence[torch.Tensor]) -> float:
    """Return the mean |γ|."""
    return float(torch.cat([gamma.detach().abs().flatten() for gamma in gammas]).mean())


# -- what has become of γ --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GammaStatistics:
    """How the magnitudes of all scale factors are distributed."""

    quantiles: tuple[float, float, float, float, float]
    """Minimum, first quartile, median, third quartile, maximum of |γ|."""
    below: float
    """Share of scale factors with |γ| below epsilon."""
    split: bool
    """Whether there are two groups: at least 5% below epsilon, and almost none (1%) just above it (up to 3 epsilon)."""


def gamma_statistics(gammas: Sequence[torch.Tensor], epsilon: float = 0.01) -> GammaStatistics:
    """Describe the distribution of |γ|."""
    values = torch.cat([gamma.detach().abs().flatten() for gamma in gammas]).float().cpu()
    marks = torch.quantile(values, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    below = float((values < epsilon).float().mean())
    between = float(((values >= epsilon) & (values < 3 * epsilon)).float().mean())
    low, first, median, third, high = marks.tolist()
    return GammaStatistics((low, first, median, third, high), below, below >= 0.05 and between <= 0.01)
