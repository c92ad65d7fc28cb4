"""Distillation: the term of the loss that compares the scores with those of a teacher.

Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from bnprune.training.tasks.scores import logits_of


@dataclass(frozen=True)
class Teacher:
    """A trained network that another one learns from; it is not changed."""

    network: nn.Module
    """In eval mode, on the device of the training."""
    temperature: float
    weight: float
    """Share of the teacher in the loss."""

    def add_to(self, loss: torch.Tensor, logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Return (1-weight)·loss + weight·T²·KL(teacher ‖ student), of scores divided by T, over the batch's mean.

        T² makes the size of the gradient independent of T (section 2.1). The teacher sees the same, augmented images.
        """
        with torch.no_grad():
            teacher_logits = logits_of(self.network(images))
        return (1 - self.weight) * loss + self.weight * divergence(logits, teacher_logits, self.temperature)


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T²·KL(softmax(teacher / T) ‖ softmax(student / T)) of scores (N, K), the mean over N.

    Scores of pixels, (N, K, H, W), are compared pixel by pixel, and the mean is that over all pixels.
    """
    expected, predicted = (
        F.log_softmax(scores.float().movedim(1, -1).flatten(0, -2) / temperature, 1) for scores in (teacher, student)
    )
    return temperature**2 * F.kl_div(predicted, expected, reduction="batchmean", log_target=True)


def as_teacher(network: nn.Module, device: torch.device, temperature: float, weight: float) -> Teacher:
    """Return a network as a teacher. The network is changed in place: device, eval mode, no gradients."""
    return Teacher(network.to(device).eval().requires_grad_(False), temperature, weight)
