"""The result of `sweep`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bnprune.cli.render.console import print_text, stdout
from bnprune.cli.render.notes import show_notes
from bnprune.cli.render.prune_command import without_flag
from bnprune.cli.render.tables import show_rows
from bnprune.config.metrics import Metric, metric_of
from bnprune.errors import about
from bnprune.reporting.charts import sweep_chart
from bnprune.reporting.figures import Chart
from bnprune.reporting.number_format import plural
from bnprune.reporting.pictures import require_picture, save_picture
from bnprune.reporting.text import draw
from bnprune.runs.outputs import require_output
from bnprune.workflows.results import SweepPoint, SweepResult

_COLUMNS = ("", "channels removed", "MACs left", "parameters left", "without recovery", "recovered", "95% confidence")


def show_sweep(result: SweepResult, command: Callable[[SweepPoint], str]) -> None:
    """Print every pruned network that was tried, a chart, the cuts to choose from, and the command for the best one.

    Args:
        result: The sweep.
        command: Returns the command that makes a cut.
    """
    show_rows(_COLUMNS, [_row(index, point, result) for index, point in enumerate(result.points)])
    console, best = stdout(), result.recommended or result.measured or result.knee
    print_text(console, f"\n{draw(_chart(result, near=True))}\n")
    show_notes(console, result.notes)
    allowed = _metric(result).text(result.tolerance, 1)
    print_text(console, f"{plural(result.images, 'validation image')}; the allowed loss is {allowed}.")
    for line in _findings(result):
        print_text(console, line)
    if best is not None:
        doubt = "" if result.recommended else "Not recommended; to try it all the same, and fine-tune:\n"
        print_text(console, f"\n{doubt}{command(best)}")
        if missing := without_flag(result):
            print_text(console, f"(without {', '.join(missing)}, for which there is no flag)")


def _findings(result: SweepResult) -> Iterator[str]:
    """Yield a line for each cut that the sweep names."""
    recommended, measured, knee = result.recommended, result.measured, result.knee
    if recommended is None:
        yield f"Nothing is recommended: {result.reason}"
    else:
        yield f"recommended: {_described(recommended, result)}"
    if measured is not None and measured != recommended:
        yield f"within the allowed loss on these images, but not for certain: {_described(measured, result)}"
    if recommended is None and measured is None:
        allowed = _metric(result).text(result.tolerance, 1)
        yield f"No cut keeps the measured loss within {allowed}. Allow more, or fine-tune after pruning."
    found = _described(knee, result) if knee is not None else "none"
    yield f"knee, the last cut before {_metric(result).label} falls steeply: {found}"


def _metric(result: SweepResult) -> Metric:
    return metric_of(result.metric)


def _described(point: SweepPoint, result: SweepResult) -> str:
    """Return a cut with its loss, such as "ratio 0.7: 8.0% of the MACs left, validation accuracy 99.30% ..."."""
    start, metric = result.points[0].accuracy, _metric(result)
    text = (
        f"{result.by} {point.asked:g}: {point.macs:.1%} of the MACs left, validation {metric.label} "
        f"{metric.text(point.accuracy)} ({metric.text(start)} before pruning)"
    )
    if point.lower is None:
        return text
    largest = metric.text(max(start - point.lower, 0.0))
    return f"{text}; true loss at most {largest} with {result.confidence:.0%} confidence"


def _chart(result: SweepResult, *, near: bool = False) -> Chart:
    label = "recommended" if result.recommended else "not certain"
    best = result.recommended or result.measured
    return sweep_chart(result.points, best, result.tolerance, _metric(result), label=label, near=near)


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
        save_picture(path, [_chart(result)])


def _row(index: int, point: SweepPoint, result: SweepResult) -> tuple[str, ...]:
    metric = _metric(result)
    named = result.recommended or result.measured
    mark = (" (recommended)" if result.recommended else " (not certain)") if point == named else ""
    return (
        (f"{result.by} {point.asked:g}" if index else "not pruned") + mark,
        f"{point.ratio:.1%}",
        f"{point.macs:.1%}",
        f"{point.params:.1%}",
        metric.text(point.plain) if index else "",
        metric.text(point.accuracy),
        f"{metric.text(point.lower)} to {metric.text(point.upper)}" if index and point.lower is not None else "",
    )
