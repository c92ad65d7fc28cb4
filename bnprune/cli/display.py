"""What people see: progress on stderr, tables on stdout, and JSON when asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from bnprune.cli.verbosity import VERBOSITY, answer
from bnprune.errors import printable
from bnprune.notes import Note
from bnprune.reporting.number_format import count as count
from bnprune.runs.files import plain
from bnprune.runs.stages import title_of
from bnprune.training.loop import EpochRecord
from bnprune.training.penalties.gamma import GammaStatistics


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout."""
    answer(plain(dict(document)))


class _Console(Console):
    """A console that escapes what is not printable: names of layers and files are somebody else's text."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def stdout() -> Console:
    """Return the console for results; if it is no terminal, lines are never broken."""
    return _Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)


def stderr() -> Console:
    """Return the console for progress and remarks."""
    return _Console(stderr=True, highlight=False)


def tell(console: Console, text: str, style: str = "") -> None:
    """Print text as it is: brackets in it are no markup."""
    console.print(Text(text, style=style), soft_wrap=True)


class RichDisplay:
    """Progress on stderr: a bar on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self.console = stderr()
        self.quiet, self.verbose = VERBOSITY.quiet, VERBOSITY.verbose
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._epochs = 0

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
        width = len(str(epochs))
        line = (
            f"  epoch {record.epoch:{width}}/{epochs}  loss {record.train.loss:.3f}  train {record.train.top1:6.2%}"
            f"  validation {record.validation.top1:6.2%}{' *' if record.is_best else '  '}"
        )
        if gamma is not None:
            line += f"  {describe_gamma(gamma)}"
        if self.verbose:
            line += f"  validation loss {record.validation.loss:.3f}  lr {record.lr:.3g}"
        self.note(line.rstrip())

    def end(self, stage: str, figures: Mapping[str, Any]) -> None:
        """Close a stage with its accuracy."""
        self._close()
        self.note(f"  {title_of(stage)}: test accuracy {figures['accuracy']:.2%}, {figures['seconds']:.1f} s")

    def note(self, text: str, style: str = "") -> None:
        """Print a line; with --quiet, warnings only."""
        is_warning = isinstance(text, Note) and text.level == "warning"
        if is_warning or not self.quiet:
            tell(self.console, f"warning: {text}" if is_warning else text, style)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def describe_gamma(gamma: GammaStatistics) -> str:
    """Say in a line how the scale factors are spread: minimum, quartiles and maximum of |γ|, and what is near zero."""
    marks = " ".join(f"{mark:.2g}" if mark >= 0.001 else "0" for mark in gamma.quantiles)
    return f"γ quartiles {marks}, {gamma.below:.0%} near zero, {'split' if gamma.split else 'not split yet'}"


def show_result(result: Mapping[str, Any], path: Path) -> None:
    """Print the figures of every stage side by side, and where the files are."""
    console = stdout()
    columns = ["network", "test accuracy", "parameters", "MACs", "BN channels", "file", "latency"]
    table = make_table(*columns)
    for stage, figures in result["stages"].items():
        table.add_row(
            title_of(stage),
            f"{figures['accuracy']:.2%}",
            count(figures["params"]),
            count(figures["macs"]),
            str(figures["channels"]),
            f"{figures['file_bytes'] / 1e6:.2f} MB",
            f"{figures['latency_ms']:.2f} ms" if "latency_ms" in figures else "",
        )
    console.print(table)
    cuts = [figures["verification"] for figures in result["stages"].values() if "verification" in figures]
    if cuts:
        error = max(cut["max_relative_error"] for cut in cuts)
        console.print(f"The cut is proven: slim equals masked to {error:.1e} in float64.")
    tell(console, f"Everything is in {path}")


def make_table(*columns: str) -> Table:
    """Return a table in the one style we use: right-aligned but for the first column, and bars, which have no name."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position and column else "left", overflow="fold")
    return table


def show_rows(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a table on stdout."""
    table = make_table(*columns)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    stdout().print(table)


def bar(part: int, whole: int, longest: int | None = None, width: int = 20) -> Text:
    """Draw a share as a bar, as long as `whole` is beside `longest`; what there is of it is never invisible."""
    cells = max(round(width * whole / max(longest or whole, 1)), 1) if whole else 0
    filled = max(round(cells * part / max(whole, 1)), 1) if part else 0
    full, empty = ("█", "·") if _shows("█·") else ("#", ".")
    return Text.assemble((full * filled, "cyan"), (empty * (cells - filled), "dim"))


def _shows(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
