"""The tasks by name. An entry points to its class lazily, so that reading the table does not import torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnprune.training.tasks.task import Task

TASKS = {
    "classification": "bnprune.training.tasks.classification:Classification",
    "distillation": "bnprune.training.tasks.distillation:Distillation",
}


def make_task(name: str, **options: Any) -> Task:
    """Return a task by name, with the options of its class.

    Raises:
        KeyError: There is no such task.
    """
    module, _, kind = TASKS[name].partition(":")
    task: Task = getattr(importlib.import_module(module), kind)(**options)
    return task
