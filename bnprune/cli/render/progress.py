"""Progress of long tasks, on stderr."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.status import Status

from bnprune.cli.render.console import print_text, stderr
from bnprune.cli.render.fitted_line import Part, clock, fitted_line, width_of, wrapped
from bnprune.cli.render.notes import with_help
from bnprune.cli.render.training_clock import TrainingClock
from bnprune.cli.verbosity import VERBOSITY
from bnprune.config.metrics import metric_of
from bnprune.notes import Note
from bnprune.reporting.number_format import percent_since
from bnprune.runs.results import StageResult
from bnprune.runs.stages import title_of
from bnprune.training.loop import EpochRecord
from bnprune.training.penalties.gamma import GammaStatistics

_EVERY, _FIRST_LINE = 30.0, 28.0
"""Seconds between two lines of progress without a terminal; the first one comes after 2 seconds."""
_BAR, _NARROW_BAR, _WIDE = 20, 8, 100
"""Columns of the bar of a training; the narrow one is for terminals of fewer columns than the last number."""


class RichDisplay:
    """Progress on stderr: a bar on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self.console = stderr()
        self.quiet, self.verbose = VERBOSITY.quiet, VERBOSITY.verbose
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._status: Status | None = None
        self._clock = TrainingClock()
        self._epochs = 0
        self._begun: tuple[float, int] | None = None
        self._shown = 0.0

    def __enter__(self) -> RichDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def schedule(self, epochs: Mapping[str, int]) -> None:
        """Receive the stages of the run with their epochs, for the time that is left."""
        self._clock.schedule(epochs)

    def doing(self, what: str) -> None:
        """Say what is being done: on a terminal, until something else is shown."""
        self._close()
        if not self.console.is_terminal:
            self.note(f"  {what}")
        elif not self.quiet:
            self._status = self.console.status(fitted_line([Part(what, 0)], self.console.width))
            self._status.start()

    def begin(self, stage: str, epochs: int, note: str, images: int = 0) -> None:
        """Open a stage."""
        self._close()
        self.note(f"{stage}: {note}" if note else stage, style="bold")
        self._epochs, self._shown = epochs, time.monotonic()
        self._clock.begin(stage, epochs, images)
        if epochs and self.console.is_terminal and not self.quiet:
            bar = BarColumn(_BAR if self.console.width >= _WIDE else _NARROW_BAR)
            columns = (TextColumn("  {task.fields[epoch]}"), bar, TextColumn("{task.fields[figures]}"))
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("", total=None, epoch=f"epoch 1/{epochs}", figures="starting")
            self._bar.start()

    def step(
        self, epoch: int, step: int, steps: int, loss: float, gamma: GammaStatistics | None, lr: float | None = None
    ) -> None:
        """Move the bar; without a terminal, print a line at most every half a minute."""
        self._clock.step(epoch, step / steps)
        at = f"epoch {epoch + 1}/{self._epochs}"
        figures = [Part(f"loss {loss:.3f}", 1), *_gamma_parts(gamma, 3), *self._rates(lr), Part(self._time_left(), 0)]
        if self._bar is not None and self._task is not None:
            bar = _BAR if self.console.width >= _WIDE else _NARROW_BAR
            text = fitted_line(figures, self.console.width - len(f"  {at}  ") - bar)
            done, total = epoch * steps + step, self._epochs * steps
            self._bar.update(self._task, completed=done, total=total, epoch=at, figures=text)
        elif not self.console.is_terminal and step < steps and time.monotonic() - self._shown >= _EVERY:
            self._shown = time.monotonic()
            self._line([Part(f"  {at}, {step / steps:.0%}", -1), *figures])

    def epoch(self, record: EpochRecord, epochs: int, gamma: GammaStatistics | None) -> None:
        """Print a line per epoch, as wide as the terminal."""
        width, metric = len(str(epochs)), metric_of(record.validation.name)
        label = "validation" if record.validation.name == "top1" else f"validation {metric.label}"
        loss = record.validation.values.get("loss")
        running = "" if record.train.value is None else f"train {metric.text(record.train.value):>6}"
        parts = [
            Part(f"  epoch {record.epoch:{width}}/{epochs}", 0),
            Part(f"loss {record.train.loss:.3f}", 3),
            Part(running, 5),
            Part(f"{label} {metric.text(record.validation.value):>6} {'best' if record.is_best else '    '}", 1),
            *_gamma_parts(gamma, 2),
            Part(f"validation loss {loss:.3f}" if self.verbose and loss is not None else "", 7),
            *self._rates(record.lr),
            Part("" if self._bar is not None else self._time_left(), 4),
        ]
        self._line(parts)
        self._shown = time.monotonic()
        self._clock.end_epoch()

    def _rates(self, lr: float | None) -> list[Part]:
        speed = self._clock.images_per_second
        return [Part("" if lr is None else f"lr {lr:.2g}", 6), Part("" if not speed else f"{speed:,.0f} images/s", 4)]

    def _time_left(self) -> str:
        seconds = self._clock.seconds_left()
        return "" if not seconds else f"about {clock(seconds)} left"

    def _line(self, parts: list[Part]) -> None:
        self.note(fitted_line(parts, width_of(self.console)).rstrip())

    def end(self, stage: str, figures: StageResult) -> None:
        """Close a stage with its accuracy."""
        self._close()
        if figures.teacher is None:
            metric = metric_of(figures.metric)
            reached = f"test {metric.label} {metric.text(figures.accuracy)}"
        else:
            share = percent_since(figures.teacher.agreement, figures.teacher.agreement_before)
            reached = f"agreement with the teacher on held-out images {share}"
        self.note(f"  {title_of(stage)}: {reached}, {figures.seconds:.1f} s")

    def advance(self, done: int, count: int, things: str) -> None:
        """Move a bar with the time that is left; without a terminal, print a line at most every half a minute."""
        now = time.monotonic()
        if self._begun is None:
            self._close()
            self._begun, self._shown = (now, done), now - _FIRST_LINE
            if self.console.is_terminal and not self.quiet:
                columns = (TextColumn("  {task.completed:.0f} of {task.total:.0f} " + things), BarColumn(20))
                self._bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
                self._task = self._bar.add_task("", total=count, completed=done)
                self._bar.start()
        elif self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done)
        elif now - self._shown >= _EVERY or done == count:
            self._shown = now
            began, before = self._begun
            left = (now - began) / max(done - before, 1) * (count - done)
            self.note(
                f"  {done} of {count} {things}, about {left:.0f} s left" if done < count else f"  {done} {things}"
            )

    def note(self, text: str, style: str = "") -> None:
        """Print a line; with --quiet, warnings only."""
        is_warning = isinstance(text, Note) and text.level == "warning"
        if is_warning or not self.quiet:
            print_text(self.console, wrapped(with_help(text), width_of(self.console)), style)

    def _close(self) -> None:
        for shown in (self._bar, self._status):
            if shown is not None:
                shown.stop()
        self._bar = self._task = self._status = None


def describe_gamma(gamma: GammaStatistics) -> str:
    """Return a line about the scale factors: the share near zero, if it is a group of its own, and the range of |γ|."""
    return ", ".join(part.text for part in _gamma_parts(gamma, 0))


def _gamma_parts(gamma: GammaStatistics | None, rank: int) -> list[Part]:
    if gamma is None:
        return []
    low, _, median, _, high = (f"{mark:.2g}" if mark >= 0.001 else "0" for mark in gamma.quantiles)
    return [
        Part(f"{gamma.below:.0%} of γ ≈ 0", rank),
        Part("apart from the others" if gamma.split else "not yet apart from the others", 8),
        Part(f"|γ| from {low} to {high}, median {median}", 9),
    ]
