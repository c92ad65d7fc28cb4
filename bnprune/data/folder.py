"""ImageFolder: `root/train/<class>/*` and `root/test/<class>/*` (or `val` for `test`)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bnprune.config.schema import DataConfig
from bnprune.data.memory import Labelled, in_memory, require_room
from bnprune.data.splits import Normalisation, Splits, evenly, stratified
from bnprune.data.stream import StreamSplit
from bnprune.errors import ConfigError, DataError, first_line

if TYPE_CHECKING:
    from PIL import Image

_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
Files = list[tuple[Path, int]]
"""Image files with their labels."""
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Plain raster images, whatever a file is called. Pillow reads more: for EPS, it starts Ghostscript on the file."""
_MOST_PIXELS = 2**26
"""Of one image, before and after resizing: 8192x8192. A file of a few kilobytes can decode to any number of pixels."""
SMALL = 64
"""Size up to which images are kept in memory, and resized without cropping."""
# Mean and standard deviation of ImageNet's pixels, the convention for large colour images.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_folder(config: DataConfig) -> Splits:
    """Load an ImageFolder. Images up to 64x64 are kept in memory, unless `in_memory` is set otherwise.

    Raises:
        ConfigError: Images of the requested size are too large, or `test_share` is not for this folder.
        DataError: A folder is missing or empty, an image cannot be read, or the classes differ between splits.
    """
    classes, train, test = _files(config)
    train = _subset(train, config.limit)
    test = _subset(test, config.held_out_limit)
    given = (config.mean, config.std) if config.mean is not None and config.std is not None else None
    return replace(splits_of_files(config, train, test, len(classes), given), class_names=tuple(classes))


def splits_of_files(
    config: DataConfig, train: Files, test: Files, classes: int, normalisation: Normalisation | None = None
) -> Splits:
    """Return image files with labels as splits; the validation images are some of the training images.

    Raises:
        ConfigError: Images of the requested size are too large.
        DataError: An image cannot be read.
    """
    size = config.image_size or min(_size(train[0][0]))
    if config.in_memory if config.in_memory is not None else size <= SMALL:
        require_room(len(train) + len(test), size)
        grey = normalisation is not None and len(normalisation[0]) == 1
        fit, held = (_read_all(images, size, grey=grey) for images in (train, test))
        return in_memory(config, fit, held, classes, flip=True, normalisation=normalisation)
    return _streamed(config, train, test, size, classes, normalisation or (IMAGENET_MEAN, IMAGENET_STD))


def _files(config: DataConfig) -> tuple[list[str], Files, Files]:
    """Return the names of the classes, and the training and test images."""
    root, share = config.root, config.test_share
    if share is not None and (root / "train").is_dir():
        raise ConfigError(f"data.test_share: '{root}' has a folder 'train' already. Leave data.test_share out.")
    folders = _folders(root) if share is None else (root,)
    classes = _classes(folders)
    train, *test = (_listed(folder, classes) for folder in folders)
    _require_all(classes, train, folders[0])
    if share is None:
        return classes, train, test[0]
    fit, held = stratified(torch.tensor([label for _, label in train]), share)
    return classes, [train[index] for index in fit.tolist()], [train[index] for index in held.tolist()]


def _folders(root: Path) -> tuple[Path, ...]:
    train = root / "train"
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), root / "test")
    for folder in (train, test):
        if not folder.is_dir():
            raise DataError(f"data.root: '{root}' has no folder '{folder.name}'. {_expected(root)}")
    return train, test


def _expected(root: Path) -> str:
    text = "Expected train/<class>/ and test/<class>/."
    folders = sorted(Path(entry.path) for entry in _entries(root) if entry.is_dir()) if root.is_dir() else []
    if len(folders) < 2 or not all(any(_is_image(entry) for entry in _entries(folder)) for folder in folders):
        return text
    return (
        f"{text} If '{folders[0].name}' and '{folders[1].name}' are classes, set data.test_share=0.2 to hold out a "
        "fifth of every class for testing."
    )


def _classes(folders: Sequence[Path]) -> list[str]:
    """Return the sorted names of the class folders, which must be the same in all splits."""
    found = {folder: sorted(entry.name for entry in _entries(folder) if entry.is_dir()) for folder in folders}
    every = sorted(set().union(*found.values()))
    for folder, names in found.items():
        if names != every:
            missing = ", ".join([name for name in every if name not in names][:5])
            other = next(other for other in folders if other != folder)
            raise DataError(f"data.root: '{folder}' lacks the classes {missing}, which '{other}' has.")
    return every


def _listed(folder: Path, classes: Sequence[str]) -> Files:
    images = [(path, label) for label, name in enumerate(classes) for path in sorted(images_below(folder / name))]
    if not images:
        raise DataError(f"data.root: '{folder}' holds no images. Expected {folder.name}/<class>/*.jpg or *.png.")
    return images


