"""Charts as lines of text, for a terminal."""

from __future__ import annotations

from bnprune.reporting.figures import Chart

_WIDTH, _HEIGHT = 60, 12
_MARGIN = 8
"""Columns for the ticks of the y axis."""
_MARKS = {"dot": "●", "small": "·", "ring": "◆"}
"""Lines are left out."""


def draw(chart: Chart) -> str:
    """Return a chart as text, 70 columns wide. Where marks meet, that of the later series is shown."""
    grid = [[" "] * (_WIDTH + 1) for _ in range(_HEIGHT + 1)]
    for series in chart.series:
        for x, y in series.points if series.mark in _MARKS else ():
            row, column = round(chart.y.place(y, _HEIGHT, 0)), round(chart.x.place(x, 0, _WIDTH))
            grid[row][column] = _MARKS[series.mark]
    ticks = {round(chart.y.place(tick, _HEIGHT, 0)): chart.y.write(tick) for tick in chart.y.ticks()}
    rows = [f"{ticks.get(n, ''):>{_MARGIN - 1}} ┤{''.join(cells)}".rstrip() for n, cells in enumerate(grid)]
    legend = "  ".join(f"{_MARKS[mark]} {label}" for mark, label, _ in chart.legend if mark in _MARKS)
    axis, space = f"{' ' * _MARGIN}└{'─' * (_WIDTH + 1)}", " " * (_MARGIN + 1)
    return "\n".join([*rows, axis, f"{space}{_x_ticks(chart)}", f"{space}{chart.x.label};  {legend}"])


def _x_ticks(chart: Chart) -> str:
    line = ""
    for tick in chart.x.ticks():
        line = line.ljust(round(chart.x.place(tick, 0, _WIDTH))) + chart.x.write(tick)
    return line
