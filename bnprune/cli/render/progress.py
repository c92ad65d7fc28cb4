"""Progress of long tasks, on stderr."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bnprune.cli.render.console import print_text, stderr
from bnprune.cli.render.tables import percent
from bnprune.cli.verbosity import VERBOSITY
from bnprune.config.metrics import metric_of
from bnprune.notes import Note
from bnprune.runs.results import StageResult
from bnprune.runs.stages import title_of
from bnprune.training.loop import EpochRecord
from bnprune.training.penalties.gamma import GammaStatistics

_EVERY, _FIRST_LINE = 30.0, 28.0
"""Seconds between two lines of progress without a terminal; the first one comes after 2 seconds."""


class RichDisplay:
    """Progress on stderr: a bar on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self.console = stderr()
        self.quiet, self.verbose = VERBOSITY.quiet, VERBOSITY.verbose
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._epochs = 0
        self._begun: tuple[float, int] | None = None
        self._shown = 0.0

    def __enter__(self) -> RichDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def begin(self, stage: str, epochs: int, note: str) -> None:
        """Open a stage."""
        self.note(f"{stage}: {note}" if note else stage, style="bold")
        self._epochs = epochs
        if epochs and self.console.is_terminal and not self.quiet:
            texts = ("  epoch {task.fields[epoch]}", "loss {task.fields[loss]:.3f}", "{task.fields[gamma]}")
            epoch, loss, gamma = (TextColumn(text) for text in texts)
            columns = (epoch, BarColumn(20), loss, TimeRemainingColumn(), gamma)
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("", total=None, epoch=f"1/{epochs}", loss=0.0, gamma="")
            self._bar.start()

    def step(self, epoch: int, step: int, steps: int, loss: float, gamma: GammaStatistics | None) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            done, total = epoch * steps + step, self._epochs * steps
            shown = f"{epoch + 1}/{self._epochs}"
            text = "" if gamma is None else describe_gamma(gamma)
            self._bar.update(self._task, completed=done, total=total, epoch=shown, loss=loss, gamma=text)

    def epoch(self, record: EpochRecord, epochs: int, gamma: GammaStatistics | None) -> None:
        """Print a line per epoch."""
        width, metric = len(str(epochs)), metric_of(record.validation.name)
        running = "" if record.train.value is None else f"  train {metric.text(record.train.value):>6}"
        name = "" if record.validation.name == "top1" else f" {metric.label}"
        line = (
            f"  epoch {record.epoch:{width}}/{epochs}  loss {record.train.loss:.3f}{running}"
            f"  validation{name} {metric.text(record.validation.value):>6}{' *' if record.is_best else '  '}"
        )
        if gamma is not None:
            line += f"  {describe_gamma(gamma)}"
        if self.verbose:
            line += f"  validation loss {record.validation.loss:.3f}  lr {record.lr:.3g}"
        self.note(line.rstrip())

    def end(self, stage: str, figures: StageResult) -> None:
        """Close a stage with its accuracy."""
        self._close()
        if figures.teacher is None:
            metric = metric_of(figures.metric)
            reached = f"test {metric.label} {metric.text(figures.accuracy)}"
        else:
            reached = f"{percent(figures.teacher.agreement)} of the held-out images are classified as by the teacher"
        self.note(f"  {title_of(stage)}: {reached}, {figures.seconds:.1f} s")

    def advance(self, done: int, count: int, things: str) -> None:
        """Move a bar with the time that is left; without a terminal, print a line at most every half a minute."""
        now = time.monotonic()
        if self._begun is None:
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
            print_text(self.console, f"warning: {text}" if is_warning else text, style)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def describe_gamma(gamma: GammaStatistics) -> str:
    """Return a line about the scale factors: minimum, quartiles and maximum of |γ|, and the share near zero."""
    marks = " ".join(f"{mark:.2g}" if mark >= 0.001 else "0" for mark in gamma.quantiles)
    return f"γ quartiles {marks}, {gamma.below:.0%} near zero, {'split' if gamma.split else 'not split yet'}"
