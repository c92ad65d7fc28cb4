"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from bnprune.config.schema import DataConfig, PipelineConfig
from bnprune.config.tables import Targets
from bnprune.config.user_code import hint
from bnprune.data.coco import coco
from bnprune.data.digit_scenes import digit_scenes
from bnprune.data.folder import image_folder
from bnprune.data.mask_folder import mask_folder
from bnprune.data.memory import Labelled, in_memory
from bnprune.data.splits import Splits, stratified
from bnprune.data.unlabelled import unlabelled_splits
from bnprune.data.user_data import own_splits
from bnprune.errors import ConfigError, DataError, first_line


def splits_of(config: PipelineConfig, *, needs_labels: bool = True) -> Splits:
    """Load the data set of a recipe, with the targets that its task expects; see `load_data`."""
    return load_data(config.data, needs_labels=needs_labels, targets=config.task.entry.targets)


def load_data(config: DataConfig, *, needs_labels: bool = True, targets: Targets = "labels") -> Splits:
    """Load the data set a configuration names.

    Args:
        config: The `data` section of a recipe.
        needs_labels: True to refuse images without labels.
        targets: What must belong to each image: what the task of the recipe expects.

    Raises:
        ConfigError: There is no data set or factory of that name, or the images lack labels or targets that are needed.
        DataError: The files are not there, or cannot be read.
    """
    if config.unlabelled is not None:
        if needs_labels:
            raise ConfigError(
                "data.unlabelled: images without labels are for fine-tuning only. Name a data set with labels "
                "(data.name or data.factory)."
            )
        return unlabelled_splits(config)
    if config.factory is not None:
        known = (config.mean, config.std) if config.mean is not None and config.std is not None else None
        own = own_splits(config, targets)
        return replace(own, normalisation=known or own.normalisation)
    name = config.name or ""
    if name not in _SETS:
        raise ConfigError(f"data.name: '{name}' is unknown. {hint(name, NAMES)}")
    chosen = _SETS[name]
    if targets not in ("any", chosen.targets):
        fitting = ", ".join(other for other, found in _SETS.items() if found.targets == targets)
        raise ConfigError(
            f"data.name: '{name}' has {chosen.targets}, and the task needs {targets}. Set `task`, or choose one "
            f"of: {fitting}."
        )
    return chosen.load(config)


@dataclass(frozen=True)
class _DataSet:
    """A data set by name."""

    load: Callable[[DataConfig], Splits]
    targets: Targets = "labels"


def _labelled(
    load: Callable[[DataConfig], tuple[Labelled, Labelled]], *, flip: bool = False, class_names: tuple[str, ...] = ()
) -> _DataSet:
    """Return a data set whose training and test images are kept in memory."""

    def splits(config: DataConfig) -> Splits:
        train, test = load(config)
        found = in_memory(config, train, test, int(train[1].max()) + 1, flip=flip)
        return replace(found, class_names=class_names)

    return _DataSet(splits)


def _digits(config: DataConfig) -> tuple[Labelled, Labelled]:
    """Return the digits of scikit-learn; a fifth of each class is for testing."""
    images, labels = _all_digits()
    fit, held = stratified(labels, 0.2)
    return (images[fit], labels[fit]), (images[held], labels[held])


def _all_digits() -> Labelled:
    """Return the 1,797 digits of scikit-learn, 8x8 pixels enlarged to 16x16."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("data.name: the digits need scikit-learn: pip install scikit-learn") from error
    found = load_digits()
    images = torch.from_numpy(found.images * (255 / 16)).float().unsqueeze(1)
    images = F.interpolate(images, scale_factor=2, mode="bilinear").round().to(torch.uint8)
    return images, torch.from_numpy(found.target).long()


def _torchvision(name: str) -> Callable[[DataConfig], tuple[Labelled, Labelled]]:
    def load(config: DataConfig) -> tuple[Labelled, Labelled]:
        from torchvision import datasets

        constructor = getattr(datasets, name)
        train = _read(constructor, config, train=True)
        test = _read(constructor, config, train=False)
        if int(test[1].max()) > int(train[1].max()):
            raise DataError(f"{_unreadable(config)}: its test images have classes that its training images lack.")
        return train, test

    return load


def _read(constructor: Any, config: DataConfig, *, train: bool) -> Labelled:
    which = {"split": "train" if train else "test"} if constructor.__name__ == "SVHN" else {"train": train}
    fix = "Set data.root to where it is, or data.download=true to fetch it."
    try:
        found = constructor(str(config.root), download=config.download, **which)
        images = torch.as_tensor(np.asarray(found.data))
        labels = torch.as_tensor(found.labels if hasattr(found, "labels") else found.targets)
    except ImportError as error:
        raise DataError(f"{_unreadable(config)}: {first_line(error)}. Install it.") from error
    except Exception as error:  # a damaged file may raise anything
        raise DataError(f"{_unreadable(config)}: {first_line(error)}. {fix}") from error
    if images.dim() == 3:
        images = images.unsqueeze(1)
    elif images.dim() == 4 and images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    if images.dtype != torch.uint8 or images.dim() != 4 or not images.numel() or labels.shape != images.shape[:1]:
        shapes = f"{tuple(images.shape)} images of {images.dtype} and {tuple(labels.shape)} labels"
        raise DataError(f"{_unreadable(config)}: its files are damaged (they hold {shapes}). {fix}")
    if labels.is_floating_point() or int(labels.min()) < 0:
        raise DataError(f"{_unreadable(config)}: its files are damaged (labels are not whole numbers from 0 up). {fix}")
    return images.contiguous(), labels.long()


def _unreadable(config: DataConfig) -> str:
    return f"data.name: '{config.name}' cannot be read from '{config.root}'"


_DIGITS = tuple(map(str, range(10)))

_SETS = {
    "digits": _labelled(_digits, class_names=_DIGITS),
    "mnist": _labelled(_torchvision("MNIST"), class_names=_DIGITS),
    "fashion-mnist": _labelled(_torchvision("FashionMNIST"), flip=True),
    "cifar10": _labelled(_torchvision("CIFAR10"), flip=True),
    "cifar100": _labelled(_torchvision("CIFAR100"), flip=True),
    "svhn": _labelled(_torchvision("SVHN"), class_names=_DIGITS),
    "imagefolder": _DataSet(image_folder),
    "digits-segmentation": _DataSet(lambda config: digit_scenes(config, *_all_digits(), kind="masks"), "masks"),
    "digits-detection": _DataSet(lambda config: digit_scenes(config, *_all_digits(), kind="boxes"), "boxes"),
    "maskfolder": _DataSet(mask_folder, "masks"),
    "coco": _DataSet(coco, "boxes"),
}

NAMES = tuple(_SETS)
"""Every named data set."""
