"""The interface through which runs and other long tasks show their progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from bnprune.runs.results import StageResult
from bnprune.training.loop import EpochRecord
from bnprune.training.penalties.gamma import GammaStatistics


class Display(Protocol):
    """The interface of a progress display."""

    def schedule(self, epochs: Mapping[str, int]) -> None:
        """Receive the stages that will run, in order, and their epochs: 0 for one that is not a training."""
        ...

    def doing(self, what: str) -> None:
        """Say what is being done, such as "measuring the latency", until the next call."""
        ...

    def begin(self, stage: str, epochs: int, note: str, images: int = 0) -> None:
        """Open a stage: 0 epochs if it is not a training, else also the training images of an epoch."""
        ...

    def step(
        self, epoch: int, step: int, steps: int, loss: float, gamma: GammaStatistics | None, lr: float | None = None
    ) -> None:
        """Show progress within an epoch; the scale factors may be about a second old."""
        ...

    def epoch(self, record: EpochRecord, epochs: int, gamma: GammaStatistics | None) -> None:
        """Show a finished epoch."""
        ...

    def end(self, stage: str, figures: StageResult) -> None:
        """Close a stage."""
        ...

    def advance(self, done: int, count: int, things: str) -> None:
        """Show how many of the things to do are done, with the time that is left; the first call starts the clock."""
        ...

    def note(self, text: str) -> None:
        """Show a line; a `bnprune.notes.Note` whose level is "warning" is shown as one, also by a quiet display."""
        ...


class NoDisplay:
    """A display that shows nothing."""

    def schedule(self, epochs: Mapping[str, int]) -> None:
        """Ignore the call: there is no display."""

    def doing(self, what: str) -> None:
        """Ignore the call: there is no display."""

    def begin(self, stage: str, epochs: int, note: str, images: int = 0) -> None:
        """Ignore the call: there is no display."""

    def step(
        self, epoch: int, step: int, steps: int, loss: float, gamma: GammaStatistics | None, lr: float | None = None
    ) -> None:
        """Ignore the call: there is no display."""

    def epoch(self, record: EpochRecord, epochs: int, gamma: GammaStatistics | None) -> None:
        """Ignore the call: there is no display."""

    def end(self, stage: str, figures: StageResult) -> None:
        """Ignore the call: there is no display."""

    def advance(self, done: int, count: int, things: str) -> None:
        """Ignore the call: there is no display."""

    def note(self, text: str) -> None:
        """Ignore the call: there is no display."""


NO_DISPLAY = NoDisplay()
