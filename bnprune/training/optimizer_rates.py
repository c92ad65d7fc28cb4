"""What a training loop of a user's own does to scale factors: learning rates, skipped steps, and how far γ can move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bnprune.channels.torch_internals import has_stepped_under_schedule
from bnprune.errors import ConfigError


def torch_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer itself: accelerate and Lightning wrap it."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"sparsify: expected a torch optimizer, got {type(optimizer).__name__}.")
    return optimizer


def was_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """True if a fused optimizer has skipped the step itself, because a GradScaler found an infinite gradient."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


class LiveTravel:
    """A `Travel` whose learning rates are only known as they come: those of later steps count as the present one."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.step = 0
        self.rate = 0.0
        """lr · gain of the present step."""
        self.done = 0.0
        """Σ lr · gain of the steps before."""

    @property
    def reach(self) -> float:
        """Σ lr · gain over all steps."""
        return self.done + self.rate * (self.steps - self.step)

    def factor(self, _: int) -> float:
        """Return the factor on λ in a step."""
        return 1.0

    def used(self, _: int) -> float:
        """Return Σ lr · gain before the present step."""
        return self.done


class Rates:
    """The learning rates of scale factors, times the gain of the optimizer: 1/(1 - momentum) for SGD."""

    def __init__(self, optimizer: torch.optim.Optimizer, gammas: Sequence[torch.Tensor]) -> None:
        self._optimizer, self._gammas = optimizer, gammas
        groups = self._groups()
        if not any(id(gamma) in groups for gamma in gammas):
            raise ConfigError(
                "sparsify: the optimizer trains none of the BatchNorm scale factors of the network. Build it from "
                "model.parameters() of this network, and give both."
            )

    def now(self) -> float | torch.Tensor:
        """Return lr · gain: one number if it is the same for all scale factors, else a tensor (n,)."""
        groups = self._groups()
        rates = [self._rate(groups.get(id(gamma))) for gamma in self._gammas]
        if len(set(rates)) == 1:
            return rates[0]
        sizes = torch.tensor([gamma.numel() for gamma in self._gammas])
        return torch.tensor(rates).repeat_interleave(sizes).to(self._gammas[0])

    def peak(self) -> float:
        """Return the largest lr · gain that is known to come; later learning rates may exceed it.

        A learning-rate schedule names its peak in the parameter groups, and leaves the name there when it ends. So the
        names count for an optimizer that has not taken a step; afterwards, only the present learning rate does.
        """
        return self._largest("lr") if self._is_used else self.named_peak()

    def named_peak(self) -> float:
        """Return the largest lr · gain that is in the parameter groups, although it may be of an earlier schedule."""
        return self._largest("lr", "initial_lr", "max_lr")

    def _largest(self, *keys: str) -> float:
        groups = self._groups()
        used = [groups[id(gamma)] for gamma in self._gammas if id(gamma) in groups]
        return max(
            float(group[key]) * self._gain(group) for group in used for key in keys if group.get(key) is not None
        )

    @property
    def _is_used(self) -> bool:
        return bool(self._optimizer.state) or has_stepped_under_schedule(self._optimizer)

    def _groups(self) -> dict[int, dict[str, Any]]:
        """Return the parameter group of each parameter; `load_state_dict` of the optimizer replaces them."""
        return {id(parameter): group for group in self._optimizer.param_groups for parameter in group["params"]}

    def _rate(self, group: dict[str, Any] | None) -> float:
        return 0.0 if group is None else float(group["lr"]) * self._gain(group)

    def _gain(self, group: Mapping[str, Any]) -> float:
        momentum = group.get("momentum", 0.0) if isinstance(self._optimizer, torch.optim.SGD) else 0.0
        return 1 / (1 - momentum) if momentum < 1 else math.inf
