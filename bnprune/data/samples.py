"""Checks of the samples of a user's data set, before anything is computed from them."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bnprune.config.tables import Targets
from bnprune.data.described import described
from bnprune.data.targets import checked_boxes, checked_mask
from bnprune.errors import DataError

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""

_MOST_CLASSES = 2**31


@dataclass(frozen=True)
class SampleRequirements:
    """Requirements on every sample of a split."""

    where: str = "the data set"
    """Name of the split in messages."""
    shape: Shape | None = None
    """Shape of an image; None if it is not known yet."""
    classes: int | None = None
    """Number of classes; labels are below it. None if it is not known yet."""
    targets: Targets = "labels"
    """What belongs to an image."""

    def pair(self, sample: Any, index: int) -> tuple[torch.Tensor, Any]:
        """Return a sample as a float32 image and its target: an int (whatever number type it had), a mask, boxes.

        Raises:
            DataError: It is not an image tensor and such a target.
        """
        if not (isinstance(sample, tuple | list) and len(sample) == 2 and isinstance(sample[0], torch.Tensor)):
            got = _members(sample) if isinstance(sample, tuple | list) else described(sample)
            raise DataError(f"data: {self._sample(index)} must be an (image tensor, {self._noun}) pair (got {got}).")
        image = self._image(sample[0], index)
        return image, self._target(sample[1], index, (image.shape[-2], image.shape[-1]))

    @property
    def _noun(self) -> str:
        return {"labels": "label", "masks": "mask", "boxes": "boxes", "any": "target"}[self.targets]

    def _target(self, target: Any, index: int, size: tuple[int, int]) -> Any:
        match self.targets:
            case "labels":
                return self._label(target, index)
            case "masks":
                return checked_mask(target, self._sample(index), size, self.classes)
            case "boxes":
                return checked_boxes(target, self._sample(index), self.classes)
        return target

    def labels(self, labels: torch.Tensor, indices: torch.Tensor | None = None) -> None:
        """Check the labels (N,) of all samples, or of those at some indices (N,).

        Raises:
            DataError: One is not the number of a class.
        """
        outside = torch.nonzero((labels < 0) | (labels >= self._limit)).flatten()
        if len(outside):
            place = int(outside[0])
            index = place if indices is None else int(indices[place])
            raise DataError(self._no_class(int(labels[place]), index))

    def batch(self, batch: Any, indices: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return images and targets of a batch; images as float32, labels and masks as int64.

        Labels on an accelerator are not compared with the number of classes: reading them would wait for it.

        Raises:
            DataError: They are not images and their targets.
        """
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        tensors = batch[:1] if self.targets in ("boxes", "any") else batch
        if not pair or not all(isinstance(part, torch.Tensor) for part in tensors):
            got = _members(batch) if isinstance(batch, tuple | list) else described(batch)
            what = "a pair of tensors, images and" if len(tensors) == 2 else "a pair of an image tensor and"
            raise DataError(f"data: a batch of {self.where} must be {what} {self.targets} (got {got}).")
        images, targets = batch
        count = len(indices)
        if not images.is_floating_point() or (self.shape is not None and images.shape != (count, *self.shape)):
            raise DataError(
                f"data: the images of a batch of {self.where} must be floating-point numbers of shape "
                f"{(count, *(self.shape or ()))} (got {described(images)})."
            )
        return images.float(), self._targets_of(targets, indices)

    def _targets_of(self, targets: Any, indices: torch.Tensor) -> Any:
        count, batch = len(indices), f"a batch of {self.where}"
        if self.targets == "masks":
            return checked_mask(targets, batch, self.shape and (self.shape[1], self.shape[2]), self.classes)
        if self.targets == "boxes":
            if not isinstance(targets, list | tuple) or len(targets) != count:
                raise DataError(f"data: {batch} must have a list of {count} targets (got {described(targets)}).")
            return [checked_boxes(one, batch, self.classes) for one in targets]
        return targets if self.targets == "any" else self._labels_of(targets, indices)

    def _labels_of(self, labels: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        count = len(indices)
        if labels.is_floating_point() or labels.is_complex() or labels.shape != (count,):
            raise DataError(
                f"data: the labels of a batch of {self.where} must be whole numbers of shape ({count},) "
                f"(got {described(labels)})."
            )
        if labels.device.type == "cpu":
            self.labels(labels, indices)
        return labels.long()

    @property
    def _limit(self) -> int:
        return _MOST_CLASSES if self.classes is None else self.classes

    def _image(self, image: torch.Tensor, index: int) -> torch.Tensor:
        if not (image.is_cpu and image.layout == torch.strided and image.is_floating_point()):
            raise DataError(
                f"data: the image of {self._sample(index)} must be a dense floating-point tensor on the CPU (got "
                f"{described(image)}). For images of whole numbers: v2.ToDtype(torch.float32, scale=True)."
            )
        if image.dim() != 3 or not image.numel() or (self.shape is not None and image.shape != self.shape):
            wanted = "(C, H, W)" if self.shape is None else f"{self.shape}, as the first image of the training set"
            raise DataError(
                f"data: the image of {self._sample(index)} must have shape {wanted} (got {tuple(image.shape)})."
            )
        if type(image) is torch.Tensor and image.dtype == torch.float32 and not image.requires_grad:
            return image
        return image.detach().as_subclass(torch.Tensor).float()

    def _label(self, label: Any, index: int) -> int:
        number = whole(label)
        if number is None or not 0 <= number < self._limit:
            raise DataError(self._no_class(label, index))
        return number

    def _no_class(self, label: Any, index: int) -> str:
        classes = "" if self.classes is None else f" to {self.classes - 1}, the classes of the training set"
        return (
            f"data: the label of {self._sample(index)} must be a whole number from 0{classes or ' up'} "
            f"(got {described(label)})."
        )

    def _sample(self, index: int) -> str:
        return f"sample {index} of {self.where}"


def whole(label: Any) -> int | None:
    """Return a label as an int, from a whole number of Python, numpy or torch, or an array of one; otherwise None."""
    if type(label) is int:
        return label
    if isinstance(label, np.ndarray | np.generic | torch.Tensor) and label.ndim < 2 and math.prod(label.shape) == 1:
        label = label.item()
    try:
        return operator.index(label)
    except TypeError:
        return None


def _members(sample: tuple[Any, ...] | list[Any]) -> str:
    shown = ", ".join(described(part) for part in sample[:3])
    return f"({shown}{', ...' if len(sample) > 3 else ''})"
