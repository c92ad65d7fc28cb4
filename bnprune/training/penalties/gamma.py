"""Sparsity penalties, which pull BatchNorm scale factors γ towards zero, and how far they can lower them in a training.

Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, equation (1):
the loss plus λ Σ|γ|, whose subgradient adds λ·sign(γ) to the gradient of γ.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from bnprune.channels.torch_internals import BatchNorm
from bnprune.errors import ConfigError, PruningError


def scale_factors(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable scale factors of every BatchNorm, each once."""
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, BatchNorm) and module.weight is not None:
            weight = module.weight
            if isinstance(weight, nn.Parameter) and weight.requires_grad:
                found[id(weight)] = weight
    return list(found.values())


class Penalty(Protocol):
    """A penalty on scale factors, applied once per optimizer step."""

    def at(self, step: int) -> None:
        """Set λ for an optimizer step, counted from 0 over the whole training, before anything else of it."""
        ...

    def add_gradients(self) -> None:
        """Call after backward, gradient unscaling and clipping, and before `optimizer.step()`."""
        ...

    def shrink(self, lr: float | torch.Tensor) -> None:
        """Call after `optimizer.step()` with the learning rate of that step."""
        ...


LambdaSchedule = Callable[[int, torch.Tensor], "float | torch.Tensor"]
"""λ as a function of the optimizer step and all scale factors (n,): one number, or one per scale factor."""


def described(strength: float | torch.Tensor, count: int) -> str:
    """Return λ, its mean if scale factors have their own, and the number of scale factors, for a `repr`."""
    mean = float(strength.mean()) if isinstance(strength, torch.Tensor) else strength
    return f"λ = {mean:.3g}, {count:,} scale factors"


class GammaPenalty(ABC):
    """Base of the penalties on scale factors: a subclass returns the subgradient, this class applies it.

    Args:
        model: The network; BatchNorms that are frozen or without scale factors are left out.
        strength: λ, at least 0.
        gain: None adds λ times the subgradient to the gradients. A number moves γ after the optimizer's step
            instead, by lr·λ·gain times the subgradient, and stops at zero.

    Raises:
        ConfigError: λ is negative or not a number.
        PruningError: The network has no trainable BatchNorm scale factor.
    """

    def __init__(self, model: nn.Module, strength: float, *, gain: float | None = None) -> None:
        self.strength = _checked(strength)
        self.gain = gain
        self.gammas = require_scale_factors(model)
        self.lambda_at: LambdaSchedule | None = None
        """λ over time; None if it is constant."""
        self._sizes = [gamma.numel() for gamma in self.gammas]
        self._lambda: float | torch.Tensor = self.strength

    def __repr__(self) -> str:
        return f"{type(self).__name__}({described(self._lambda, sum(self._sizes))})"

    @abstractmethod
    def pull(self, gammas: torch.Tensor) -> torch.Tensor:
        """Return a subgradient of the penalty for λ = 1 with respect to all scale factors, shape (n,)."""

    @property
    def present(self) -> float | torch.Tensor:
        """λ of the present step: one number, or one per scale factor, shape (n,)."""
        return self._lambda

    def set_strength(self, strength: float) -> None:
        """Change λ, as if the penalty had been made with it."""
        self.strength = self._lambda = _checked(strength)

    def at(self, step: int) -> None:
        """Set λ for an optimizer step, counted from 0. No effect if λ is constant."""
        if self.lambda_at is not None:
            self._lambda = self.lambda_at(step, self._values())

    def add_gradients(self) -> None:
        """Add λ times the subgradient to the gradients. Call after unscaling and clipping, before the step."""
        if self.gain is not None or self._is_off:
            return
        with torch.no_grad():
            pulls = self.pull(self._values()).mul_(self._lambda).split(self._sizes)
            pairs = [
                (gamma.grad, pull) for gamma, pull in zip(self.gammas, pulls, strict=True) if gamma.grad is not None
            ]
            if pairs:
                gradients, added = zip(*pairs, strict=True)
                torch._foreach_add_(gradients, added)

    def shrink(self, lr: float | torch.Tensor) -> None:
        """Move γ itself, if the penalty is not in the gradients. Call after `optimizer.step()`.

        Args:
            lr: The learning rate of the step; or a tensor (n,), if those of the scale factors differ.
        """
        if self.gain is None or self._is_off:
            return
        with torch.no_grad():
            values = self._values()
            signs = values.sign()
            values -= self.pull(values).mul_(self._lambda).mul_(lr * self.gain)
            moved = values.mul_(signs).clamp_min_(0.0).mul_(signs)  # γ does not cross zero, and stays there
            torch._foreach_copy_(list(self.gammas), moved.split(self._sizes))

    @property
    def _is_off(self) -> bool:
        return not isinstance(self._lambda, torch.Tensor) and not self._lambda

    def _values(self) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat(list(self.gammas))


