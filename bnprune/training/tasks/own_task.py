"""Tasks of the user's own (`task: {factory: ...}`): what they return is checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from bnprune.config.user_code import call_factory, user_code_errors
from bnprune.errors import ConfigError, quoted
from bnprune.training.tasks.task import Batch, Evaluation, Loss, Task


class OwnTask:
    """A user's task.

    Its `loss(model, batch)` returns a scalar tensor, or a `Loss`. Its `evaluate(model, batches)` returns a mapping of
    names to numbers, of which the first is the main value and larger is better, or an `Evaluation`. If it has an
    attribute `means` that is true, its values are means over the samples: see `Task.means`.

    Args:
        task: The object.
        name: How it is called in messages.
    """

    counts = False

    def __init__(self, task: Any, name: str) -> None:
        missing = [method for method in ("loss", "evaluate") if not callable(getattr(task, method, None))]
        if missing:
            raise ConfigError(
                f"task.factory: the result of {name} must have the methods loss(model, batch) and "
                f"evaluate(model, batches) ({missing[0]} is missing in {type(task).__name__})."
            )
        self._task = task
        self._name = name
        self.means = bool(getattr(task, "means", False))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a batch.

        Raises:
            ConfigError: It is not a scalar.
        """
        with user_code_errors(f"task.factory: loss of {self._name} failed"):
            found = self._task.loss(model, batch)
        if isinstance(found, torch.Tensor):
            found = Loss(found, len(batch[0]))
        if not isinstance(found, Loss) or found.value.numel() != 1 or not found.value.is_floating_point():
            got = found.value if isinstance(found, Loss) else found
            shown = f"shape {tuple(got.shape)}" if isinstance(got, torch.Tensor) else type(got).__name__
            raise ConfigError(f"task.factory: loss of {self._name} must return a scalar tensor (got {shown}).")
        return Loss(found.value.reshape(()), found.count, found.outputs)

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
        """Return the values of a network.

        Raises:
            ConfigError: They are not numbers with names, or the main one is not finite.
        """
        counted = _Counted(batches)
        with user_code_errors(f"task.factory: evaluate of {self._name} failed"):
            found = self._task.evaluate(model, counted)
        given = found.values if isinstance(found, Evaluation) else found
        if not isinstance(given, Mapping) or not given or not all(_is_number(value) for value in given.values()):
            raise ConfigError(
                f"task.factory: evaluate of {self._name} must return a mapping of names to numbers, such as "
                f'{{"r2": 0.9}} (got {quoted(given)}).'
            )
        values = {str(name): float(value) for name, value in given.items()}
        if isinstance(found, Evaluation):
            return Evaluation(values, found.count, found.scores)
        return Evaluation(values, counted.count)


class _Counted:
    """Batches, whose samples are counted as they are read."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = batches
        self.count = 0

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            self.count += len(batch[0])
            yield batch


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)
    return number and not math.isinf(float(value))  # type: ignore[arg-type]


def own_task(factory: str, kwargs: Mapping[str, Any]) -> Task:
    """Call the factory of a task.

    Raises:
        ConfigError: There is no such factory, it fails, or its result is not a task.
    """
    return OwnTask(call_factory(factory, kwargs, "task.factory"), factory)  # type: ignore[return-value]
