"""Accuracy over MACs: as text, and as an image file."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

from bnprune.errors import ConfigError, DataError
from bnprune.runs.files import write_atomically
from bnprune.runs.outputs import require_output
from bnprune.workflows.results import SweepPoint, SweepResult

_WIDTH, _HEIGHT = 60, 12


def draw(points: Sequence[SweepPoint], best: SweepPoint | None) -> str:
    """Draw validation accuracy over the share of MACs left, as lines of text."""
    low = min(min(point.plain, point.accuracy) for point in points)
    high = max(point.accuracy for point in points)
    span = max(high - low, 1e-9)
    grid = [[" "] * (_WIDTH + 1) for _ in range(_HEIGHT + 1)]

    def put(macs: float, accuracy: float, mark: str) -> None:
        grid[round((high - accuracy) / span * _HEIGHT)][round(min(macs, 1.0) * _WIDTH)] = mark

    for point in points[1:]:
        put(point.macs, point.plain, "·")
    for point in points:
        put(point.macs, point.accuracy, "●")
    if best is not None:
        put(best.macs, best.accuracy, "◆")
    rows = [f"{high - span * row / _HEIGHT:7.1%} ┤{''.join(cells).rstrip()}" for row, cells in enumerate(grid)]
    axis = " " * 8 + "└" + "─" * (_WIDTH + 1)
    ticks = " " * 9 + "".join(f"{tick:<15}" for tick in ("0%", "25%", "50%", "75%")) + "100%"
    legend = " " * 9 + "MACs left;  ● recovered  · plain cut" + ("  ◆ recommended" if best is not None else "")
    return "\n".join([*rows, axis, ticks, legend])


def require_plot(path: Path | None, *, sources: Iterable[Path | None], recipe: Path | None) -> None:
    """Refuse a file that `save_plot` could not write.

    Raises:
        ConfigError: The name ends in something else than .png or .svg, matplotlib is missing, or the file is needed.
    """
    if path is None:
        return
    if path.suffix not in (".png", ".svg"):
        raise ConfigError(f"--plot: '{path}' must end in .png or .svg.")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'bnprune[report]'")
    require_output(path, force=True, sources=sources, recipe=recipe, option="plot")


def save_plot(path: Path | None, result: SweepResult) -> None:
    """Draw the same into an image file; nothing for None.

    Raises:
        DataError: The file cannot be written.
    """
    if path is None:
        return
    from matplotlib.figure import Figure

    points, best = result.points, result.recommended

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    share = [100 * point.macs for point in points]
    axes.plot(share, [100 * point.accuracy for point in points], "o-", label="compensated and recalibrated")
    axes.plot(share, [100 * point.plain for point in points], "o:", color="gray", label="plain cut")
    if best is not None:
        axes.plot(100 * best.macs, 100 * best.accuracy, "D", markersize=11, fillstyle="none", label="recommended")
    axes.set(xlabel="MACs left (%)", ylabel="validation accuracy (%)", xlim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=160, format=path.suffix[1:]))
    except DataError as error:
        raise DataError(f"--plot: {error}") from error
