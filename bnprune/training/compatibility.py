"""Checks that a network fits the images it is trained or evaluated on, and its task."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from bnprune.channels.forward_pass import forward, on_meta_or_cpu
from bnprune.channels.pytrees import as_inputs
from bnprune.data.splits import Splits
from bnprune.errors import BnpruneError, ConfigError, DataError, first_line
from bnprune.training.evaluate import CLASSIFICATION
from bnprune.training.tasks.classification import Classification
from bnprune.training.tasks.scores import logits_of
from bnprune.training.tasks.task import Loss, Task

_MOST_VALUES = 2**28
"""Of one image: a gigabyte in float32."""


def require_fit(
    model: nn.Module, splits: Splits, where: str, batch_size: int | None = None, task: Task = CLASSIFICATION
) -> int | None:
    """Check that a network, its data and its task fit each other.

    For classification, the network runs on the shape of the images, and the number of its scores is compared with the
    number of classes. For another task, its `evaluate` and, before training, its `loss` run on two training images.

    Returns the number of the network's class scores; None if the task has none.

    Args:
        model: Left untouched.
        splits: The data.
        where: Name of the network in messages.
        batch_size: Of the training; None if the network is only evaluated.
        task: The task.

    Raises:
        DataError: A split holds no images, or there is one class only.
        ConfigError: The forward pass or the task fails, there is not a score per class, or a batch is too small for
            BatchNorm.
    """
    for name, split in (("training", splits.train), ("validation", splits.validation), ("test", splits.test)):
        if not len(split) and (splits.labelled or name != "test"):
            raise DataError(
                f"data: the {name} split holds no images. Use more (data.limit, and data.validation for the share of "
                f"each class that is held out)."
            )
    if math.prod(splits.shape) > _MOST_VALUES:
        raise ConfigError(f"data: images of {_sizes(splits.shape)} are too large. Lower data.image_size.")
    if not isinstance(task, Classification):
        return _require_task(model, splits, where, task, trained=batch_size is not None)
    if splits.labelled and splits.classes < 2:
        raise DataError("data: all images are of one class: there is nothing to classify.")
    scores = _require_scores(model, splits, where)
    if batch_size is not None:
        _require_trainable(model, splits, where, batch_size)
    return scores


def _require_scores(model: nn.Module, splits: Splits, where: str) -> int:
    try:
        output = _forward(model, splits.shape, 2, training=False)
    except Exception as error:
        raise ConfigError(f"{where}: {_misfit(splits, error)}") from error
    try:
        scores = logits_of(output)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}.") from error
    pixels = not splits.labelled and scores.dim() == 4  # a network for segmentation, which learns from its teacher
    if not (scores.dim() == 2 or pixels) or scores.shape[1] < splits.classes:
        raise ConfigError(
            f"{where}: the data has {splits.classes} classes, so the network must return as many scores; it "
            f"returns {_sizes(tuple(scores.shape[1:]))}. Most take num_classes={splits.classes} as an argument."
        )
    return scores.shape[1]


def _require_task(model: nn.Module, splits: Splits, where: str, task: Task, *, trained: bool) -> int | None:
    """Run a task on two training images; return the number of class scores that its loss gives, if it does."""
    device = torch.device("cpu")
    (batch,) = splits.train.serve([torch.arange(min(2, len(splits.train)))], device)
    copied = copy.deepcopy(model).to(device)
    loss: Loss | None = None
    try:
        with torch.no_grad():
            task.evaluate(copied.eval(), [batch])
        if trained:
            with torch.enable_grad():
                loss = task.loss(copied.train(), batch)
    except BnpruneError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{where}: the network does not fit the data and the task, which fails on images of "
            f"{_sizes(splits.shape)}: {type(error).__name__}: {first_line(error)}. Change the arguments of the "
            "network, data.image_size, or the task."
        ) from error
    if loss is not None and not loss.value.requires_grad:
        raise ConfigError(f"{where}: the loss of the task does not depend on the network, so that it cannot learn.")
    return None if loss is None or loss.outputs is None else loss.outputs.shape[1]


def _require_trainable(model: nn.Module, splits: Splits, where: str, batch_size: int) -> None:
    count = min(batch_size, len(splits.train))
    try:
        _forward(model, splits.shape, min(count, 2), training=True)
    except Exception as error:
        if count > 1:
            raise ConfigError(f"{where}: in train mode, {_misfit(splits, error)}") from error
        raise ConfigError(
            f"data.batch_size: the network cannot be trained on single images: {first_line(error)}. BatchNorm needs "
            f"several values per channel (got batch_size {batch_size}, {len(splits.train)} training images)."
        ) from error


def _forward(model: nn.Module, shape: tuple[int, ...], count: int, *, training: bool) -> Any:
    inputs = as_inputs(torch.zeros(count, *shape))
    return on_meta_or_cpu(lambda device: forward(model, inputs, device=device, training=training))


def _misfit(splits: Splits, error: Exception) -> str:
    return (
        f"the network does not fit the data: its forward pass fails on images of {_sizes(splits.shape)}: "
        f"{first_line(error)}. Change the arguments of the network, or data.image_size."
    )


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape) or "one number"