class GammaL1(GammaPenalty):
    """L1, the penalty of Network Slimming: adds λ·sign(γ) to the gradient of every scale factor.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, equation (1). With
    adaptive optimizers (Adam, AdamW) a term in the gradient is normalised away; `decoupled` moves γ by lr·λ towards
    zero after the step instead, without crossing it. The same holds for all penalties. `bnprune.sparsify` makes these
    calls in a training loop that stays as it is.

    Example::

        penalty = bnprune.GammaL1(model, 1e-4)
        loss.backward()
        penalty.add_gradients()
        optimizer.step()
        penalty.shrink(lr=0.1)  # no effect unless decoupled

    Args:
        model: The network; BatchNorms that are frozen or without scale factors are left out.
        strength: λ, at least 0.
        decoupled: Leave gradients alone; shrink after the step.

    Raises:
        ConfigError: λ is negative or not a number.
        PruningError: The network has no trainable BatchNorm scale factor.
    """

    def __init__(self, model: nn.Module, strength: float, *, decoupled: bool = False) -> None:
        super().__init__(model, strength, gain=1.0 if decoupled else None)

    def pull(self, gammas: torch.Tensor) -> torch.Tensor:
        """Return sign(γ)."""
        return gammas.sign()


class GammaProximal(GammaPenalty):
    """Proximal L1 (ISTA): after the step, γ ← sign(γ)·max(|γ| - lr·λ·gain, 0), which gives exact zeros.

    Beck & Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse Problems", 2009.

    Args:
        model: The network; BatchNorms that are frozen or without scale factors are left out.
        strength: λ, at least 0.
        gain: 1/(1-momentum) for SGD, so that λ pulls as hard as in `GammaL1`, whose momentum amplifies it.

    Raises:
        ConfigError: λ is negative or not a number.
        PruningError: The network has no trainable BatchNorm scale factor.

    Example::

        penalty = bnprune.GammaProximal(model, 1e-4, gain=1 / (1 - 0.9))
        loss.backward()
        optimizer.step()
        penalty.shrink(lr=0.1)
    """

    def __init__(self, model: nn.Module, strength: float, *, gain: float = 1.0) -> None:
        super().__init__(model, strength, gain=gain)

    def pull(self, gammas: torch.Tensor) -> torch.Tensor:
        """Return sign(γ)."""
        return gammas.sign()


class GammaPolarization(GammaPenalty):
    """Polarization: λ·(t‖γ‖₁ - ‖γ - mean(γ)‖₁) separates scale factors into a group at zero and a group away from it.

    Zhuang et al., "Neuron-level Structured Pruning using Polarization Regularizer", NeurIPS 2020, equation (2). The
    paper keeps γ within [0, a]. Here γ may be negative: magnitudes take its place; and instead of clipping at a, which
    would change a network that starts above it, nothing is pushed up any further there.

    Args:
        model: The network; BatchNorms that are frozen or without scale factors are left out.
        strength: λ, at least 0.
        t: A larger t moves more scale factors to zero; the paper's values are between 0.5 and 2.
        ceiling: The paper's a.
        decoupled: Leave gradients alone; move γ after the step, as adaptive optimizers need it.

    Raises:
        ConfigError: λ is negative or not a number.
        PruningError: The network has no trainable BatchNorm scale factor.

    Example::

        penalty = bnprune.GammaPolarization(model, 1e-4, t=1.2)
        loss.backward()
        penalty.add_gradients()
        optimizer.step()
    """

    def __init__(
        self, model: nn.Module, strength: float, *, t: float = 1.0, ceiling: float = 1.0, decoupled: bool = False
    ) -> None:
        super().__init__(model, strength, gain=1.0 if decoupled else None)
        self.t = t
        self.ceiling = ceiling

    def pull(self, gammas: torch.Tensor) -> torch.Tensor:
        """Return sign(γ)·(t - s + mean(s)), where s is the side of the mean on which |γ| lies: -1, 0 or 1."""
        magnitudes = gammas.abs()
        side = (magnitudes - magnitudes.mean()).sign_()
        upward = self.t - side + side.mean()
        return torch.where(magnitudes < self.ceiling, upward, upward.clamp_min(0.0)).mul_(gammas.sign())


