"""Charts as lines of text, for a terminal."""

from __future__ import annotations

import textwrap

from bnprune.reporting.figures import Chart, Series

_WIDTH, _HEIGHT = 60, 12
_MARGIN = 8
"""Columns for the ticks of the y axis."""
_MARKS = {"dot": "●", "small": "·", "ring": "◆", "bar": "│", "level": "┄"}
"""Lines are left out."""
_BELOW = "↓"
"""A point below the range of the y axis."""


def draw(chart: Chart) -> str:
    """Return a chart as text, 70 columns wide. If marks meet, that of the later series is shown."""
    grid = [[" "] * (_WIDTH + 1) for _ in range(_HEIGHT + 1)]
    for series in chart.series:
        _add(series, chart, grid)
    ticks = {round(chart.y.place(tick, _HEIGHT, 0)): chart.y.write(tick) for tick in chart.y.ticks()}
    rows = [f"{ticks.get(n, ''):>{_MARGIN - 1}} ┤{''.join(cells)}".rstrip() for n, cells in enumerate(grid)]
    legend = [f"{_MARKS[mark]} {label}" for mark, label, _ in chart.legend if mark in _MARKS]
    below = [f"{_BELOW} below {chart.y.write(chart.y.low)}"] if _BELOW in grid[-1] else []
    axis, space = f"{' ' * _MARGIN}└{'─' * (_WIDTH + 1)}", " " * (_MARGIN + 1)
    lines = textwrap.wrap(f"{chart.x.label};  {'  '.join([*legend, *below])}", _WIDTH + 1)
    return "\n".join([*rows, axis, f"{space}{_x_ticks(chart)}", *(space + line for line in lines)])


def _add(series: Series, chart: Chart, grid: list[list[str]]) -> None:
    """Draw a series into the grid."""
    mark = _MARKS.get(series.mark, "")
    cells = [_cell(chart, point) for point in series.points] if mark else []
    if series.mark == "level":
        (row, left), (_, right) = cells
        cells = [(row, column) for column in range(left, min(right, _WIDTH) + 1, 2)]
    if series.mark == "bar":
        pairs = zip(cells[::2], cells[1::2], strict=True)
        cells = [(row, column) for (low, column), (high, _) in pairs for row in range(high, min(low, _HEIGHT) + 1)]
    for row, column in cells:
        if row > _HEIGHT:
            grid[_HEIGHT][column] = _BELOW
        elif row >= 0:
            grid[row][column] = mark


def _cell(chart: Chart, point: tuple[float, float]) -> tuple[int, int]:
    return round(chart.y.place(point[1], _HEIGHT, 0)), round(chart.x.place(point[0], 0, _WIDTH))


def _x_ticks(chart: Chart) -> str:
    line = ""
    for tick in chart.x.ticks():
        line = line.ljust(round(chart.x.place(tick, 0, _WIDTH))) + chart.x.write(tick)
    return line
