"""The images of the arena: an ImageFolder, resized once to 16x16 pixels."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

SIZE = 16
_ENDINGS = {".jpg", ".jpeg", ".png"}


def prepare_images(data: Path, work: Path, *, validation_only: bool) -> Path:
    """Return the folder of resized images, which is made if it is not there.

    Args:
        data: An ImageFolder, `train/CLASS/*` and `test/CLASS/*`.
        work: Where to put the resized images.
        validation_only: True to leave the test images unopened. An ImageFolder needs some: copies of training images,
            one of each class, are put in their place, and no figure comes from them.
    """
    train = _resized(data / "train", work / "images" / "train")
    if not validation_only:
        _resized(data / "test", work / "images" / "test")
        return work / "images"
    root = work / "images-validation"
    if not (root / "test").is_dir():
        (root / "test.part").mkdir(parents=True, exist_ok=True)
        (root / "train").symlink_to(train.resolve())
        for folder in sorted(train.iterdir()):
            (root / "test.part" / folder.name).mkdir(exist_ok=True)
            shutil.copy(min(folder.iterdir()), root / "test.part" / folder.name)
        (root / "test.part").rename(root / "test")
    return root


def _resized(source: Path, target: Path) -> Path:
    """Resize the images of a folder of classes into PNGs, and return their folder; it appears when it is complete."""
    if target.is_dir():
        return target
    if not source.is_dir():
        raise SystemExit(f"--data: '{source}' is not a folder. Expected train/CLASS/* and test/CLASS/* of images.")
    part = target.with_name(f"{target.name}.part")
    for folder in sorted(entry for entry in source.iterdir() if entry.is_dir()):
        (part / folder.name).mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in _ENDINGS:
                with Image.open(path) as image:
                    small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)  # means of 2x2 pixels
                small.save(part / folder.name / f"{path.stem}.png")
    part.rename(target)
    return target
