"""Training images as calibration data."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bnprune.data.splits import Batch, Split
from bnprune.pruning.calibration import Calibration
from bnprune.pruning.request import Request
from bnprune.pruning.scores import uses_data

_BATCH = 64


def training_batches(split: Split, count: int) -> Iterator[Batch]:
    """Yield batches of at most `count` images with labels, in a fixed random order, without augmentation."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count]
    yield from split.serve(order.split(_BATCH), torch.device("cpu"))


def calibration_for(split: Split, request: Request) -> Calibration | None:
    """Return the calibration data that the criterion of a request uses; None if it uses none."""
    count = request.calibrate_images
    if not count or not uses_data(request.ranked_by):
        return None
    return Calibration.of(training_batches(split, count), count)
