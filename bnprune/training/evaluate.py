"""Accuracy and loss of a network on a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from bnprune.data.splits import Split, Splits
from bnprune.training.distributed.processes import SINGLE_PROCESS, Processes
from bnprune.training.tasks.classification import Classification, exact_type
from bnprune.training.tasks.task import Task

CLASSIFICATION: Task = Classification()
"""The task of networks whose recipe names none."""


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
    model: nn.Module,
    split: Split,
    device: torch.device,
    batch_size: int = 256,
    processes: Processes = SINGLE_PROCESS,
    task: Task = CLASSIFICATION,
) -> Score:
    """Evaluate in eval mode, every image once; the modes of its modules are restored.

    With several processes, each evaluates a part of the images, perhaps fewer than others; all return the same score.

    Raises:
        ForwardError: The forward pass of the network fails.
    """
    own = torch.arange(len(split))[processes.rank :: processes.size]
    with _evaluating(model):
        evaluation = task.evaluate(model, split.serve(own.split(batch_size) if len(own) else (), device))
    # A process without images has its sums on the CPU.
    total = evaluation.sums["loss"].to(device, exact_type(device))
    correct = evaluation.sums["top1"].to(device, torch.int64)
    processes.add(total, correct)
    count = len(split)
    return Score(float(total) / count, int(correct) / count, count)


def validation_score(splits: Splits, device: torch.device) -> Callable[[nn.Module], Score]:
    """Return a function that evaluates networks on the validation split, by which choices are made."""
    return lambda model: evaluate(model, splits.validation, device)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():  # some may be frozen in eval mode
            module.training = mode
