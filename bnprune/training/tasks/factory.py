"""Making the task that a recipe names."""

from __future__ import annotations

import importlib.util

from bnprune.config.schema import TaskConfig
from bnprune.errors import ConfigError
from bnprune.training.tasks.own_task import own_task
from bnprune.training.tasks.task import Task, TaskSetting


def make_task(config: TaskConfig, classes: int, label_smoothing: float = 0.0) -> Task:
    """Return the task of a recipe.

    Args:
        config: The `task` section.
        classes: Number of classes of the data.
        label_smoothing: Of the training; tasks without class scores do not use it.

    Raises:
        ConfigError: A package is missing, or there is no such factory, it fails, or its result is not a task.
    """
    if config.factory is not None:
        return own_task(config.factory, config.kwargs)
    entry = config.entry
    missing = [name for name in entry.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"task: '{config.name}' needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    task: Task = entry(TaskSetting(classes, label_smoothing))
    return task
