"""Accuracy and loss of a network on a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from bnprune.channels.forward_pass import raising_forward_errors
from bnprune.channels.pytrees import as_inputs
from bnprune.data.splits import Split, Splits
from bnprune.training.distributed.processes import SINGLE_PROCESS, Processes


@dataclass(frozen=True, slots=True)
class Score:
    """Loss and accuracy of a network on a split."""

    loss: float
    """Mean cross-entropy."""
    top1: float
    """Share of images classified correctly, in [0, 1]."""
    count: int
    """Images evaluated."""


def evaluate(
    model: nn.Module, split: Split, device: torch.device, batch_size: int = 256, processes: Processes = SINGLE_PROCESS
) -> Score:
    """Evaluate in eval mode, every image once; the modes of its modules are restored.

    With several processes, each takes a part of the images, not necessarily as many as others, and all get the score.

    Raises:
        ForwardError: The forward pass of the network fails.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    total = torch.zeros((), dtype=exact_type(device), device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    try:
        with torch.no_grad():
            own = torch.arange(len(split))[processes.rank :: processes.size]
            for images, labels in split.serve(own.split(batch_size) if len(own) else (), device):
                with raising_forward_errors(as_inputs(images)):
                    output = model(images)
                logits = logits_of(output).float()
                total += F.cross_entropy(logits, labels, reduction="sum")
                correct += (logits.argmax(1) == labels).sum()
    finally:
        for module, mode in modes.items():  # some may be frozen in eval mode
            module.training = mode
    processes.add(total, correct)
    count = len(split)
    return Score(float(total) / count, int(correct) / count, count)


def validation_score(splits: Splits, device: torch.device) -> Callable[[nn.Module], Score]:
    """Return a function that evaluates networks on the validation split, by which choices are made."""
    return lambda model: evaluate(model, splits.validation, device)


def exact_type(device: torch.device) -> torch.dtype:
    """Return the type to add up losses in: float64 if the device supports it."""
    return torch.float32 if device.type == "mps" else torch.float64


def logits_of(output: object) -> torch.Tensor:
    """Return the class scores in the output of a classifier: a tensor, or the first of several outputs."""
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
