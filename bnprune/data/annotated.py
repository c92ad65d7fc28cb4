"""Images with masks or boxes, read and transformed one by one with torchvision's transforms v2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from bnprune.config.schema import DataConfig
from bnprune.config.tables import Targets
from bnprune.data.folder import IMAGENET_MEAN, IMAGENET_STD
from bnprune.data.samples import SampleRequirements
from bnprune.data.splits import Normalisation, Splits, stratified
from bnprune.data.stream import StreamSplit


class Annotations(Protocol):
    """Images with what belongs to them, before any transform."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return an image (PIL), and a `tv_tensors.Mask`, or a mapping with `tv_tensors.BoundingBoxes` and labels."""
        ...


class Transformed(Dataset[Any]):
    """Images and targets that are transformed together.

    Args:
        source: The images.
        transform: Called with an image and its target.
    """

    def __init__(self, source: Annotations, transform: Any) -> None:
        self.source = source
        self.transform = transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        image, target = self.transform(*self.source[index])
        return image, target


def annotated_splits(
    config: DataConfig,
    sources: Sequence[Annotations],
    targets: Targets,
    classes: int,
    size: int,
) -> Splits:
    """Resize images to `size`, normalise them, and mirror half of the training images (`data.augment`).

    Args:
        config: The `data` section of a recipe.
        sources: Train, validation and test; without validation, a share of the training images is held out.
        targets: "masks" or "boxes".
        classes: Number of classes, with the background.
        size: Height and width.
    """
    given = (config.mean, config.std) if config.mean is not None and config.std is not None else None
    normalisation = given or (IMAGENET_MEAN, IMAGENET_STD)
    shape = (len(normalisation[0]), size, size)
    plain, random = (_transform(size, normalisation, flip=flip) for flip in (False, config.augment))
    train, *middle, test = (_split(source, plain, config.workers, targets, shape, classes) for source in sources)
    train = replace(train, dataset=Transformed(sources[0], random), evaluation=train.dataset)
    if not middle:
        one_class = torch.zeros(len(train), dtype=torch.int64)
        train, *middle = map(train.subset, stratified(one_class, config.validation))
    return Splits(train, middle[0], test, shape=shape, classes=classes, normalisation=normalisation, targets=targets)


def _split(
    source: Annotations, transform: Any, workers: int, targets: Targets, shape: tuple[int, int, int], classes: int
) -> StreamSplit:
    requirements = SampleRequirements(shape=shape, classes=classes, targets=targets)
    return StreamSplit(
        Transformed(source, transform), indices=torch.arange(len(source)), workers=workers, requirements=requirements
    )


def _transform(size: int, normalisation: Normalisation, *, flip: bool) -> Any:
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    mean, std = map(list, normalisation)
    kinds = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
    return v2.Compose(
        [
            v2.ToImage(),
            *([v2.Grayscale()] if len(mean) == 1 else []),
            v2.Resize((size, size)),
            *([v2.RandomHorizontalFlip()] if flip else []),
            v2.ToDtype(kinds, scale=True),
            v2.Normalize(mean, std),
            v2.ToPureTensor(),
        ]
    )
