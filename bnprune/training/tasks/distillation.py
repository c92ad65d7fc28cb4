"""Distillation without labels: the divergence from the scores of a teacher, and the share of equal predictions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bnprune.channels.forward_pass import raising_forward_errors
from bnprune.channels.pytrees import as_inputs
from bnprune.training.distill import Teacher, divergence
from bnprune.training.tasks.scores import logits_of, means_of, sum_of
from bnprune.training.tasks.task import Batch, Evaluation, Loss


@dataclass(frozen=True, slots=True)
class Distillation:
    """The scores of the teacher on the same inputs (Hinton et al. 2015, section 2); targets are not read.

    The weight of the teacher is not used: there is no other term in the loss.
    """

    means: ClassVar[bool] = True
    counts: ClassVar[bool] = True
    teacher: Teacher

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return T²·KL(teacher ‖ student). A sample counts as correct if both give the same class the largest score."""
        inputs = batch[0]
        expected = self._expected(inputs)
        logits = logits_of(model(inputs))
        value = divergence(logits, expected, self.teacher.temperature)
        return Loss(value, len(logits), logits, _agreeing(logits, expected).sum().long())

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
        """Return "agreement" (the share of samples with the teacher's class) and "loss" (the divergence).

        Raises:
            ForwardError: The forward pass of the network fails.
        """
        agreeing: list[torch.Tensor] = []
        losses: list[torch.Tensor] = []
        for inputs, _ in batches:
            with raising_forward_errors(as_inputs(inputs)):
                output = model(inputs)
            logits, expected = logits_of(output), self._expected(inputs)
            losses.append(divergence(logits, expected, self.teacher.temperature) * len(logits))
            agreeing.append(_agreeing(logits, expected))
        scores = torch.cat(agreeing) if agreeing else torch.zeros(0, dtype=torch.bool)
        total = torch.stack(losses) if losses else torch.zeros(0)
        sums = {"agreement": scores.sum(), "loss": sum_of(total)}
        return Evaluation(means_of(sums, len(scores)), len(scores), scores)

    def _expected(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return logits_of(self.teacher.network(inputs))


def _agreeing(logits: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return for each sample if the predictions are equal, bool; for scores of pixels, the share that is."""
    equal = logits.detach().argmax(1) == expected.argmax(1)
    return equal if equal.dim() == 1 else equal.flatten(1).float().mean(1)
