"""What `sweep` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from bnprune.cli.display import print_json, show_rows, stdout, tell
from bnprune.cli.error_messages import naming_options
from bnprune.cli.evaluation import Subject, open_with_data
from bnprune.config.schema import PruneConfig
from bnprune.errors import ConfigError, PruningError, quoted
from bnprune.recovery.sweep import Point, recommend, sweep
from bnprune.reporting.charts import sweep_chart
from bnprune.reporting.pictures import require_picture, save_picture
from bnprune.reporting.text import draw
from bnprune.runs.outputs import require_output
from bnprune.runs.passes import request_of
from bnprune.training.evaluate import validation_score

SCHEMA = "bnprune.sweep/1"


def run_sweep(
    subject: Subject,
    *,
    by: Literal["ratio", "macs"],
    at: str | None,
    tolerance: float | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Sweep the network the command line names."""
    values = _values(at)
    if plot is not None:
        with naming_options("plot"):
            require_picture(plot)
        sources = (subject.path, subject.weights)
        require_output(plot, force=True, sources=sources, recipe=subject.recipe, option="--plot")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ConfigError(f"--tolerance: must be at least 0 and below 1 (got {tolerance}). 0.01 is one point.")
    opened = open_with_data(replace(subject, path=_sparse(subject.path)))
    config = opened.config.prune or PruneConfig()
    allowed = config.tolerance if tolerance is None else tolerance
    points = sweep(
        opened.source.model,
        opened.splits,
        opened.device,
        request_of(config),
        config,
        opened.config.data.batch_size,
        score=validation_score(opened.splits, opened.device),
        by=by,
        values=values,
    )
    best, reason = None, ""
    try:
        best = recommend(points, allowed)
    except PruningError as error:
        reason = str(error)
    if as_json:
        print_json(
            {
                "schema": SCHEMA,
                "by": by,
                "tolerance": allowed,
                "points": [asdict(point) for point in points],
                "recommended": None if best is None else asdict(best),
                "reason": reason,
            }
        )
    else:
        _show(points, best, reason, by, allowed)
    if plot is not None:  # after the figures: a disk that is full must not cost them
        with naming_options("plot"):
            save_picture(plot, [sweep_chart(points, best)])


def _sparse(path: Path | None) -> Path | None:
    """Take the sparse-trained network of a run: what came after has been cut already."""
    trained = None if path is None else path / "checkpoints" / "train.safetensors"
    return trained if trained is not None and trained.exists() else path


def _values(text: str | None) -> list[float]:
    try:
        values = [float(part) for part in (text or "").split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--at: expected numbers such as 0.5,0.7,0.9 (got {quoted(text)}).") from error
    if len(values) > 1000:
        raise ConfigError(f"--at: expected at most 1000 values (got {len(values)}).")
    for value in values:
        if not 0 < value < 1:
            raise ConfigError(f"--at: must be between 0 and 1, both excluded (got {value:g}).")
    return values


def _show(points: Sequence[Point], best: Point | None, reason: str, by: str, tolerance: float) -> None:
    rows = [
        (
            ("as it is" if index == 0 else f"{by} {point.asked:g}") + (" <" if point is best else ""),
            f"{point.ratio:.1%}",
            f"{point.macs:.1%}",
            f"{point.params:.1%}",
            "" if index == 0 else f"{point.plain:.2%}",
            f"{point.accuracy:.2%}",
        )
        for index, point in enumerate(points)
    ]
    show_rows(["", "channels gone", "MACs left", "parameters left", "plain cut", "recovered"], rows)
    console = stdout()
    tell(console, "\n" + draw(sweep_chart(points, best)))
    if best is None:
        tell(console, f"\n{reason}")
        return
    tell(
        console,
        f"\nrecommended: {by} {best.asked:g}: {best.macs:.1%} of the MACs left, validation accuracy "
        f"{best.accuracy:.2%} ({points[0].accuracy:.2%} as it is; {tolerance:.1%} may be lost)",
    )
