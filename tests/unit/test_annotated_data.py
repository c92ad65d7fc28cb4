"""Data sets with masks and boxes: scenes of digits, folders of masks, COCO files, and data of the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from bnprune.config.schema import DataConfig
from bnprune.data import Splits, load_data
from bnprune.data import digit_scenes as scenes
from bnprune.data.sets import _all_digits
from bnprune.errors import ConfigError, DataError

CPU = torch.device("cpu")


def first(splits: Splits, count: int = 4, seed: int | None = None) -> tuple[torch.Tensor, Any]:
    (batch,) = splits.train.serve([torch.arange(count)], CPU, seed=seed)
    return batch


# -- scenes of digits --------------------------------------------------------------------------------------------------


def test_masks_and_boxes_of_a_scene_show_the_same_digits() -> None:
    config = {"limit": 40}
    masks = load_data(DataConfig(name="digits-segmentation", **config), targets="masks")
    boxes = load_data(DataConfig(name="digits-detection", **config), targets="boxes")
    assert (len(masks.train), len(masks.validation), len(masks.test)) == (40, 8, 8)
    (pixels, drawn), (same_pixels, found) = first(masks, 40), first(boxes, 40)
    assert torch.equal(pixels, same_pixels)
    assert masks.classes == boxes.classes == 11
    ink = pixels * masks.normalisation[1][0] + masks.normalisation[0][0]
    for mask, image, one in zip(drawn, ink, found, strict=True):
        assert set(mask.unique().tolist()) <= {0, 255, *one["labels"].tolist()}
        assert (image[0][mask == 0] < 32.5 / 255).all()  # the background is dark
        inside = torch.zeros_like(mask, dtype=torch.bool)
        for x1, y1, x2, y2 in one["boxes"].long().tolist():
            inside[y1:y2, x1:x2] = True
        assert not (mask[~inside] != 0).any()  # and no digit lies outside of the boxes
        assert 1 <= len(one["labels"]) <= 5


def test_no_digit_is_in_two_splits() -> None:
    _, labels = _all_digits()
    parts = scenes._sources(labels, 0.1)
    together = torch.cat(parts)
    assert len(together.unique()) == len(together) == len(labels)


def test_scenes_are_the_same_every_time() -> None:
    config = DataConfig(name="digits-segmentation", limit=5)
    one, two = (first(load_data(config, targets="masks")) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


@pytest.mark.parametrize(("name", "targets"), [("digits", "masks"), ("digits-detection", "labels"), ("coco", "masks")])
def test_data_of_another_kind_is_refused(name: str, targets: Any) -> None:
    with pytest.raises(ConfigError, match=rf"'{name}' has \w+, and the task needs {targets}. Set `task`, or choose"):
        load_data(DataConfig(name=name), targets=targets)


# -- folders of masks --------------------------------------------------------------------------------------------------


def write_masks(root: Path, *, count: int = 6) -> Path:
    """Images of 12x16 pixels; the left half is of class 1, one row has no class."""
    for split in ("train", "test"):
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for number in range(count):
            pixels = np.zeros((12, 16, 3), np.uint8)
            pixels[:, :8] = 200
            mask = np.zeros((12, 16), np.uint8)
            mask[:, :8] = 1
            mask[0] = 255
            Image.fromarray(pixels).save(root / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    return root


def folder(root: Path, **keys: Any) -> Splits:
    return load_data(DataConfig(name="maskfolder", root=root, workers=0, **keys), targets="masks")


def test_masks_are_resized_and_mirrored_with_their_images(tmp_path: Path) -> None:
    splits = folder(write_masks(tmp_path), image_size=8, mean=(0.0,), std=(1.0,), validation=0.34)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (4, 2, 6)
    assert (splits.shape, splits.classes) == ((1, 8, 8), 2)
    images, masks = first(splits)
    assert (images.shape, masks.shape, masks.dtype) == ((4, 1, 8, 8), (4, 8, 8), torch.int64)
    assert (masks[:, 1:, :4] == 1).all()
    assert (masks[:, 1:, 4:] == 0).all()
    assert (masks[:, 0] == 255).all()
    mirrored = [first(splits, seed=seed) for seed in range(4)]
    left = [int(mask[4, 0]) for _, masks in mirrored for mask in masks]
    assert {0, 1} == set(left)
    for images, masks in mirrored:  # the bright half is of class 1 in every image
        assert ((images[:, 0, 4, 0] > 0.5) == (masks[:, 4, 0] == 1)).all()


def test_a_validation_folder_is_used(tmp_path: Path) -> None:
    write_masks(tmp_path)
    (tmp_path / "val").mkdir()
    for part in ("images", "masks"):
        (tmp_path / "val" / part).symlink_to(tmp_path / "test" / part)
    splits = folder(tmp_path)
    assert (len(splits.train), len(splits.validation)) == (6, 6)


def spoil(root: Path, how: str) -> None:
    mask = root / "train" / "masks" / "3.png"
    if how == "missing":
        mask.unlink()
    elif how == "colour":
        Image.new("RGB", (16, 12)).save(mask)
    elif how == "size":
        Image.new("L", (12, 12)).save(mask)
    else:
        mask.write_bytes(b"no image")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "3.png' has no mask of the same name"),
        ("colour", "3.png' is an image of mode RGB, not a mask"),
        ("size", "3.png' is a mask of 12x12 for an image of 16x12"),
        ("broken", "3.png' cannot be read as an image"),
    ],
)
def test_a_spoilt_mask_is_named(tmp_path: Path, how: str, message: str) -> None:
    spoil(write_masks(tmp_path), how)
    with pytest.raises(DataError, match=message):
        first(folder(tmp_path, validation=0.1), 5)


# -- COCO --------------------------------------------------------------------------------------------------------------


def write_coco(root: Path, **changes: Any) -> Path:
    """Two images per split: one with two boxes of the categories 7 and 3, of which one reaches beyond the image."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val", "test"):
        (root / split).mkdir()
        for number in range(2):
            Image.new("RGB", (40, 20), (number * 200, 0, 0)).save(root / split / f"{number}.png")
        document = {
            "images": [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 20} for n in range(2)],
            "categories": [{"id": 7, "name": "cell"}, {"id": 3, "name": "disc"}],
            "annotations": [
                {"image_id": 0, "category_id": 7, "bbox": [4, 2, 8, 6]},
                {"image_id": 0, "category_id": 3, "bbox": [30, 10, 20, 20], "iscrowd": 0},
                {"image_id": 0, "category_id": 3, "bbox": [0, 0, 40, 20], "iscrowd": 1},
                {"image_id": 0, "category_id": 3, "bbox": [45, 5, 10, 10]},
            ],
            **changes,
        }
        (root / "annotations" / f"{split}.json").write_text(json.dumps(document))
    return root


