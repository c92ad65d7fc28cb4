"""Accuracy against MACs, as text and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnprune.errors import DataError
from bnprune.recovery.sweep import Point
from bnprune.runs.files import write_atomically

_WIDTH, _HEIGHT = 60, 12


def draw(points: Sequence[Point], best: Point | None) -> str:
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


def save_plot(path: Path, points: Sequence[Point], best: Point | None) -> None:
    """Draw the same into a picture.

    Raises:
        DataError: The file cannot be written.
    """
    from matplotlib.figure import Figure

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
