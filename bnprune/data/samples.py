"""Checks of the samples of a user's data set, before anything is computed from them."""

from __future__ import annotations

import math
import operator
import reprlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

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

    def pair(self, sample: Any, index: int) -> tuple[torch.Tensor, int]:
        """Return a sample as a float32 image and an int, whatever number types they had.

        Raises:
            DataError: It is not an image tensor and the number of a class.
        """
        if not (isinstance(sample, tuple | list) and len(sample) == 2 and isinstance(sample[0], torch.Tensor)):
            got = _members(sample) if isinstance(sample, tuple | list) else described(sample)
            raise DataError(f"data: {self._sample(index)} must be an (image tensor, label) pair (got {got}).")
        return self._image(sample[0], index), self._label(sample[1], index)

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

    def batch(self, batch: Any, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and labels of a batch, as float32 and int64.

        Labels on an accelerator are not compared with the number of classes: reading them would wait for it.

        Raises:
            DataError: They are not images and the numbers of their classes.
        """
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        if not pair or not all(isinstance(part, torch.Tensor) for part in batch):
            got = _members(batch) if isinstance(batch, tuple | list) else described(batch)
            raise DataError(f"data: a batch of {self.where} must be a pair of tensors, images and labels (got {got}).")
        images, labels = batch
        count = len(indices)
        if not images.is_floating_point() or (self.shape is not None and images.shape != (count, *self.shape)):
            raise DataError(
                f"data: the images of a batch of {self.where} must be floating-point numbers of shape "
                f"{(count, *(self.shape or ()))} (got {described(images)})."
            )
        if labels.is_floating_point() or labels.is_complex() or labels.shape != (count,):
            raise DataError(
                f"data: the labels of a batch of {self.where} must be whole numbers of shape ({count},) "
                f"(got {described(labels)})."
            )
        if labels.device.type == "cpu":
            self.labels(labels, indices)
        return images.float(), labels.long()

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


def described(value: Any) -> str:
    """Return a short description of a value from user code, without calling its `repr`."""
    if isinstance(value, torch.Tensor | np.ndarray):
        dtype = str(value.dtype).removeprefix("torch.")
        place = f" on {value.device.type}" if isinstance(value, torch.Tensor) and value.device.type != "cpu" else ""
        layout = "sparse " if isinstance(value, torch.Tensor) and value.layout != torch.strided else ""
        return f"a {layout}{dtype} {type(value).__name__} of shape {tuple(value.shape)}{place}"
    if value is None or type(value) in (bool, int, float, str):
        return reprlib.repr(value)
    return f"a {type(value).__name__}"