def boxes(root: Path, **keys: Any) -> Splits:
    return load_data(DataConfig(name="coco", root=root, workers=0, **keys), targets="boxes")


def test_boxes_are_clipped_resized_and_mirrored_with_their_images(tmp_path: Path) -> None:
    splits = boxes(write_coco(tmp_path), image_size=10)
    assert (splits.classes, splits.class_names) == (3, ("background", "disc", "cell"))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (2, 2, 2)
    images, targets = first(splits, 2)
    assert images.shape == (2, 3, 10, 10)
    assert targets[0]["labels"].tolist() == [2, 1]
    assert targets[0]["boxes"].tolist() == [[1, 1, 3, 4], [7.5, 5, 10, 10]]  # a quarter and a half of the pixels
    assert targets[1]["boxes"].shape == (0, 4)
    found = [first(splits, 2, seed=seed)[1][0]["boxes"].tolist() for seed in range(8)]
    assert [[7, 1, 9, 4], [0, 5, 2.5, 10]] in found
    assert targets[0]["boxes"].tolist() in found


def test_without_a_test_set_the_validation_set_takes_its_place(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "annotations" / "test.json").unlink()
    splits = boxes(tmp_path, validation=0.5)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1, 1, 2)


def test_the_names_of_coco_itself_are_found(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for split in ("train", "val"):
        (tmp_path / split).rename(tmp_path / f"{split}2017")
        (tmp_path / "annotations" / f"{split}.json").rename(tmp_path / "annotations" / f"instances_{split}2017.json")
    (tmp_path / "annotations" / "test.json").unlink()
    assert len(boxes(tmp_path, validation=0.5).test) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 0}]}, "images need id, file_name, width and height"),
        ({"annotations": [{"image_id": 9, "category_id": 7, "bbox": [0, 0, 1, 1]}]}, "of known images and categories"),
        ({"annotations": [{"image_id": 0, "category_id": 7, "bbox": [0, 0, 1]}]}, "is not in the format of COCO"),
        ({"categories": 3}, "it must have the lists images, annotations, categories"),
        ({"categories": [{"id": "x"}]}, "every category must have an id and a name"),
        ({"images": []}, "is not in the format of COCO"),
        ({"images": [{"id": 0, "file_name": "gone.png", "width": 1, "height": 1}]}, "gone.png', which does not exist"),
    ],
)
def test_a_spoilt_annotation_file_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    if changes.get("images"):
        changes = {"annotations": [], **changes}
    with pytest.raises(DataError, match=rf"train.json'.*{message}"):
        boxes(write_coco(tmp_path, **changes))


