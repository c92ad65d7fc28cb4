"""The speed of a training, and the time that is left of its run."""

from __future__ import annotations

import time
from collections.abc import Mapping


class TrainingClock:
    """Measures images per second in an epoch, and seconds per epoch in a stage.

    The stages to come are taken to need the same time per epoch as the present one. They rarely need more: a pruned
    network is faster.
    """

    def __init__(self) -> None:
        self.images_per_second: float | None = None
        """Training speed in the present epoch; None until it is known."""
        self._epochs: dict[str, int] = {}
        self._in_stage, self._later, self._images = 0, 0, 0
        self._stage_start: tuple[float, float] | None = None
        self._epoch_start: tuple[float, float] | None = None
        self._done = 0.0

    def schedule(self, epochs: Mapping[str, int]) -> None:
        """Receive the epochs of every stage to come, in order."""
        self._epochs = dict(epochs)

    def begin(self, stage: str, epochs: int, images: int) -> None:
        """Start a stage: its epochs, and the training images of each."""
        for name in list(self._epochs):  # the stages before it are done
            if self._epochs.pop(name) is not None and name == stage:
                break
        self._in_stage, self._later, self._images = epochs, sum(self._epochs.values()), images
        self._stage_start = self._epoch_start = self.images_per_second = None

    def step(self, epoch: int, share: float) -> None:
        """Receive the position: epochs that are finished, and the share of the present one."""
        now = time.monotonic()
        self._done = epoch + share
        # The first steps are slower, and a resumed stage begins anywhere: the clock starts when they are done.
        self._stage_start = self._stage_start or (now, self._done)
        self._epoch_start = self._epoch_start or (now, share)
        begun, before = self._epoch_start
        if share > before and now > begun:
            self.images_per_second = (share - before) * self._images / (now - begun)

    def end_epoch(self) -> None:
        """Start the clock of the next epoch."""
        self._epoch_start = (time.monotonic(), 0.0)

    def seconds_left(self) -> float | None:
        """Return the time that the training stages of the run will still take; None until it is known."""
        if self._stage_start is None or self._done <= self._stage_start[1]:
            return None
        begun, before = self._stage_start
        left = self._in_stage - self._done + self._later
        return left * (time.monotonic() - begun) / (self._done - before)
