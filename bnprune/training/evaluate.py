"""The values of a network on a split: those of its task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from bnprune.data.splits import Split, Splits
from bnprune.recovery.paired import values_on_halves
from bnprune.training.distributed.processes import SINGLE_PROCESS, Processes
from bnprune.training.tasks.classification import Classification, exact_type
from bnprune.training.tasks.task import Task

CLASSIFICATION: Task = Classification()
"""The task of networks whose recipe names none."""


@dataclass(frozen=True, slots=True)
class Score:
    """The main value of a network on a split, its loss, and what comparisons with other networks need."""

    loss: float
    """Mean of the task's "loss"; 0 if it has none."""
    value: float
    """Mean of the task's main value: for classification, the share of images classified correctly, in [0, 1]."""
    count: int
    """Images evaluated."""
    samples: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """The score of each image, shape (N,), on the CPU; None if the task has none, or several processes evaluated."""
    halves: tuple[float, ...] = ()
    """The main value on random halves, if a comparison needs it: see `paired_score`."""
    name: str = "top1"
    """Name of the main value: "agreement" if the images have no labels, and a teacher gives the targets."""

    @property
    def top1(self) -> float:
        """The main value, under its name in classification."""
        return self.value


def evaluate(
    model: nn.Module,
    split: Split,
    device: torch.device,
    batch_size: int = 256,
    processes: Processes = SINGLE_PROCESS,
    task: Task = CLASSIFICATION,
    indices: torch.Tensor | None = None,
) -> Score:
    """Evaluate in eval mode, every image once, or those at `indices`; the modes of its modules are restored.

    With several processes, each evaluates a part of the images, perhaps fewer than others; all return the same score.

    Raises:
        ForwardError: The forward pass of the network fails.
    """
    chosen = torch.arange(len(split)) if indices is None else indices
    own = chosen[processes.rank :: processes.size]
    with _evaluating(model):
        evaluation = task.evaluate(model, split.serve(own.split(batch_size) if len(own) else (), device))
    # A process without images has its sums on the CPU.
    sums, (main, *_) = evaluation.sums, evaluation.sums
    total = sums.get("loss", torch.zeros(())).to(device, exact_type(device))
    value = sums[main].to(device, exact_type(device) if sums[main].is_floating_point() else torch.int64)
    processes.add(total, value)
    samples = None if evaluation.scores is None or processes.size > 1 else evaluation.scores.cpu()
    return Score(total.item() / len(chosen), value.item() / len(chosen), len(chosen), samples, name=main)


def validation_score(splits: Splits, device: torch.device, task: Task = CLASSIFICATION) -> Callable[[nn.Module], Score]:
    """Return a function that evaluates networks on the validation split, by which choices are made."""
    return lambda model: evaluate(model, splits.validation, device, task=task)


def paired_score(splits: Splits, device: torch.device, task: Task = CLASSIFICATION) -> Callable[[nn.Module], Score]:
    """Return the same function for paired comparisons: without a score per image, it adds the values on halves.

    The halves cost ten more evaluations of each network.
    """

    def score(model: nn.Module) -> Score:
        found = evaluate(model, splits.validation, device, task=task)
        if found.samples is not None:
            return found
        return replace(found, halves=values_on_halves(found.count, lambda half: on_half(model, half)))

    def on_half(model: nn.Module, half: torch.Tensor) -> float:
        return evaluate(model, splits.validation, device, task=task, indices=half).value

    return score


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
