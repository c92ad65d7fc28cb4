"""What belongs to an image: a label, a mask, boxes, or anything; how it is checked, put into batches, and moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import default_collate

from bnprune.channels.pytrees import map_tensors
from bnprune.config.tables import Targets
from bnprune.data.described import described
from bnprune.errors import DataError

IGNORED = 255
"""The value of pixels in a mask that belong to no class; neither losses nor metrics count them."""


def collated(targets: list[Any], kind: Targets) -> Any:
    """Put the targets of samples into a batch: boxes as a list, anything else as `default_collate` does."""
    return targets if kind == "boxes" else default_collate(targets)


def moved(targets: Any, device: torch.device) -> Any:
    """Return the targets of a batch with their tensors on a device."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), targets)


def checked_mask(mask: Any, sample: str, size: tuple[int, int] | None, classes: int | None) -> torch.Tensor:
    """Return a mask, or a batch of masks, as int64.

    Args:
        mask: Shape (H, W) or (N, H, W), whole numbers; `IGNORED` where a pixel has no class.
        sample: Name of the sample in messages.
        size: Height and width of the image; None if they are not known.
        classes: Number of classes; None if it is not known.

    Raises:
        DataError: It is not a mask of that size, or has other classes.
    """
    whole = isinstance(mask, torch.Tensor) and not (mask.is_floating_point() or mask.is_complex())
    if not whole or (size is not None and tuple(mask.shape[-2:]) != size):
        wanted = "the height and width of its image" if size is None else f"shape {size}, that of its image"
        raise DataError(
            f"data: the mask of {sample} must be a tensor of whole numbers with {wanted} (got {described(mask)})."
        )
    found: torch.Tensor = mask.detach().as_subclass(torch.Tensor).long()
    limit = IGNORED if classes is None else classes
    if found.device.type == "cpu" and bool(((found < 0) | ((found >= limit) & (found != IGNORED))).any()):
        outside = found[(found < 0) | ((found >= limit) & (found != IGNORED))]
        raise DataError(
            f"data: the mask of {sample} must hold numbers of classes from 0 to {limit - 1}, or {IGNORED} for pixels "
            f"without a class (got {int(outside[0])})."
        )
    return found


def checked_boxes(target: Any, sample: str, classes: int | None) -> dict[str, Any]:
    """Return the target of a detector, as float32 boxes (n, 4) and int64 labels (n,); other entries are kept.

    Args:
        target: A mapping with "boxes" (x1, y1, x2, y2 in pixels) and "labels".
        sample: Name of the sample in messages.
        classes: Number of classes with the background, which is 0; None if it is not known.

    Raises:
        DataError: It is something else, a box is empty, or a label is not that of a class.
    """
    if not isinstance(target, Mapping) or not all(
        isinstance(target.get(name), torch.Tensor) for name in ("boxes", "labels")
    ):
        raise DataError(
            f'data: the target of {sample} must be a mapping with the tensors "boxes" and "labels" '
            f"(got {described(target)})."
        )
    boxes, labels = (target[name].detach().as_subclass(torch.Tensor) for name in ("boxes", "labels"))
    count = len(labels) if labels.dim() == 1 else -1
    if not count and not boxes.numel():
        boxes = boxes.reshape(0, 4)
    if boxes.shape != (count, 4) or labels.is_floating_point():
        raise DataError(
            f"data: {sample} must have boxes of shape (n, 4) and labels of shape (n,), whole numbers (got "
            f"{described(boxes)} and {described(labels)})."
        )
    if boxes.device.type == "cpu" and not bool((boxes[:, 2:] > boxes[:, :2]).all()):
        raise DataError(f"data: {sample} has an empty box. Boxes are x1, y1, x2, y2 with x1 < x2 and y1 < y2.")
    labels = labels.long()
    outside = labels < 1 if classes is None else (labels < 1) | (labels >= classes)
    if labels.device.type == "cpu" and bool(outside.any()):
        largest = "" if classes is None else f" to {classes - 1}"
        raise DataError(f"data: the labels of {sample} must be from 1{largest or ' up'}; 0 is the background.")
    return {**target, "boxes": boxes.float(), "labels": labels}
