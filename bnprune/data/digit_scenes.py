"""Scenes of several digits on one canvas, with masks or boxes; from the real digits of scikit-learn, no download.

The digits are split before the scenes are composed, so that no digit is in two splits. The scenes are always the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from bnprune.config.schema import DataConfig
from bnprune.data.memory import statistics
from bnprune.data.samples import SampleRequirements
from bnprune.data.splits import Splits, stratified
from bnprune.data.stream import StreamSplit
from bnprune.data.targets import IGNORED

_SCENES = {"train": 1600, "validation": 200, "test": 400}
_SIZE = 48
"""Height and width of a canvas."""
_SIDES = (0.25, 0.5)
"""Smallest and largest side of a digit, as a share of the canvas."""
_FEWEST, _MOST = 2, 5
"""Digits in a scene."""
_TRIES = 10
"""Places that are tried for a digit that would hide another one."""
_HIDDEN = 0.3
"""Largest intersection over union of two digits' boxes."""
_FAINT, _INK = 32, 96
"""Pixel values: from `_INK` on, a pixel belongs to its digit; between the two, to no class; below, to the
background."""
_CLASSES = 11
"""The background, which is 0, and the digits 0 to 9 as 1 to 10."""


@dataclass(frozen=True)
class _Scene:
    """One canvas."""

    image: torch.Tensor
    """(H, W), uint8."""
    mask: torch.Tensor
    """(H, W), uint8: 0 for the background, or digit + 1, or `IGNORED`."""
    boxes: torch.Tensor
    """(n, 4), x1, y1, x2, y2: around the ink of each digit."""
    labels: torch.Tensor
    """(n,), digit + 1."""


class _Scenes(Dataset[Any]):
    """Normalised scenes with masks or boxes."""

    def __init__(self, scenes: list[_Scene], kind: Literal["masks", "boxes"], mean: float, std: float) -> None:
        self.scenes = scenes
        self.kind = kind
        self.mean = mean
        self.std = std

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        scene = self.scenes[index]
        image = (scene.image[None].float() / 255 - self.mean) / self.std
        return image, scene.mask if self.kind == "masks" else {"boxes": scene.boxes, "labels": scene.labels}


def digit_scenes(
    config: DataConfig, digits: torch.Tensor, labels: torch.Tensor, kind: Literal["masks", "boxes"]
) -> Splits:
    """Compose scenes of 2 to 5 digits, scaled, and overlapping in part.

    Args:
        config: The `data` section of a recipe.
        digits: Images (N, 1, H, W), uint8.
        labels: Their digits (N,).
        kind: What belongs to each scene.
    """
    own = dict(zip(_SCENES, _sources(labels, config.validation), strict=True))
    size = config.image_size or _SIZE
    counts = {
        name: min(count, (config.limit if name == "train" else config.held_out_limit) or count)
        for name, count in _SCENES.items()
    }
    scenes = {
        name: list(_composed(digits[own[name]], labels[own[name]], counts[name], size, seed))
        for seed, name in enumerate(_SCENES)
    }
    mean, std = (float(value) for value in statistics(torch.stack([scene.image for scene in scenes["train"]])[:, None]))
    shape = (1, size, size)
    requirements = SampleRequirements("the scenes", shape, _CLASSES, kind)
    parts = {name: StreamSplit(_Scenes(made, kind, mean, std), requirements=requirements)
             for name, made in scenes.items()}  # fmt: skip
    return Splits(
        parts["train"],
        parts["validation"],
        parts["test"],
        shape=shape,
        classes=_CLASSES,
        normalisation=((mean,), (std,)),
        class_names=("background", *map(str, range(10))),
        targets=kind,
    )


def _sources(labels: torch.Tensor, validation: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the digits of each split: train, validation, test."""
    fit, test = stratified(labels, 0.2)
    train, held = stratified(labels[fit], validation)
    return fit[train], fit[held], test


def _composed(digits: torch.Tensor, labels: torch.Tensor, count: int, size: int, seed: int) -> Iterator[_Scene]:
    random = np.random.default_rng(seed)
    for _ in range(count):
        chosen = random.choice(len(digits), random.integers(_FEWEST, _MOST + 1), replace=False)
        yield _scene(digits[chosen], labels[chosen], size, random)


def _scene(digits: torch.Tensor, labels: torch.Tensor, size: int, random: np.random.Generator) -> _Scene:
    image = torch.zeros(size, size, dtype=torch.uint8)
    mask = torch.zeros(size, size, dtype=torch.uint8)
    boxes: list[list[float]] = []
    found: list[int] = []
    for digit, label in zip(digits, labels.tolist(), strict=True):
        side = int(random.integers(round(_SIDES[0] * size), round(_SIDES[1] * size) + 1))
        ink = F.interpolate(digit[None].float(), (side, side), mode="bilinear", antialias=True)[0, 0].round().byte()
        placed = _place(_ink_box(ink), boxes, side, size, random)
        if placed is None:
            continue
        (top, left), box = placed
        area = slice(top, top + side), slice(left, left + side)
        image[area] = torch.maximum(image[area], ink)
        mask[area] = torch.where(ink >= _INK, label + 1, torch.where(ink >= _FAINT, IGNORED, mask[area].long())).byte()
        boxes.append(box)
        found.append(label + 1)
    return _Scene(image, mask, torch.tensor(boxes).reshape(-1, 4), torch.tensor(found, dtype=torch.int64))


def _ink_box(ink: torch.Tensor) -> tuple[int, int, int, int]:
    """Return the rows and columns of the ink of a digit (H, W): top, left, bottom, right; the last two excluded."""
    rows, columns = torch.nonzero(ink >= _FAINT).T
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def _place(
    ink: tuple[int, int, int, int], others: list[list[float]], side: int, size: int, random: np.random.Generator
) -> tuple[tuple[int, int], list[float]] | None:
    """Return a place (top, left) for a digit, and its box; None if it hides too much of others wherever it is tried."""
    for _ in range(_TRIES):
        top, left = (int(value) for value in random.integers(0, size - side + 1, 2))
        box = [float(left + ink[1]), float(top + ink[0]), float(left + ink[3]), float(top + ink[2])]
        if all(_overlap(box, other) <= _HIDDEN for other in others):
            return (top, left), box
    return None


def _overlap(one: list[float], two: list[float]) -> float:
    """Return the intersection over union of two boxes."""
    wide = min(one[2], two[2]) - max(one[0], two[0])
    high = min(one[3], two[3]) - max(one[1], two[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return shared / (sum(areas) - shared)
