"""The result of `sweep`."""

from __future__ import annotations

from bnprune.cli.render.console import stdout, tell
from bnprune.cli.render.sweep_chart import draw
from bnprune.cli.render.tables import show_rows
from bnprune.workflows.results import SweepPoint, SweepResult


def show_sweep(result: SweepResult) -> None:
    """Print every cut that was tried, a chart, and the one that is recommended."""
    columns = ["", "channels gone", "MACs left", "parameters left", "plain cut", "recovered"]
    show_rows(columns, [_row(index, point, result) for index, point in enumerate(result.points)])
    console, best = stdout(), result.recommended
    tell(console, "\n" + draw(result.points, best))
    if best is None:
        tell(console, f"\n{result.reason}")
        return
    tell(
        console,
        f"\nrecommended: {result.by} {best.asked:g}: {best.macs:.1%} of the MACs left, validation accuracy "
        f"{best.accuracy:.2%} ({result.points[0].accuracy:.2%} as it is; {result.tolerance:.1%} may be lost)",
    )


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
