"""What a user should hear about while something can still be done: each returns what is wrong, or nothing."""

from __future__ import annotations

_LEAST = 8
"""Images per batch, below which a mean over the batch says little about the data (Wu & He 2018, figure 1)."""


def small_batches(size: int) -> str | None:
    """Say so where batches are too small for BatchNorm.

    Args:
        size: Images that share a mean and a variance: of one micro-batch of one process; of all, with SyncBN.
    """
    if size >= _LEAST:
        return None
    return (
        f"BatchNorm is unreliable with batches below {_LEAST} (got {size}): their statistics are noise. "
        "Raise data.batch_size, or set sync_bn where several processes train; gradient accumulation (accumulate) does "
        "not help."
    )


def collapse(before: float, now: float, classes: int) -> str | None:
    """Say so where validation accuracy has lost more than half of what it had above chance.

    Args:
        before: The best accuracy so far, in [0, 1].
        now: The present one.
        classes: How many there are; a guess is right once in so many times.
    """
    chance = 1 / classes
    had = before - chance
    if had < 0.1 or now - chance >= had / 2:
        return None
    return f"validation accuracy fell from {before:.2%} to {now:.2%}"