def _checked(strength: float) -> float:
    if not 0 <= strength < math.inf:  # also false for NaN
        raise ConfigError(f"strength: λ must be a number of at least 0 (got {strength}).")
    return strength


def require_scale_factors(model: nn.Module) -> list[nn.Parameter]:
    """Return the scale factors, of which there must be some.

    Raises:
        PruningError: The network has no trainable BatchNorm scale factor.
    """
    gammas = scale_factors(model)
    if not gammas:
        raise PruningError(
            "the network has no BatchNorm with trainable scale factors (γ): a sparsity penalty has nothing to act on."
        )
    return gammas


# -- how far γ can fall -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TravelBudget:
    """The largest decrease of a scale factor that the penalty alone can cause in a training: B = λ · Σ lr · gain.

    See `bnprune.training.penalties.lambda_schedule` for the derivation.
    """

    strength: float
    """λ"""
    reach: float
    """Σ lr · gain over all optimizer steps; gain is 1/(1-momentum) for SGD, 1 for decoupled penalties."""
    start: float
    """Mean |γ| before training."""
    target: float | None = None
    """Share of the scale factors that λ, then at most `strength`, is steered to bring to zero."""
    steps: int = 0
    """With a target: optimizer steps in which it is to be reached."""

    @property
    def travel(self) -> float:
        """B, in units of γ."""
        return self.strength * self.reach

    @property
    def enough(self) -> bool:
        """True if the penalty could bring an average γ to zero if the loss did not resist."""
        return self.travel >= self.start

    def __str__(self) -> str:
        if not self.strength:
            return "no sparsity penalty"
        text = f"λ = {self.strength:.3g} can move γ by {self.travel:.2g}; mean |γ| is {self.start:.2g}"
        if self.target is not None:
            if self.enough:
                return f"λ is steered to bring {self.target:.0%} of all γ to zero"
            text = f"{self.target:.0%} of all γ are to reach zero, but {text}"
        return text if self.enough else f"{text}: too little to reach zero, so that few channels will become removable"


def mean_gamma(gammas: Sequence[torch.Tensor]) -> float:
    """Return the mean |γ|."""
    return float(torch.cat([gamma.detach().abs().flatten() for gamma in gammas]).mean())


# -- statistics of γ --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GammaStatistics:
    """The distribution of the magnitudes of all scale factors."""

    quantiles: tuple[float, float, float, float, float]
    """Minimum, first quartile, median, third quartile, maximum of |γ|."""
    below: float
    """Share of scale factors with |γ| below epsilon."""
    split: bool
    """True if there are two groups: at least 5% below epsilon, and at most 1% just above it (up to 3 epsilon)."""


def gamma_statistics(gammas: Sequence[torch.Tensor], epsilon: float = 0.01) -> GammaStatistics:
    """Return the distribution of |γ|."""
    values = torch.cat([gamma.detach().abs().flatten() for gamma in gammas]).float().cpu()
    marks = torch.quantile(values, values.new_tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    below = float((values < epsilon).float().mean())
    between = float(((values >= epsilon) & (values < 3 * epsilon)).float().mean())
    low, first, median, third, high = marks.tolist()
    return GammaStatistics((low, first, median, third, high), below, below >= 0.05 and between <= 0.01)
