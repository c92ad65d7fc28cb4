"""The result of `sweep`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bnprune.cli.render.console import print_text, stdout
from bnprune.cli.render.notes import show_notes
from bnprune.cli.render.tables import show_rows
from bnprune.errors import about
from bnprune.reporting.charts import sweep_chart
from bnprune.reporting.pictures import require_picture, save_picture
from bnprune.reporting.text import draw
from bnprune.runs.outputs import require_output
from bnprune.workflows.results import SweepPoint, SweepResult


def show_sweep(result: SweepResult) -> None:
    """Print every pruned network that was tried, a chart, and the recommendation."""
    columns = ["", "channels removed", "MACs left", "parameters left", "without recovery", "recovered"]
    show_rows(columns, [_row(index, point, result) for index, point in enumerate(result.points)])
    console, best = stdout(), result.recommended
    print_text(console, "\n" + draw(sweep_chart(result.points, best)))
    show_notes(console, result.notes)
    if best is None:
        print_text(console, f"\n{result.reason}")
        return
    print_text(
        console,
        f"\nrecommended: {result.by} {best.asked:g}: {best.macs:.1%} of the MACs left, validation accuracy "
        f"{best.accuracy:.2%} ({result.points[0].accuracy:.2%} before pruning; allowed loss {result.tolerance:.1%})",
    )


def require_plot(path: Path | None, *, sources: Iterable[Path | None], recipe: Path | None) -> None:
    """Check that the chart can be drawn into a file; do nothing for None.

    Raises:
        ConfigError: The suffix is unknown, matplotlib is missing, or the file is an input.
        DataError: The path is a folder, a device or a link.
    """
    if path is None:
        return
    with about("plot"):
        require_picture(path)
    require_output(path, force=True, sources=sources, recipe=recipe, option="plot")


def save_plot(path: Path | None, result: SweepResult) -> None:
    """Draw the chart into a file; do nothing for None.

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
        (f"{result.by} {point.asked:g}" if index else "not pruned") + mark,
        f"{point.ratio:.1%}",
        f"{point.macs:.1%}",
        f"{point.params:.1%}",
        f"{point.plain:.2%}" if index else "",
        f"{point.accuracy:.2%}",
    )
