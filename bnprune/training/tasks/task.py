"""The interface of a task: how a network is trained, and how it is judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

Batch = tuple[torch.Tensor, Any]
"""Inputs, shape (N, ...), and their targets: of any kind that the task expects."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of one batch, and what training reports about it."""

    value: torch.Tensor
    """Scalar, the mean over the batch; training minimizes it."""
    count: int
    """Samples in the batch."""
    outputs: torch.Tensor | None = None
    """The class scores of the network, (N, K) or (N, K, H, W), for distillation; None if there are none."""
    correct: torch.Tensor | None = None
    """Scalar: the number of samples that are right, for the running average; None if the task does not count them."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The values of a network on some samples."""

    values: Mapping[str, float]
    """Values by name. Choices are made by the first; larger is better. The one named "loss", if there is one, decides
    between networks that are equal by the first; there, smaller is better."""
    count: int
    """Samples."""
    scores: torch.Tensor | None = None
    """A score per sample, shape (N,), in the order of the batches, for paired comparisons; None if there is none. The
    first value must be its mean."""


@dataclass(frozen=True, slots=True)
class TaskSetting:
    """What the tasks of a recipe depend on."""

    classes: int
    """Number of classes of the data."""
    label_smoothing: float = 0.0
    """Share of the target probability that is spread evenly over all classes."""


class Task(Protocol):
    """The purpose of a network: its loss and its metrics. Other code does not interpret the outputs of the network."""

    means: ClassVar[bool]
    """True if every value is a mean over the samples, so that several processes can evaluate a part each. Otherwise,
    one process evaluates all samples, while the others wait: metrics of torchmetrics need `sync_on_compute=False`,
    because they would wait for the other processes in turn."""
    counts: ClassVar[bool]
    """True if `loss` counts the samples that are right (`Loss.correct`)."""

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a batch; `model` is in training mode."""
        ...

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
        """Return the values of a network; `model` is in eval mode, and gradients are off."""
        ...
