"""Segmentation: cross-entropy per pixel, and the mean intersection over union (mIoU) of the classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from bnprune.channels.forward_pass import raising_forward_errors
from bnprune.channels.pytrees import as_inputs
from bnprune.data.targets import IGNORED
from bnprune.errors import ConfigError
from bnprune.training.tasks.scores import logits_of, sum_of
from bnprune.training.tasks.task import Batch, Evaluation, Loss, TaskSetting

if TYPE_CHECKING:
    from torchmetrics.classification import MulticlassJaccardIndex

_AUXILIARY_WEIGHT = 0.5
"""Weight of an auxiliary head in the loss, as in torchvision's reference training of segmentation networks."""


@dataclass(frozen=True, slots=True)
class Segmentation:
    """One class per pixel: targets are masks, shape (N, H, W), int64; pixels of 255 are ignored.

    The network returns logits (N, K, H, W), or a mapping with them under "out", as torchvision's do. The output of an
    auxiliary head, under "aux", is added to the loss.
    """

    means: ClassVar[bool] = False
    counts: ClassVar[bool] = False
    classes: int = 1
    """Number of classes of the masks, which the network must have scores for."""
    label_smoothing: float = 0.0

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the mean cross-entropy of the pixels that are not ignored.

        Raises:
            ConfigError: The network does not return a logit for every pixel and class.
        """
        images, masks = batch
        output = model(images)
        logits = _pixel_logits(output, masks, self.classes)
        value = self._cross_entropy(logits, masks)
        if isinstance(output, Mapping) and "aux" in output:
            value = value + _AUXILIARY_WEIGHT * self._cross_entropy(output["aux"], masks)
        return Loss(value, len(masks), logits)

    def _cross_entropy(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        total = F.cross_entropy(
            logits, masks, ignore_index=IGNORED, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return total / (masks != IGNORED).sum().clamp(min=1)  # a batch may have no pixel that counts

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
        """Return "miou", "pixel_accuracy" and "loss".

        mIoU is the mean over the classes that occur in the masks or predictions, from the counts of pixels of all
        images together (torchmetrics, `MulticlassJaccardIndex`).

        Raises:
            ForwardError: The forward pass of the network fails.
            ConfigError: The network does not return a logit for every pixel and class.
        """
        metric: MulticlassJaccardIndex | None = None
        losses, counts, right, images = [], [], [], 0
        for inputs, masks in batches:
            with raising_forward_errors(as_inputs(inputs)):
                output = model(inputs)
            logits = _pixel_logits(output, masks, self.classes).float()
            counted = masks != IGNORED
            losses.append(F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum"))
            counts.append(counted.sum())
            right.append(((logits.argmax(1) == masks) & counted).sum())
            if metric is None:
                metric = _jaccard_index(logits.shape[1]).to(masks.device)
            metric.update(logits.argmax(1), masks)
            images += len(masks)
        if metric is None:
            return Evaluation({"miou": 0.0, "pixel_accuracy": 0.0, "loss": 0.0}, 0)
        pixels = max(int(sum(counts)), 1)
        values = {
            "miou": float(metric.compute()),
            "pixel_accuracy": int(sum(right)) / pixels,
            "loss": float(sum_of(torch.stack(losses))) / pixels,
        }
        return Evaluation(values, images)


def _jaccard_index(classes: int) -> MulticlassJaccardIndex:
    from torchmetrics.classification import MulticlassJaccardIndex

    # Only the leading process evaluates: it must not wait for the others to add their counts.
    return MulticlassJaccardIndex(classes, ignore_index=IGNORED, validate_args=False, sync_on_compute=False)


def _pixel_logits(output: object, masks: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the logits (N, K, H, W) in the output of a network.

    Raises:
        ConfigError: They do not have a score for each of the classes and every pixel of the masks (N, H, W).
    """
    try:
        logits = logits_of(output)
    except TypeError as error:
        raise ConfigError(f"task: segmentation: {error}.") from error
    if logits.dim() != 4 or logits.shape[-2:] != masks.shape[-2:]:
        raise ConfigError(
            f"task: segmentation needs logits of shape (N, classes, {masks.shape[-2]}, {masks.shape[-1]}), one score "
            f"per class and pixel; the network returns {tuple(logits.shape)}. Resize them in its forward."
        )
    if logits.shape[1] < classes:
        raise ConfigError(
            f"task: the masks have {classes} classes, so the network must return as many scores per pixel; it returns "
            f"{logits.shape[1]}. Most take num_classes={classes} as an argument."
        )
    return logits


def segmentation(setting: TaskSetting) -> Segmentation:
    """Return the task of a recipe."""
    return Segmentation(setting.classes, setting.label_smoothing)
