"""The result of `report`."""

from __future__ import annotations

from bnprune.cli.verbosity import say
from bnprune.workflows.results import ReportResult


def show_report(result: ReportResult, folder: object) -> None:
    """Print where the page and the image files are."""
    say(f"Wrote {result.out}. Open it in a browser.")
    if result.plots:
        say(f"Wrote {len(result.plots)} pictures into {folder}.")
