"""Classification: cross-entropy, and the share of samples whose class has the largest score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from bnprune.channels.forward_pass import raising_forward_errors
from bnprune.channels.pytrees import as_inputs
from bnprune.training.tasks.scores import logits_of, means_of, sum_of
from bnprune.training.tasks.task import Batch, Evaluation, Loss, TaskSetting


@dataclass(frozen=True, slots=True)
class Classification:
    """One class per sample: targets are labels, shape (N,), or shares of the classes, shape (N, K)."""

    means: ClassVar[bool] = True
    counts: ClassVar[bool] = True
    label_smoothing: float = 0.0

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the cross-entropy. Of a mixed sample, the class with the larger share counts as its label."""
        inputs, targets = batch
        logits = logits_of(model(inputs))
        labels = targets.argmax(1) if targets.dim() > 1 else targets
        if targets.dim() > 1:  # shares of the classes of the data; the network may have more outputs
            targets = F.pad(targets, (0, logits.shape[1] - targets.shape[1]))
        value = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        return Loss(value, len(labels), logits, (logits.detach().argmax(1) == labels).sum())

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
        """Return "top1" (the accuracy) and "loss" (the cross-entropy); the score of a sample is 1 if it is correct.

        Raises:
            ForwardError: The forward pass of the network fails.
        """
        correct: list[torch.Tensor] = []
        losses: list[torch.Tensor] = []
        for inputs, labels in batches:
            with raising_forward_errors(as_inputs(inputs)):
                output = model(inputs)
            logits = logits_of(output).float()
            losses.append(F.cross_entropy(logits, labels, reduction="sum"))
            correct.append(logits.argmax(1) == labels)
        scores = torch.cat(correct) if correct else torch.zeros(0, dtype=torch.bool)
        total = torch.stack(losses) if losses else torch.zeros(0)
        return Evaluation(means_of({"top1": scores.sum(), "loss": sum_of(total)}, len(scores)), len(scores), scores)


def classification(setting: TaskSetting) -> Classification:
    """Return the task of a recipe."""
    return Classification(setting.label_smoothing)
