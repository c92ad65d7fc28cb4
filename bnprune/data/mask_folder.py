"""Images with masks in folders: `root/train/images/*` and `root/train/masks/*` with equal names; the same for test."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnprune.config.schema import DataConfig
from bnprune.data.annotated import annotated_splits
from bnprune.data.folder import coloured, images_below, opened
from bnprune.data.splits import Splits
from bnprune.data.targets import IGNORED
from bnprune.errors import DataError

_LAYOUT = "Expected train/images/NAME.jpg and train/masks/NAME.png, and the same in test/"


class _Pairs:
    """Images with their masks, read from disk one by one."""

    def __init__(self, pairs: list[tuple[Path, Path]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        from torchvision import tv_tensors

        image_file, mask_file = self.pairs[index]
        with opened(image_file) as image:
            picture = coloured(image)
        values = _mask(mask_file)
        if values.shape != (picture.height, picture.width):
            raise DataError(
                f"'{mask_file}' is a mask of {values.shape[1]}x{values.shape[0]} for an image of "
                f"{picture.width}x{picture.height}. They must be equal."
            )
        return picture, tv_tensors.Mask(torch.from_numpy(values))


def mask_folder(config: DataConfig) -> Splits:
    """Load images with masks, in which the value of a pixel is the number of its class, or 255 for none.

    Validation images are in `val/` or, if there is no such folder, held out from the training images. Images are
    resized to squares. All training masks are read to count the classes.

    Raises:
        DataError: A folder is missing or empty, an image has no mask, or a file cannot be read.
    """
    names = ["train", *(["val"] if (config.root / "val").is_dir() else []), "test"]
    found = [_pairs(config.root / name) for name in names]
    limits = [config.limit, *[config.held_out_limit] * (len(found) - 1)]
    sources = [_Pairs(pairs[:limit]) for pairs, limit in zip(found, limits, strict=True)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        classes = 1 + max(pool.map(_largest_class, (mask for _, mask in sources[0].pairs)))
    with opened(sources[0].pairs[0][0]) as first:
        size = config.image_size or min(first.size)
    return annotated_splits(config, sources, "masks", classes, size)


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    for part in (folder / "images", folder / "masks"):
        if not part.is_dir():
            raise DataError(f"data.root: '{folder.parent}' has no folder '{folder.name}/{part.name}'. {_LAYOUT}.")
    images, masks = (sorted(images_below(folder / part)) for part in ("images", "masks"))
    if not images:
        raise DataError(f"data.root: '{folder / 'images'}' holds no images. {_LAYOUT}.")
    by_name = {_key(mask, folder / "masks"): mask for mask in masks}
    without = [image for image in images if _key(image, folder / "images") not in by_name]
    if without:
        raise DataError(f"data.root: '{without[0]}' has no mask of the same name in '{folder / 'masks'}'. {_LAYOUT}.")
    return [(image, by_name[_key(image, folder / "images")]) for image in images]


def _key(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def _mask(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a mask (H, W), uint8."""
    with opened(path) as image:
        if image.mode not in ("L", "P", "1"):
            raise DataError(
                f"'{path}' is an image of mode {image.mode}, not a mask: a mask has one channel of 8 bits, and the "
                "value of a pixel is the number of its class."
            )
        return np.array(image, dtype=np.uint8)


def _largest_class(path: Path) -> int:
    values = _mask(path)
    counted = values[values != IGNORED]
    return int(counted.max()) if counted.size else 0
