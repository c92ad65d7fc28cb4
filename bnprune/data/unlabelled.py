"""Unlabelled images: a folder of any structure, as batches for calibration, or as data to train on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bnprune.config.schema import DataConfig
from bnprune.data.folder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SMALL,
    coloured,
    images_below,
    opened,
    require_few_pixels,
    splits_of_files,
)
from bnprune.data.splits import Splits
from bnprune.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

_BATCH = 64


@dataclass(frozen=True)
class Preprocessing:
    """How an image file becomes an input of a network."""

    channels: int
    """1 or 3."""
    height: int
    width: int
    mean: tuple[float, ...]
    """Per channel, of pixel values between 0 and 1."""
    std: tuple[float, ...]
    crop: bool
    """True to resize the shorter side to 256/224 of the size and crop the middle; false to resize to the size."""

    @classmethod
    def of(
        cls, shape: Sequence[int], mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> Preprocessing:
        """Return the preprocessing for inputs of a shape (C, H, W).

        Square inputs above 64x64 are cropped, as `data.folder` does. For one channel, the mean over the colours is
        taken of `mean` and `std`.

        Raises:
            ConfigError: The inputs are not images with one or three channels.
        """
        if len(shape) != 3 or shape[0] not in (1, 3):
            got = ",".join(map(str, shape))
            raise ConfigError(
                f"image files give inputs with 1 or 3 channels, and the network takes {got}. "
                "Give package.module:factory, which returns batches of inputs.",
            )
        channels, height, width = shape
        if len(mean) != channels:
            mean, std = ([sum(values) / len(values)] * channels for values in (mean, std))
        crop = height == width and height > SMALL
        return cls(channels, height, width, tuple(mean), tuple(std), crop)

    def __call__(self, image: Image.Image, path: Path) -> torch.Tensor:
        """Return an image as a tensor (C, H, W)."""
        from torchvision.transforms.v2 import functional as F

        sized = F.center_crop(self._resized(image, path), [self.height, self.width]) if self.crop else image
        if sized.size != (self.width, self.height):
            sized = F.resize(sized, [self.height, self.width], antialias=True)
        grey = sized.convert("L") if self.channels == 1 else sized
        pixels = F.to_dtype(F.pil_to_tensor(grey), torch.float32, scale=True)
        tensor: torch.Tensor = F.normalize(pixels, list(self.mean), list(self.std))
        return tensor

    def _resized(self, image: Image.Image, path: Path) -> Image.Image:
        from torchvision.transforms.v2 import functional as F

        size = round(self.height * 256 / 224)
        short, long = sorted(image.size)
        require_few_pixels(path, image.size, size**2 * long // short, f" once the shorter side is resized to {size}")
        resized: Image.Image = F.resize(image, [size], antialias=True)
        return resized


def unlabelled_images(root: Path, count: int, preprocessing: Preprocessing) -> Iterator[torch.Tensor]:
    """Yield batches (N, C, H, W) of at most `count` images of a folder and the folders below it.

    If there are more images, a random choice is taken, the same every time: the first ones may all be of one class.

    Raises:
        DataError: There is no such folder, it holds no images, or one cannot be read or is too large.
    """
    chosen = _chosen(root, count)
    for start in range(0, len(chosen), _BATCH):
        yield torch.stack([_read(path, preprocessing) for path in chosen[start : start + _BATCH]])


def unlabelled_splits(config: DataConfig) -> Splits:
    """Return the images of `data.unlabelled`, with zeros in place of labels, and without test images.

    The folders below it do not matter: they are not read as classes. A random share (`data.validation`), the same every
    time, is held out. The images are resized and augmented as those of `imagefolder`.

    Raises:
        ConfigError: Images of the requested size are too large.
        DataError: There is no such folder, it holds no images, or one cannot be read or is too large.
    """
    assert config.unlabelled is not None
    normalisation = (config.mean or IMAGENET_MEAN, config.std or IMAGENET_STD)
    files = [(path, 0) for path in _chosen(config.unlabelled, config.limit, "data.unlabelled: ")]
    return replace(splits_of_files(config, files, [], 1, normalisation), labelled=False)


def _chosen(root: Path, count: int | None, where: str = "") -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{where}'{root}' is not a folder.")
    paths = sorted(images_below(root))
    if not paths:
        raise DataError(f"{where}'{root}' holds no images.")
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))[:count]
    return [paths[index] for index in order.tolist()]


def _read(path: Path, preprocessing: Preprocessing) -> torch.Tensor:
    with opened(path) as image:
        picture = coloured(image)
    return preprocessing(picture, path)