def images_below(folder: Path) -> Iterator[Path]:
    """Yield the images in a folder and those below it; links to folders below it are not followed."""
    waiting = [folder]
    while waiting:
        for entry in _entries(waiting.pop()):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif _is_image(entry):
                if not _regular(entry):  # opening a FIFO would block for ever
                    raise DataError(f"'{entry.path}' is not a regular file. Remove it.")
                yield Path(entry.path)


def _is_image(entry: os.DirEntry[str]) -> bool:
    return Path(entry.name).suffix.lower() in _ENDINGS


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"data.root: '{folder}' cannot be read: {error.strerror}.") from error


def _regular(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _require_all(classes: Sequence[str], images: Files, folder: Path) -> None:
    """Refuse a class without training images; a class without test images is just not tested."""
    empty = [classes[label] for label in sorted(set(range(len(classes))) - {label for _, label in images})]
    if empty:
        raise DataError(
            f"data.root: '{folder}' holds no images of {', '.join(empty[:5])}. Add some, or remove the folders of that "
            f"name from all splits."
        )


def _subset(images: Files, limit: int | None) -> Files:
    chosen = evenly(torch.tensor([label for _, label in images]), limit)
    return [images[index] for index in chosen.tolist()]


def _size(path: Path) -> tuple[int, int]:
    with opened(path) as image:
        return image.size


def _read_all(images: Files, size: int, *, grey: bool) -> Labelled:
    if not images:
        return torch.zeros(0, 1 if grey else 3, size, size, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        pixels = list(pool.map(lambda entry: _pixels(entry[0], size, grey=grey), images))
    return torch.stack(pixels), torch.tensor([label for _, label in images])


def _pixels(path: Path, size: int, *, grey: bool) -> torch.Tensor:
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    with opened(path) as image:
        picture = coloured(image)
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        pixels: torch.Tensor = pil_to_tensor(picture.convert("L") if grey else picture)
        return pixels


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; errors while it is read become a DataError that names the file."""
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as image:
            require_few_pixels(path, image.size, math.prod(image.size), "")
            yield image
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"'{path}' is too large: {first_line(error)}. Shrink or remove it.") from error
    except Exception as error:  # a damaged file may raise anything
        raise DataError(
            f"'{path}' cannot be read as an image ({', '.join(_FORMATS)}): {first_line(error)}. Remove or repair it."
        ) from error


def require_few_pixels(path: Path, size: tuple[int, int], pixels: int, when: str) -> None:
    """Refuse an image of too many pixels.

    Args:
        path: The file, for the message.
        size: Its width and height, for the message.
        pixels: Number of pixels, now or after resizing.
        when: " once ..." for the message, if they are not those of the file.

    Raises:
        DataError: There are too many.
    """
    if pixels > _MOST_PIXELS:
        shape = f"{size[0]}x{size[1]}"
        raise DataError(
            f"'{path}' is an image of {shape}: {pixels} pixels{when}, more than {_MOST_PIXELS}. "
            f"Crop, shrink or remove it."
        )


def coloured(image: Image.Image) -> Image.Image:
    """Return an image as RGB. Pillow would cut values of 16 bits off at 255."""
    from PIL import Image

    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


class _Files(Dataset[Any]):
    """Images read from disk, one by one."""

    def __init__(self, images: Files, transform: Any, size: int) -> None:
        self.images = images
        self.transform = transform
        self.size = size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.images[index]
        with opened(path) as image:
            short, long = sorted(image.size)
            resized = self.size**2 * long // short
            require_few_pixels(path, image.size, resized, f" once the shorter side is resized to {self.size}")
            picture = coloured(image)
        return self.transform(picture), label


def _streamed(
    config: DataConfig, train: Files, test: Files, size: int, classes: int, normalisation: Normalisation
) -> Splits:
    from torchvision.transforms import v2

    mean, std = normalisation
    grey = [v2.Grayscale()] if len(mean) == 1 else []
    finish = [*grey, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    resized = round(size * 256 / 224)
    plain = v2.Compose([v2.Resize(resized), v2.CenterCrop(size), *finish])
    random = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *finish]) if config.augment else plain
    whole = StreamSplit(_Files(train, random, resized), _Files(train, plain, resized), workers=config.workers)
    fit, held = stratified(torch.tensor([label for _, label in train]), config.validation)
    return Splits(
        train=whole.subset(fit),
        validation=whole.subset(held),
        test=StreamSplit(_Files(test, plain, resized), workers=config.workers),
        shape=(len(mean), size, size),
        classes=classes,
        normalisation=(tuple(mean), tuple(std)),
    )
