"""The result of `report`."""

from __future__ import annotations

from bnprune.cli.verbosity import echo
from bnprune.workflows.results import ReportResult


def show_report(result: ReportResult, folder: object) -> None:
    """Print the paths of the page and of the images."""
    echo(f"Wrote {result.out}. Open it in a browser.")
    if result.plots:
        echo(f"Wrote {len(result.plots)} images into {folder}.")