# -- data of the user's own --------------------------------------------------------------------------------------------


class Own(Dataset[Any]):
    """Images of 8x8 pixels with any targets."""

    def __init__(self, targets: list[Any]) -> None:
        self.items = targets

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return torch.full((1, 8, 8), float(index)), self.items[index]


def own_masks(**changes: Any) -> list[Own]:
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[0], mask[1] = 4, 255
    return [Own([changes.get("mask", mask)] * 10) for _ in range(2)]


def own_boxes(**changes: Any) -> list[Own]:
    target = {"boxes": torch.tensor([[1, 1, 3, 4]]), "labels": torch.tensor([2], dtype=torch.int32), "id": "a"}
    return [Own([{**target, **changes}] * 10) for _ in range(2)]


def own_numbers() -> list[Own]:
    return [Own([{"x": torch.tensor(float(n)), "y": n} for n in range(10)]) for _ in range(2)]


def own(factory: str, targets: Any, **kwargs: Any) -> Splits:
    config = DataConfig(factory=f"tests.unit.test_annotated_data:{factory}", kwargs=kwargs, workers=0, validation=0.2)
    return load_data(config, targets=targets)


def test_masks_of_the_user_are_checked_and_converted() -> None:
    splits = own("own_masks", "masks")
    assert (splits.classes, len(splits.train), len(splits.validation)) == (5, 8, 2)
    assert first(splits)[1].dtype == torch.int64
    for mask, message in (
        (torch.zeros(8, 8), "must be a tensor of whole numbers"),
        (torch.zeros(4, 8, dtype=torch.uint8), r"with shape \(8, 8\)"),
        (torch.full((8, 8), -1), "numbers of classes from 0"),
        (7, "must be a tensor of whole numbers"),
    ):
        with pytest.raises(DataError, match=rf"the mask of sample 0 of the training set.*{message}"):
            own("own_masks", "masks", mask=mask)


def test_boxes_of_the_user_are_checked_and_converted() -> None:
    splits = own("own_boxes", "boxes")
    assert splits.classes == 3
    targets = first(splits)[1]
    assert (targets[0]["boxes"].dtype, targets[0]["labels"].dtype) == (torch.float32, torch.int64)
    assert [target["id"] for target in targets] == ["a"] * 4
    for changes, message in (
        ({"boxes": torch.tensor([[3, 1, 1, 4]])}, "has an empty box"),
        ({"labels": torch.tensor([0])}, "must be from 1 up; 0 is the background"),
        ({"labels": torch.tensor([1, 1])}, r"boxes of shape \(n, 4\) and labels of shape \(n,\)"),
        ({"boxes": None}, 'must be a mapping with the tensors "boxes" and "labels"'),
    ):
        with pytest.raises(DataError, match=rf"sample 0 of the training set.*{message}"):
            own("own_boxes", "boxes", **changes)


def test_a_task_of_the_users_own_may_read_anything() -> None:
    images, targets = first(own("own_numbers", "any"), 3)
    assert torch.equal(targets["x"], images[:, 0, 0, 0])
    assert torch.equal(targets["y"].float(), targets["x"])
