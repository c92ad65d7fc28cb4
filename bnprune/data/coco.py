"""Images with boxes in the format of COCO: `root/annotations/NAME.json`, and the images in `root/NAME/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bnprune.config.schema import DataConfig
from bnprune.data.annotated import annotated_splits
from bnprune.data.folder import coloured, opened
from bnprune.data.splits import Splits
from bnprune.errors import DataError, first_line

_LAYOUT = (
    "Expected annotations/train.json and test.json (perhaps val.json), or COCO's own names such as "
    "instances_train2017.json, and the images in folders of the same names"
)
_SMALLEST = 1.0
"""Pixels; a box that is narrower or lower is left out."""


@dataclass(frozen=True)
class _Boxes:
    """Images with their boxes; images are read from disk one by one."""

    files: list[Path]
    boxes: list[torch.Tensor]
    """(n, 4) each, x1, y1, x2, y2 in pixels of the file."""
    labels: list[torch.Tensor]
    """(n,) each, from 1 up."""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        from torchvision import tv_tensors

        with opened(self.files[index]) as image:
            picture = coloured(image)
        format_, canvas = tv_tensors.BoundingBoxFormat.XYXY, (picture.height, picture.width)
        boxes = tv_tensors.BoundingBoxes(self.boxes[index], format=format_, canvas_size=canvas)
        return picture, {"boxes": boxes, "labels": self.labels[index]}

    def limited(self, limit: int | None) -> _Boxes:
        """Return a random choice of at most `limit` images, the same every time."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:limit].sort().values.tolist()
        return _Boxes(*([values[index] for index in order] for values in (self.files, self.boxes, self.labels)))


def coco(config: DataConfig) -> Splits:
    """Load images with boxes; crowds are left out, and boxes are clipped to their image.

    Without a file for testing, that for validation takes its place. Without one for validation, a share of the
    training images is held out. Images are resized to squares.

    Raises:
        DataError: A file is missing, or is not in the format of COCO.
    """
    found = {name: path for name in ("train", "val", "test") if (path := _annotations(config.root, name)) is not None}
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    for name in ("train", "test"):
        if name not in found:
            raise DataError(f"data.root: '{config.root}' has no annotations of '{name}'. {_LAYOUT}.")
    names: dict[int, str] = {}
    for path in found.values():
        names |= _categories(_document(path), path)
    labels = {category: number for number, category in enumerate(sorted(names), start=1)}
    sources = []
    for name in ("train", "val", "test"):
        if name in found:
            limit = config.limit if name == "train" else config.held_out_limit
            sources.append(_read(found[name], config.root, name, labels).limited(limit))
    with opened(sources[0].files[0]) as first:
        size = config.image_size or min(first.size)
    splits = annotated_splits(config, sources, "boxes", len(labels) + 1, size)
    return replace(splits, class_names=("background", *(names[category] for category in labels)))


def _annotations(root: Path, name: str) -> Path | None:
    folder = root / "annotations"
    exact = folder / f"{name}.json"
    return exact if exact.is_file() else next(iter(sorted(folder.glob(f"instances_{name}*.json"))), None)


def _document(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read: {first_line(error)}.") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(key), list) for key in _LISTS):
        raise DataError(f"'{path}' is not in the format of COCO: it must have the lists {', '.join(_LISTS)}.")
    return found


_LISTS = ("images", "annotations", "categories")


def _categories(document: Mapping[str, Any], path: Path) -> dict[int, str]:
    try:
        return {int(category["id"]): str(category["name"]) for category in document["categories"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"'{path}': every category must have an id and a name.") from error


def _read(path: Path, root: Path, name: str, labels: Mapping[int, int]) -> _Boxes:
    document = _document(path)
    folders = [root / path.stem.removeprefix("instances_"), root / name, root / "images" / name, root / "images", root]
    folder = next((folder for folder in folders if folder.is_dir()), root)
    boxes: dict[Any, list[tuple[list[float], int]]] = {}
    try:
        sizes = {image["id"]: (float(image["width"]), float(image["height"])) for image in document["images"]}
        for entry in document["annotations"]:
            box = _clipped(entry["bbox"], *sizes[entry["image_id"]])
            if box is not None and not entry.get("iscrowd", 0):
                boxes.setdefault(entry["image_id"], []).append((box, labels[entry["category_id"]]))
        files = {image["id"]: folder / str(image["file_name"]) for image in document["images"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"'{path}' is not in the format of COCO: images need id, file_name, width and height; annotations need "
            f"image_id, category_id and bbox [x, y, width, height], of known images and categories "
            f"({type(error).__name__}: {first_line(error)})."
        ) from error
    if not files:
        raise DataError(f"'{path}' lists no images.")
    missing = next((file for file in files.values() if not file.is_file()), None)
    if missing is not None:
        raise DataError(f"'{path}' lists '{missing}', which does not exist. {_LAYOUT}.")
    order = sorted(files, key=lambda image: str(files[image]))
    return _Boxes(
        [files[image] for image in order],
        [torch.tensor([box for box, _ in boxes.get(image, ())]).reshape(-1, 4) for image in order],
        [torch.tensor([label for _, label in boxes.get(image, ())], dtype=torch.int64) for image in order],
    )


def _clipped(bbox: Any, width: float, height: float) -> list[float] | None:
    """Return a box [x, y, width, height] as x1, y1, x2, y2 within its image; None if nothing of it is left."""
    x, y, wide, high = map(float, bbox)
    box = [max(x, 0.0), max(y, 0.0), min(x + wide, width), min(y + high, height)]
    return box if box[2] - box[0] >= _SMALLEST and box[3] - box[1] >= _SMALLEST else None
