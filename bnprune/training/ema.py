"""The exponential moving average (EMA) of the weights during training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from bnprune.training.penalties.gamma import scale_factors

_Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


class Average:
    """An exponential moving average of the weights: a ← d·a + (1-d)·w after every update.

    The first average is the network after the first update. The decay d rises as (1 + n) / (10 + n) with the number of
    updates n until it reaches the given one, so that short trainings do not end with an average of their first steps.
    Buffers are copied; statistics of BatchNorms do not fit averaged weights: `recalibrate` them before the average is
    used (Izmailov et al. 2018, section 3.2). A scale factor that is exactly zero in the network is zero in the average,
    too: a proximal penalty has decided about that channel, and an average of earlier values would bring it back.

    Args:
        model: The network as it is before training.
        decay: Between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._blend)
        self._gammas: list[torch.Tensor] = [*scale_factors(model)]
        self._averaged_gammas: list[torch.Tensor] = [*scale_factors(self.network)]

    @property
    def network(self) -> nn.Module:
        """The network with averaged weights."""
        network: nn.Module = self._averaged.module
        return network

    def update(self, model: nn.Module) -> None:
        """Add the weights after an optimizer step to the average."""
        self._averaged.update_parameters(model)
        if self._gammas:
            with torch.no_grad():
                nonzero = torch._foreach_abs(torch._foreach_sign(self._gammas))
                torch._foreach_mul_(self._averaged_gammas, list(nonzero))

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of updates."""
        return self._averaged.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore a saved `state_dict`."""
        self._averaged.load_state_dict(saved)

    def _blend(self, averaged: _Tensors, current: _Tensors, _: Any) -> None:
        updates = int(self._averaged.n_averaged)  # on the CPU, also if the network is not
        with torch.no_grad():
            torch._foreach_lerp_(averaged, current, 1 - min(self.decay, (1 + updates) / (10 + updates)))
