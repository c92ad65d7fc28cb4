"""Detection: the losses of the network itself, and the mean average precision (mAP) of its boxes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from bnprune.channels.forward_pass import raising_forward_errors
from bnprune.channels.pytrees import as_inputs
from bnprune.errors import ConfigError
from bnprune.training.tasks.task import Batch, Evaluation, Loss, TaskSetting

_CONTRACT = "torchvision's detectors do so; wrap another one in a module that does"


@dataclass(frozen=True, slots=True)
class Detection:
    """Boxes with a class each; the network follows the contract of torchvision's detectors.

    Targets are lists with a mapping per image: "boxes" (n, 4), as x1, y1, x2, y2 in pixels, and "labels" (n,), from 1
    up, because 0 is the background. In training mode, the network takes images and targets and returns a mapping of
    losses. In eval mode, it takes images and returns a list with a mapping per image: "boxes", "labels" and "scores".
    """

    means: ClassVar[bool] = False
    counts: ClassVar[bool] = False

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the sum of the network's losses.

        Raises:
            ConfigError: The network does not return a mapping of losses.
        """
        images, targets = batch
        losses = model(list(images), targets)
        if not isinstance(losses, Mapping) or not losses:
            raise ConfigError(
                f"task: detection: in training mode, the network must take images and targets and return a mapping of "
                f"losses (got {type(losses).__name__}); {_CONTRACT}."
            )
        return Loss(torch.stack([value.sum() for value in losses.values()]).sum(), len(images))

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
        """Return "map" (COCO's, over IoU thresholds from 0.5 to 0.95) and "map50" (at 0.5), by torchmetrics.

        Raises:
            ForwardError: The forward pass of the network fails.
            ConfigError: The network does not return boxes, labels and scores.
        """
        from torchmetrics.detection import MeanAveragePrecision

        # Only the leading process evaluates: it must not wait for the others to add their boxes.
        metric = MeanAveragePrecision(iou_type="bbox", sync_on_compute=False)
        metric.warn_on_many_detections = False
        count = 0
        for images, targets in batches:
            with raising_forward_errors(as_inputs([*images])):
                found = model(list(images))
            metric.update(_on_cpu(_detections(found, len(images))), _on_cpu(targets))
            count += len(images)
        if not count:
            return Evaluation({"map": 0.0, "map50": 0.0}, 0)
        values = metric.compute()
        # torchmetrics gives -1 if no image has a box
        return Evaluation({"map": max(float(values["map"]), 0.0), "map50": max(float(values["map_50"]), 0.0)}, count)


def _detections(found: Any, count: int) -> Sequence[Mapping[str, torch.Tensor]]:
    wanted = {"boxes", "labels", "scores"}
    listed = isinstance(found, list | tuple) and len(found) == count
    if not listed or not all(isinstance(one, Mapping) and wanted <= one.keys() for one in found):
        raise ConfigError(
            f"task: detection: in eval mode, the network must return a list with a mapping per image, of boxes, labels "
            f"and scores (got {type(found).__name__}); {_CONTRACT}."
        )
    return found  # type: ignore[no-any-return]


def _on_cpu(entries: Sequence[Mapping[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Return the entries that the metric reads: networks and data sets may add others."""
    names = ("boxes", "labels", "scores")
    return [{name: one[name].detach().cpu() for name in names if name in one} for one in entries]


def detection(setting: TaskSetting) -> Detection:
    """Return the task of a recipe; it has no settings."""
    del setting
    return Detection()
