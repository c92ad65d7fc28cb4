"""The values of a network on a split: those of its task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from bnprune.data.splits import Split, Splits
from bnprune.recovery.paired import values_on_halves
from bnprune.training.distributed.processes import SINGLE_PROCESS, Processes
from bnprune.training.tasks.classification import Classification
from bnprune.training.tasks.task import Evaluation, Task

CLASSIFICATION: Task = Classification()
"""The task of networks whose recipe names none."""


@dataclass(frozen=True, slots=True)
class Score:
    """The main value of a network on a split, its loss, and what comparisons with other networks need."""

    loss: float
    """The task's "loss"; 0 if it has none."""
    value: float
    """The task's main value: for classification, the share of images classified correctly, in [0, 1]."""
    count: int
    """Images evaluated."""
    samples: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """The score of each image, shape (N,), on the CPU; None if the task has none, or several processes evaluated."""
    halves: tuple[float, ...] = ()
    """The main value on random halves, if a comparison needs it: see `paired_score`."""
    name: str = "top1"
    """Name of the main value: "agreement" if the images have no labels, and a teacher gives the targets."""
    values: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)
    """All values of the task by name, the main one first."""


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

    With several processes, each evaluates a part of the images, perhaps fewer than others, or the leader evaluates
    all: see `Task.means`. All return the same score.

    Raises:
        ForwardError: The forward pass of the network fails.
    """
    chosen = torch.arange(len(split)) if indices is None else indices
    shared = processes.size > 1 and task.means
    if not shared and not processes.leads:
        return _of_leader(processes)
    own = chosen[processes.rank :: processes.size] if shared else chosen
    with _evaluating(model):
        found = task.evaluate(model, split.serve(own.split(batch_size) if len(own) else (), device))
    values = _mean_values(found, processes) if shared else dict(found.values)
    main = next(iter(values))
    samples = None if found.scores is None or processes.size > 1 else found.scores.cpu()
    score = Score(values.get("loss", 0.0), values[main], len(chosen), samples, name=main, values=values)
    return score if shared or processes.size == 1 else processes.gather(score)[0]


def _of_leader(processes: Processes) -> Score:
    score: Score = processes.gather(None)[0]
    return score


def _mean_values(found: Evaluation, processes: Processes) -> dict[str, float]:
    """Return the means over the samples of all processes; one without samples counts for nothing."""
    parts = [(values, count) for values, count in processes.gather((dict(found.values), found.count)) if count]
    total = sum(count for _, count in parts)
    return {name: math.fsum(values[name] * count for values, count in parts) / max(total, 1) for name in found.values}


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
