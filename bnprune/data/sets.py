"""The named data sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from bnprune.config import DataConfig
from bnprune.data.folder import image_folder
from bnprune.data.memory import Labelled, in_memory
from bnprune.data.own import own_splits
from bnprune.data.splits import Splits, stratified
from bnprune.errors import ConfigError, DataError, first_line
from bnprune.factories import hint


def load_data(config: DataConfig) -> Splits:
    """Load the data set a configuration names.

    Raises:
        ConfigError: There is no data set or factory of that name.
        DataError: The files are not there, or cannot be read.
    """
    if config.factory is not None:
        return own_splits(config)
    name = config.name or ""
    if name == "imagefolder":
        return image_folder(config)
    if name not in _SETS:
        raise ConfigError(f"data.name: '{name}' is unknown. {hint(name, NAMES)}")
    train, test = _SETS[name](config)
    return in_memory(config, train, test, flip=name in _FLIPPED)


def _digits(config: DataConfig) -> tuple[Labelled, Labelled]:
    """The 1,797 handwritten digits of scikit-learn, 8x8, enlarged to 16x16; a fifth of each class is for testing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("data.name: 'digits' needs scikit-learn: pip install 'bnprune[demo]'") from error
    found = load_digits()
    images = torch.from_numpy(found.images * (255 / 16)).float().unsqueeze(1)
    images = F.interpolate(images, scale_factor=2, mode="bilinear").round().to(torch.uint8)
    labels = torch.from_numpy(found.target).long()
    fit, held = stratified(labels, 0.2)
    return (images[fit], labels[fit]), (images[held], labels[held])


def _torchvision(name: str) -> Callable[[DataConfig], tuple[Labelled, Labelled]]:
    def load(config: DataConfig) -> tuple[Labelled, Labelled]:
        from torchvision import datasets

        constructor = getattr(datasets, name)
        return _read(constructor, config, train=True), _read(constructor, config, train=False)

    return load


def _read(constructor: Any, config: DataConfig, *, train: bool) -> Labelled:
    which = {"split": "train" if train else "test"} if constructor.__name__ == "SVHN" else {"train": train}
    try:
        found = constructor(str(config.root), download=config.download, **which)
    except (RuntimeError, OSError) as error:
        fix = "Set data.root to where it is, or data.download=true to fetch it."
        what = f"data.name: '{config.name}' cannot be read from '{config.root}'"
        raise DataError(f"{what}: {first_line(error)}. {fix}") from error
    images = torch.as_tensor(np.asarray(found.data))
    if images.dim() == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    labels = found.labels if hasattr(found, "labels") else found.targets
    return images.contiguous(), torch.as_tensor(labels).long()


_SETS: dict[str, Callable[[DataConfig], tuple[Labelled, Labelled]]] = {
    "digits": _digits,
    "mnist": _torchvision("MNIST"),
    "fashion-mnist": _torchvision("FashionMNIST"),
    "cifar10": _torchvision("CIFAR10"),
    "cifar100": _torchvision("CIFAR100"),
    "svhn": _torchvision("SVHN"),
}
_FLIPPED = {"fashion-mnist", "cifar10", "cifar100"}

NAMES = (*_SETS, "imagefolder")
"""Every named data set."""
