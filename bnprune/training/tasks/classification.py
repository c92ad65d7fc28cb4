"""Classification: cross-entropy, and the share of samples whose class has the largest score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from bnprune.channels.forward_pass import raising_forward_errors
from bnprune.channels.pytrees import as_inputs
from bnprune.training.tasks.task import Batch, Evaluation, Loss


@dataclass(frozen=True, slots=True)
class Classification:
    """One class per sample: targets are labels, shape (N,), or shares of the classes, shape (N, K)."""

    label_smoothing: float = 0.0

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the cross-entropy. Of a mixed sample, the class with the larger share counts as its label."""
        inputs, targets = batch
        logits = logits_of(model(inputs))
        labels = targets.argmax(1) if targets.dim() > 1 else targets
        if targets.dim() > 1:  # shares of the classes of the data; the network may have more outputs
            targets = F.pad(targets, (0, logits.shape[1] - targets.shape[1]))
        value = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        return Loss(value, logits, (logits.detach().argmax(1) == labels).sum(), len(labels))

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
        return Evaluation({"top1": scores.sum(), "loss": sum_of(total)}, len(scores), scores)


def sum_of(losses: torch.Tensor) -> torch.Tensor:
    """Add up losses one after the other, in float64 if the device has it."""
    total = torch.zeros((), dtype=exact_type(losses.device), device=losses.device)
    for loss in losses:
        total += loss
    return total


def exact_type(device: torch.device) -> torch.dtype:
    """Return the type to add up losses in: float64 if the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def logits_of(output: object) -> torch.Tensor:
    """Return the class scores in the output of a classifier: the tensor itself, or the first of several."""
    while not isinstance(output, torch.Tensor):
        if isinstance(output, dict):
            output = output.get("logits", output.get("out", next(iter(output.values()))))
        elif hasattr(output, "logits"):
            output = output.logits
        elif isinstance(output, tuple | list) and output:
            output = output[0]
        else:
            raise TypeError(f"expected class scores from the network, got {type(output).__name__}")
    return output
