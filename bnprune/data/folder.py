"""ImageFolder: `root/train/<class>/*` and `root/test/<class>/*` (or `val` for `test`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from bnprune.config import DataConfig
from bnprune.data.memory import Labelled, in_memory
from bnprune.data.splits import Splits, evenly, stratified
from bnprune.data.stream import StreamSplit
from bnprune.errors import DataError

_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_SMALL = 64
# Mean and standard deviation of ImageNet's pixels, the convention for large colour images.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_folder(config: DataConfig) -> Splits:
    """Load an ImageFolder; images up to 64x64 are kept in memory unless the configuration says otherwise.

    Raises:
        DataError: A folder is missing or empty, an image cannot be read, or the classes differ between splits.
    """
    train_folder, test_folder = _folders(config.root)
    classes = sorted(entry.name for entry in train_folder.iterdir() if entry.is_dir())
    train, test = _listed(train_folder, classes), _listed(test_folder, classes)
    size = config.image_size or min(_size(train[0][0]))
    train = _subset(train, config.limit)
    test = _subset(test, config.limit and max(1, config.limit // 5))
    if config.in_memory if config.in_memory is not None else size <= _SMALL:
        return in_memory(config, _read_all(train, size), _read_all(test, size), flip=True)
    return _streamed(config, train, test, size, len(classes))


def _folders(root: Path) -> tuple[Path, Path]:
    train = root / "train"
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), root / "test")
    for folder in (train, test):
        if not folder.is_dir():
            missing = f"data.root: '{root}' has no folder '{folder.name}'."
            raise DataError(f"{missing} Expected train/<class>/ and test/<class>/.")
    return train, test


def _listed(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if found != list(classes):
        odd = sorted(set(found) ^ set(classes))
        raise DataError(f"data.root: '{folder}' and its sister folder differ in the classes {', '.join(odd[:5])}.")
    images = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in _ENDINGS
    ]
    if not images:
        raise DataError(f"data.root: '{folder}' holds no images. Expected {folder.name}/<class>/*.jpg or *.png.")
    return images


def _subset(images: list[tuple[Path, int]], limit: int | None) -> list[tuple[Path, int]]:
    chosen = evenly(torch.tensor([label for _, label in images]), limit)
    return [images[index] for index in chosen.tolist()]


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with _opening(path), Image.open(path) as image:
        return image.size


def _read_all(images: list[tuple[Path, int]], size: int) -> Labelled:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        pixels = list(pool.map(lambda entry: _pixels(entry[0], size), images))
    return torch.stack(pixels), torch.tensor([label for _, label in images])


def _pixels(path: Path, size: int) -> torch.Tensor:
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    with _opening(path), Image.open(path) as image:
        picture = image.convert("RGB")
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        pixels: torch.Tensor = pil_to_tensor(picture)
        return pixels


class _opening:  # noqa: N801 - reads as a verb where it is used
    """Turns what goes wrong while an image is read into a DataError that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if isinstance(error, OSError | ValueError | SyntaxError):
            raise DataError(f"'{self.path}' cannot be read as an image: {error}. Remove or repair it.") from error


class _Files(Dataset[Any]):
    """Images read from disk, one by one."""

    def __init__(self, images: list[tuple[Path, int]], transform: Any) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        path, label = self.images[index]
        with _opening(path), Image.open(path) as image:
            picture = image.convert("RGB")
        return self.transform(picture), label


def _streamed(
    config: DataConfig, train: list[tuple[Path, int]], test: list[tuple[Path, int]], size: int, classes: int
) -> Splits:
    from torchvision.transforms import v2

    finish = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]
    plain = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), *finish])
    random = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *finish]) if config.augment else plain
    whole = StreamSplit(_Files(train, random), _Files(train, plain), workers=config.workers)
    fit, held = stratified(torch.tensor([label for _, label in train]), config.validation)
    return Splits(
        train=whole.subset(fit),
        validation=whole.subset(held),
        test=StreamSplit(_Files(test, plain), workers=config.workers),
        shape=(3, size, size),
        classes=classes,
    )
