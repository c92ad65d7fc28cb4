"""A small anchor-free detector: objects as points (Zhou, Wang & Krähenbühl 2019), with torchvision's contract."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from bnprune.errors import ConfigError

Target = dict[str, torch.Tensor]
"""Of one image: "boxes" (n, 4), as x1, y1, x2, y2 in pixels, and "labels" (n,), from 1 up; 0 is the background."""

_STRIDE = 4
"""Pixels per cell of the output."""
_DETECTIONS = 30
"""Boxes per image."""
_SPREAD = 0.09
"""Standard deviation of the target of a point, as a share of its box: as in TTFNet (Liu et al. 2020), 0.54 / 6."""


class CenterNet(nn.Module):
    """A score per class for each cell to be the centre of an object, and the size and exact centre of that object.

    In training mode with targets, it returns a mapping of losses; in eval mode, a list with a mapping per image of
    "boxes", "labels" and "scores", as torchvision's detectors do. There is no suppression of overlapping boxes: a cell
    counts only if none beside it has a higher score for the class (section 3 of the paper).

    Args:
        num_classes: Classes with the background, which is 0.
        in_channels: Channels of the input images.
        width: Channels of the first layer; those at the end are 4 times as many.
    """

    def __init__(self, num_classes: int = 11, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for out, stride in ((1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (4, 1), (4, 1)):
            layers += [
                nn.Conv2d(channels, out * width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(out * width),
                nn.ReLU(inplace=True),
            ]
            channels = out * width
        self.features = nn.Sequential(*layers)
        self.centres = nn.Conv2d(channels, num_classes - 1, 1)
        self.shapes = nn.Conv2d(channels, 4, 1)
        nn.init.constant_(self.centres.bias, -math.log(99))  # type: ignore[arg-type]  # a score of 0.01 at the start
        nn.init.constant_(self.shapes.bias, 1.0)  # type: ignore[arg-type]

    def forward(
        self, images: torch.Tensor | Sequence[torch.Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, torch.Tensor] | list[Target] | tuple[torch.Tensor, torch.Tensor]:
        """Map images (N, in_channels, H, W), or a list of them, to losses or detections.

        In training mode without targets: the logits of the centres (N, num_classes - 1, H/4, W/4), and the shapes (N,
        4, H/4, W/4): the logarithm of width and height in cells, and the place of the centre within its cell.
        """
        batch = images if isinstance(images, torch.Tensor) else torch.stack(list(images))
        features = self.features(batch)
        centres, shapes = self.centres(features), self.shapes(features)
        if not self.training:
            return _detections(centres, shapes)
        return (centres, shapes) if targets is None else _losses(centres, shapes, targets)


def _losses(centres: torch.Tensor, shapes: torch.Tensor, targets: Sequence[Target]) -> dict[str, torch.Tensor]:
    """Return the focal loss of the centres (equation 1 of the paper), and the L1 losses of sizes and places."""
    heat = torch.zeros_like(centres)
    image, row, column, shape = _assigned(heat, targets)
    log_score, log_rest = F.logsigmoid(centres), F.logsigmoid(-centres)
    score = centres.sigmoid()
    positive = heat == 1
    focal = torch.where(positive, (1 - score) ** 2 * log_score, (1 - heat) ** 4 * score**2 * log_rest)
    count = max(len(image), 1)
    difference = (shapes[image, :, row, column] - shape).abs()
    return {
        "centre": -focal.sum() / count,
        "size": difference[:, :2].sum() / count,
        "place": difference[:, 2:].sum() / count,
    }


def _assigned(
    heat: torch.Tensor, targets: Sequence[Target]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw the targets of the centres into `heat`; return image, row, column and shape (n, 4) of each object."""
    height, width = heat.shape[-2:]
    images, rows, columns, shapes = [], [], [], []
    y = torch.arange(height, device=heat.device).view(-1, 1)
    x = torch.arange(width, device=heat.device)
    for index, target in enumerate(targets):
        if len(target["labels"]) and int(target["labels"].max()) > heat.shape[1]:
            raise ConfigError(
                f"model: the boxes have a class {int(target['labels'].max())}, and the network has classes up to "
                f"{heat.shape[1]}. num_classes counts all classes and the background."
            )
        boxes = target["boxes"] / _STRIDE
        centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        cell = centre.long().clamp(min=0)
        column, row = cell[:, 0].clamp(max=width - 1), cell[:, 1].clamp(max=height - 1)
        spread = (_SPREAD * size).clamp(min=1e-3)
        for label, r, c, (wide, high) in zip(target["labels"] - 1, row, column, spread, strict=True):
            drawn = torch.exp(-((x - c) ** 2) / (2 * wide**2) - (y - r) ** 2 / (2 * high**2))
            heat[index, label] = torch.maximum(heat[index, label], drawn)
        images.append(torch.full_like(row, index))
        rows.append(row)
        columns.append(column)
        shapes.append(torch.cat([size.log(), centre - torch.stack([column, row], 1)], 1))
    return torch.cat(images), torch.cat(rows), torch.cat(columns), torch.cat(shapes)


def _detections(centres: torch.Tensor, shapes: torch.Tensor) -> list[Target]:
    scores = centres.sigmoid()
    # Cells that are no peaks come last, in the order of their scores: equal numbers would have no order of their own.
    ranked = torch.where(F.max_pool2d(scores, 3, 1, 1) == scores, scores, scores - 1)
    width = scores.shape[3]
    cells = scores.shape[2] * width
    best = ranked.flatten(1).topk(min(_DETECTIONS, ranked[0].numel()))
    labels, cell = best.indices // cells + 1, best.indices % cells
    at = shapes.flatten(2).gather(2, cell[:, None].expand(-1, 4, -1))
    centre = torch.stack([cell % width, cell // width], 1) + at[:, 2:]
    size = at[:, :2].exp()
    boxes = torch.cat([centre - size / 2, centre + size / 2], 1).transpose(1, 2) * _STRIDE
    return [
        {"boxes": one, "labels": label, "scores": score}
        for one, label, score in zip(boxes, labels, best.values.clamp(min=0), strict=True)
    ]
