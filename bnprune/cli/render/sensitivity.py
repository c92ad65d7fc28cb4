"""The result of `sensitivity`."""

from __future__ import annotations

from pathlib import Path

from bnprune.cli.render.console import print_text, stdout
from bnprune.cli.render.notes import show_notes
from bnprune.cli.render.tables import show_rows
from bnprune.config.metrics import Metric, metric_of
from bnprune.errors import about
from bnprune.reporting.charts import sensitivity_map
from bnprune.reporting.number_format import plural
from bnprune.reporting.pictures import save_picture
from bnprune.workflows.results import GroupCuts, SensitivityResult


def show_sensitivity(result: SensitivityResult) -> None:
    """Print the accuracy of each cut, and the file."""
    console = stdout()
    columns = ["layers", "channels", *(f"{share:.0%}" for share in result.shares)]
    metric = metric_of(result.metric)
    show_rows(columns, [_row(group, result.shares, metric) for group in result.groups])
    print_text(
        console,
        f"{metric.title} of {plural(result.images, 'validation image')} after recovery, by share of the channels "
        f"removed; {metric.text(result.accuracy)} before the cuts",
    )
    show_notes(console, result.notes)
    print_text(console, f"wrote {result.out}")


def _row(group: GroupCuts, shares: list[float], metric: Metric) -> tuple[str, ...]:
    name, measured = _measured(group)
    return name, str(group.channels), *(metric.text(measured.get(share), 1) for share in shares)


def _measured(group: GroupCuts) -> tuple[str, dict[float, float]]:
    """Return the name of a group, its first layer and the number of the others, and its accuracies by share."""
    further = len(group.layers) - 1
    name = f"{group.layers[0]} + {further} more" if further > 1 else group.layers[0]
    return name, {point.share: point.accuracy for point in group.points}


def save_plot(path: Path | None, result: SensitivityResult) -> None:
    """Draw the table into a file; do nothing for None.

    Raises:
        DataError: The file cannot be written.
    """
    if path is None:
        return
    with about("plot"):
        groups = [*map(_measured, result.groups)]
        save_picture(path, [sensitivity_map(groups, result.shares, result.accuracy, metric_of(result.metric))])
