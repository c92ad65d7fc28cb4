"""Warnings about a training: batches that are too small, and a collapse of the accuracy."""

from __future__ import annotations

from bnprune.config.metrics import metric_of
from bnprune.notes import Note
from bnprune.training.evaluate import Score

_FEWEST = 8
"""Smallest number of images per batch for which the batch mean is a useful estimate (Wu & He 2018, figure 1)."""


def small_batches(size: int) -> Note | None:
    """Return a warning if batches are too small for BatchNorm.

    Args:
        size: Images that share a mean and a variance: of one micro-batch of one process; of all, with SyncBN.
    """
    if size >= _FEWEST:
        return None
    text = (
        f"BatchNorm is unreliable with batches below {_FEWEST} (got {size}): their statistics are noise. "
        "Raise data.batch_size, or set sync_bn if several processes train; gradient accumulation (accumulate) does "
        "not help."
    )
    return Note("train.small_batches", "warning", text)


def collapse(before: float, now: Score, classes: int) -> Note | None:
    """Return a warning if the main value on validation images has lost more than half of what it had above chance.

    Example: with 10 classes, 90% is 80 points above chance; the warning comes below 10% + 40% = 50%. There is none for
    metrics that are not shares: nothing is known about their range.

    Args:
        before: The best value so far.
        now: The present score.
        classes: Number of classes; the accuracy of guessing is one over it. For other metrics, chance is 0.
    """
    metric = metric_of(now.name)
    chance = 1 / classes if now.name == "top1" else 0.0
    had = before - chance
    if not metric.share or had < 0.1 or now.value - chance >= had / 2:
        return None
    fell = f"from {metric.text(before)} to {metric.text(now.value)}"
    return Note("train.collapse", "warning", f"validation {metric.label} fell {fell}")
