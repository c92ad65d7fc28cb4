"""Report: the HTML page about runs, and their figures as images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bnprune.errors import about
from bnprune.reporting.page import render
from bnprune.reporting.pictures import require_free_pictures, require_matplotlib, save_pictures
from bnprune.reporting.run_data import RunData, read_run_data
from bnprune.runs.directory import RunDirectory
from bnprune.runs.files import require_replaceable, write_text
from bnprune.runs.outputs import require_output
from bnprune.workflows.results import ReportResult


def report(
    runs: Sequence[str | Path] | str | Path,
    *,
    out: str | Path | None = None,
    plots: str | Path | None = None,
    force: bool = False,
) -> ReportResult:
    """Write an HTML page about a run, or about several side by side.

    Args:
        runs: Run directories.
        out: The page; default: `report.html` in the run, or in the current folder for several runs.
        plots: Folder for every figure as PNG and SVG (needs matplotlib).
        force: Overwrite existing files.

    Raises:
        ConfigError: A path is not a run directory, or a file exists.
        CheckpointError: A file of a run is damaged.
        DataError: A file cannot be written.
    """
    paths = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    folder = None if plots is None else Path(plots)
    if folder is not None:
        with about("plots"):
            require_matplotlib()
    found = _distinct([read_run_data(path) for path in dict.fromkeys(paths)])
    target = _target(found, paths, out, force=force)
    if folder is not None:
        with about("plots"):
            require_free_pictures(found, folder, force=force)
    write_text(target, render(found))
    with about("plots"):
        drawn = [] if folder is None else save_pictures(found, folder)
    stages = {run.name: RunDirectory(run.path).result().stages for run in found}
    return ReportResult(out=target, plots=[Path(path) for path in drawn], runs=stages)


def _target(found: Sequence[RunData], paths: Sequence[Path], out: str | Path | None, *, force: bool) -> Path:
    """Return the path of the page; by default, the page of a single run is in its directory, and may be replaced."""
    if out is None and len(found) == 1:
        target = RunDirectory(found[0].path).report_file
        require_replaceable(target)
        return target
    target = Path("report.html" if out is None else out)
    require_output(target, force=force, sources=paths)
    return target


def _distinct(found: list[RunData]) -> list[RunData]:
    """Return the runs, named by their paths if several folders have the same name."""
    times = Counter(run.name for run in found)
    return [replace(run, name=str(run.path)) if times[run.name] > 1 else run for run in found]


def report_of_run(path: Path) -> str:
    """Write the page of a run that has ended; return a line about it. A failure here must not fail the run."""
    try:
        target = RunDirectory(path).report_file
        write_text(target, render([read_run_data(path)]))
    except Exception as error:  # noqa: BLE001 - the run has ended well, and its results are saved
        return f"note: no report was written: {error}"
    return f"The report is {target}"
