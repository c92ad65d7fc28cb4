"""The result of `sweep`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bnprune.cli.render.console import stdout, tell
from bnprune.cli.render.notes import show_notes
from bnprune.cli.render.tables import show_rows
from bnprune.errors import about
from bnprune.reporting.charts import sweep_chart
from bnprune.reporting.pictures import require_picture, save_picture
from bnprune.reporting.text import draw
from bnprune.runs.outputs import require_output
from bnprune.workflows.results import SweepPoint, SweepResult


def show_sweep(result: SweepResult) -> None:
    """Print every cut that was tried, a chart, and the one that is recommended."""
    columns = ["", "channels gone", "MACs left", "parameters left", "plain cut", "recovered"]
    show_rows(columns, [_row(index, point, result) for index, point in enumerate(result.points)])
    console, best = stdout(), result.recommended
    tell(console, "\n" + draw(sweep_chart(result.points, best)))
    show_notes(console, result.notes)
    if best is None:
        tell(console, f"\n{result.reason}")
        return
    tell(
        console,
        f"\nrecommended: {result.by} {best.asked:g}: {best.macs:.1%} of the MACs left, validation accuracy "
        f"{best.accuracy:.2%} ({result.points[0].accuracy:.2%} as it is; {result.tolerance:.1%} may be lost)",
    )


def require_plot(path: Path | None, *, sources: Iterable[Path | None], recipe: Path | None) -> None:
    """Raise an error if the chart cannot be drawn into a file; nothing for None.

    Raises:
        ConfigError: The suffix is unknown, matplotlib is missing, or the file is needed.
        DataError: There is a folder, a device or a link.
    """
    if path is None:
        return
    with about("plot"):
        require_picture(path)
    require_output(path, force=True, sources=sources, recipe=recipe, option="plot")


def save_plot(path: Path | None, result: SweepResult) -> None:
    """Draw the chart into a file; nothing for None.

    Raises:
        DataError: The file cannot be written.
    """
    if path is None:
        return
    with about("plot"):
        save_picture(path, [sweep_chart(result.points, result.recommended)])


def _row(index: int, point: SweepPoint, result: SweepResult) -> tuple[str, ...]:
    mark = " <" if point == result.recommended else ""
    return (
        (f"{result.by} {point.asked:g}" if index else "as it is") + mark,
        f"{point.ratio:.1%}",
        f"{point.macs:.1%}",
        f"{point.params:.1%}",
        f"{point.plain:.2%}" if index else "",
        f"{point.accuracy:.2%}",
    )
