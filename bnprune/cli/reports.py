"""What `report` does, and the page that ends a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bnprune.cli.display import print_json
from bnprune.cli.error_messages import naming_options
from bnprune.cli.verbosity import say
from bnprune.reporting.page import render
from bnprune.reporting.pictures import require_free_pictures, require_matplotlib, save_pictures
from bnprune.reporting.run_data import RunData, read_run_data
from bnprune.runs.directory import RunDirectory
from bnprune.runs.files import require_replaceable, write_text
from bnprune.runs.outputs import require_output

SCHEMA = "bnprune.report/1"


def run_report(paths: Sequence[Path], *, out: Path | None, plots: Path | None, force: bool, as_json: bool) -> None:
    """Write the page about runs, and pictures."""
    if plots is not None:
        with naming_options("plots"):
            require_matplotlib()
    runs_data = _distinct([read_run_data(path) for path in dict.fromkeys(paths)])
    own = out is None and len(runs_data) == 1
    target = RunDirectory(runs_data[0].path).report_file if own else out or Path("report.html")
    if own:
        require_replaceable(target)  # a run's own page is made anew
    else:
        require_output(target, force=force, sources=paths)
    if plots is not None:
        with naming_options("plots"):
            require_free_pictures(runs_data, plots, force=force)
    write_text(target, render(runs_data))
    with naming_options("plots"):
        drawn = [] if plots is None else save_pictures(runs_data, plots)
    if as_json:
        runs = {run_data.name: RunDirectory(run_data.path).result().get("stages", {}) for run_data in runs_data}
        print_json({"schema": SCHEMA, "out": target, "plots": drawn, "runs": runs})
        return
    say(f"Wrote {target}. Open it in a browser.")
    if drawn:
        say(f"Wrote {len(drawn)} pictures into {plots}.")


def _distinct(runs_data: list[RunData]) -> list[RunData]:
    """Call runs by their paths where the names of their folders are not enough."""
    times = Counter(run_data.name for run_data in runs_data)
    return [
        replace(run_data, name=str(run_data.path)) if times[run_data.name] > 1 else run_data for run_data in runs_data
    ]


def report_of_run(path: Path) -> str:
    """Write the page of a run that has ended; return a line about it. What fails here must not fail the run."""
    try:
        target = RunDirectory(path).report_file
        write_text(target, render([read_run_data(path)]))
    except Exception as error:  # noqa: BLE001 - the run has ended well, and its results are saved
        return f"note: no report was written: {error}"
    return f"The report is {target}"
