"""What `report` does, and the page that ends a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bnprune.cli.display import print_json
from bnprune.cli.verbosity import say
from bnprune.reporting.page import render
from bnprune.reporting.plots import require_free_plots, require_matplotlib, save_plots
from bnprune.reporting.run_data import RunData, read_run_data
from bnprune.runs.directory import RunDirectory
from bnprune.runs.files import require_replaceable, write_text
from bnprune.runs.outputs import require_output

SCHEMA = "bnprune.report/1"


def run_report(paths: Sequence[Path], *, out: Path | None, plots: Path | None, force: bool, as_json: bool) -> None:
    """Write the page about runs, and pictures."""
    if plots is not None:
        require_matplotlib()
    stories = _distinct([read_run_data(path) for path in dict.fromkeys(paths)])
    own = out is None and len(stories) == 1
    target = RunDirectory(stories[0].path).report_file if own else out or Path("report.html")
    if own:
        require_replaceable(target)  # a run's own page is made anew
    else:
        require_output(target, force=force, sources=paths)
    if plots is not None:
        require_free_plots(stories, plots, force=force)
    write_text(target, render(stories))
    drawn = [] if plots is None else save_plots(stories, plots)
    if as_json:
        runs = {run_data.name: RunDirectory(run_data.path).result().get("stages", {}) for run_data in stories}
        print_json({"schema": SCHEMA, "out": target, "plots": drawn, "runs": runs})
        return
    say(f"Wrote {target}. Open it in a browser.")
    if drawn:
        say(f"Wrote {len(drawn)} pictures into {plots}.")


def _distinct(stories: list[RunData]) -> list[RunData]:
    """Call runs by their paths where the names of their folders are not enough."""
    times = Counter(run_data.name for run_data in stories)
    return [
        replace(run_data, name=str(run_data.path)) if times[run_data.name] > 1 else run_data for run_data in stories
    ]


def report_of_run(path: Path) -> str:
    """Write the page of a run that has ended; return a line about it. What fails here must not fail the run."""
    try:
        target = RunDirectory(path).report_file
        write_text(target, render([read_run_data(path)]))
    except Exception as error:  # noqa: BLE001 - the run has ended well, and its results are saved
        return f"note: no report was written: {error}"
    return f"The report is {target}"
