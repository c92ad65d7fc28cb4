"""Warnings about a training: batches that are too small, and a collapse of the accuracy."""

from __future__ import annotations

from bnprune.notes import Note

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


def collapse(before: float, now: float, classes: int) -> Note | None:
    """Return a warning if validation accuracy has lost more than half of what it had above chance.

    Example: with 10 classes, 90% is 80 points above chance; the warning comes below 10% + 40% = 50%.

    Args:
        before: The best accuracy so far, in [0, 1].
        now: The present accuracy.
        classes: Number of classes; the accuracy of guessing is one over it.
    """
    chance = 1 / classes
    had = before - chance
    if had < 0.1 or now - chance >= had / 2:
        return None
    return Note("train.collapse", "warning", f"validation accuracy fell from {before:.2%} to {now:.2%}")
