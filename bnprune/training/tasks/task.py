"""The interface of a task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

Batch = tuple[torch.Tensor, Any]
"""Inputs, shape (N, ...), and their targets."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of one batch, and what training reports about it."""

    value: torch.Tensor
    """Scalar, the mean over the batch; training minimizes it."""
    outputs: torch.Tensor
    """The scores of the network, for distillation."""
    correct: torch.Tensor
    """Scalar: sum over the batch of the score per sample, for the running average."""
    count: int
    """Samples in the batch."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The values of a network on some samples, as sums, so that several processes can add theirs up."""

    sums: dict[str, torch.Tensor]
    """Scalar sum over all samples, by name of the value. Choices are made by the first; larger is better."""
    count: int
    """Samples."""
    scores: torch.Tensor | None = None
    """A score per sample, shape (N,), in the order of the batches, for paired comparisons; None if there is none."""

    @property
    def values(self) -> dict[str, float]:
        """The means over all samples."""
        return {name: float(total) / self.count for name, total in self.sums.items()}


class Task(Protocol):
    """The purpose of a network: its loss and its metrics. Other code does not interpret the outputs of the network."""

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a batch; `model` is in training mode."""
        ...

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
        """Return the values of a network; `model` is in eval mode, and gradients are off."""
        ...
