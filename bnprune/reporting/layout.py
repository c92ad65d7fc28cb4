"""Charts laid out: from a figure to the lines, boxes, circles and texts that draw it.

Every renderer draws these shapes and nothing else: `svg` for the page and for .svg files, `png` for .png files. Their
coordinates are units of which a panel is `WIDTH` wide; y points downwards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bnprune.reporting.figures import GREY, Axis, Chart, Figure, HeatMap, Histogram, Legend, Series, Widths

WIDTH, HEIGHT = 400.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 12.0, 40.0
"""Margins around the plot."""
_ROW = 17.0
"""Height of a row of a heat map, and the largest one of a layer."""
_THINNEST, _TALLEST, _SMALLEST_ROW = 4.0, 560.0, 11.0
"""Smallest height of the row of a layer; height of all of them from which on they shrink; room that a name needs."""
_LOSS = 32.0
"""Room for the share that a layer has lost."""
_RADIUS = {"dot": 4.5, "ring": 7.5, "small": 2.5}


@dataclass(frozen=True)
class Line:
    """A line through points."""

    kind: Literal["grid", "axis", "line", "dashes", "bar", "threshold"]
    points: tuple[tuple[float, float], ...]
    colour: int = GREY
    hint: str = ""
    """Text that the page shows if the mouse points at the shape."""


@dataclass(frozen=True)
class Box:
    """A filled rectangle; (x, y) is its upper left corner."""

    x: float
    y: float
    width: float
    height: float
    colour: int
    hint: str = ""


@dataclass(frozen=True)
class Circle:
    """A filled circle, or a ring."""

    x: float
    y: float
    radius: float
    filled: bool
    colour: int
    hint: str = ""


@dataclass(frozen=True)
class Text:
    """One line of text; y is its baseline, or its middle for a tick."""

    kind: Literal["tick", "label", "note", "title"]
    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"] = "start"


Shape = Line | Box | Circle | Text


def plot(figure: Figure) -> list[Shape]:
    """Return the axes and what stands between them, without title and legend; see `height_of`."""
    match figure:
        case Chart():
            return [*_frame(figure.x, figure.y), *(s for one in figure.series for s in _series(one, figure))]
        case Histogram():
            return [*_frame(figure.x, figure.y), *_histogram(figure), *_threshold(figure)]
        case Widths():
            return _widths(figure)
        case HeatMap():
            return _heat_map(figure)


def height_of(figure: Figure) -> float:
    """Return the height of a plot, `WIDTH` wide: `HEIGHT`, or as much as the rows of a figure need."""
    match figure:
        case HeatMap():
            return _TOP + _ROW * len(figure.rows) + _BOTTOM
        case Widths():
            return _TOP + _bar_row(figure) * len(figure.layers) + _BOTTOM
    return HEIGHT


def _bottom() -> float:
    return HEIGHT - _BOTTOM


def _x(axis: Axis, value: float) -> float:
    return axis.place(value, _LEFT, WIDTH - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return axis.place(value, _bottom(), _TOP)


def _frame(x: Axis, y: Axis) -> list[Shape]:
    left, right, bottom = _LEFT, WIDTH - _RIGHT, _bottom()
    shapes: list[Shape] = []
    for tick in y.ticks():
        at = _y(y, tick)
        shapes += [Line("grid", ((left, at), (right, at))), Text("tick", left - 6, at, y.write(tick), "end")]
    shapes += [Text("tick", _x(x, tick), bottom + 12, x.write(tick), "middle") for tick in x.ticks()]
    shapes.append(Line("axis", ((left, bottom), (right, bottom))))
    return [*shapes, Text("label", (left + right) / 2, HEIGHT - 6, x.label, "middle")]


def _series(series: Series, chart: Chart) -> list[Shape]:
    points = tuple((_x(chart.x, x), _y(chart.y, y)) for x, y in series.points)
    if series.mark == "line" or series.mark == "dashes":
        return [Line(series.mark, points, series.colour, series.label)] if points else []
    if series.mark == "level":
        return [Line("dashes", points, series.colour, series.label)]
    if series.mark == "bar":
        return [Line("bar", ends, series.colour, series.label) for ends in zip(points[::2], points[1::2], strict=True)]
    hints = series.names or (series.label,) * len(points)
    radius, filled = _RADIUS[series.mark], series.mark != "ring"
    return [Circle(x, y, radius, filled, series.colour, hint) for (x, y), hint in zip(points, hints, strict=True)]


def _histogram(figure: Histogram) -> list[Shape]:
    """Stack the kept channels of each bin on the removed ones."""
    shapes: list[Shape] = []
    for (low, high), kept, removed in zip(itertools.pairwise(figure.edges), figure.kept, figure.removed, strict=True):
        left = _x(figure.x, low)
        width = max(_x(figure.x, high) - left - 1, 0.8)
        hint = f"|γ| {low:.3g} to {high:.3g}: {kept + removed} channels" + (f", {removed} removed" if removed else "")
        for base, top, colour in ((0, removed, GREY), (removed, removed + kept, figure.colour)):
            if top > base:
                y = _y(figure.y, top)
                shapes.append(Box(left, y, width, _y(figure.y, base) - y, colour, hint))
    return shapes


def _threshold(figure: Histogram) -> list[Shape]:
    if figure.threshold is None:
        return []
    at = _x(figure.x, figure.threshold)
    text = f"threshold {figure.threshold:.3g}"
    beside = Text("note", at - 6, _TOP + 9, text, "end") if at > WIDTH * 0.6 else Text("note", at + 14, _TOP + 9, text)
    return [Line("threshold", ((at, _TOP), (at, _bottom()))), beside]


def _bar_row(figure: Widths) -> float:
    """Return the height of a row: smaller for networks of many layers."""
    return min(_ROW, max(_THINNEST, _TALLEST / max(len(figure.layers), 1)))


def _widths(figure: Widths) -> list[Shape]:
    """Return two bars per layer: channels before pruning, and in front of them those after.

    The names are on the left, as many as there is room for, and the share that was lost is behind the bar.
    """
    left = _name_margin(name for name, _, _ in figure.layers)
    right, step, axis = WIDTH - _RIGHT - _LOSS, _bar_row(figure), figure.x
    every = math.ceil(_SMALLEST_ROW / step)
    bottom = _TOP + step * len(figure.layers)
    shapes: list[Shape] = []
    for tick in axis.ticks():
        x = axis.place(tick, left, right)
        shapes += [Line("grid", ((x, _TOP), (x, bottom))), Text("tick", x, bottom + 12, axis.write(tick), "middle")]
    for row, (name, before, after) in enumerate(figure.layers):
        y = _TOP + row * step
        if row % every == 0:
            shapes.append(Text("tick", left - 6, y + step / 2, _fitting(name, left - 14), "end"))
        for colour, count in ((GREY, before), (figure.colour, after)):
            width = axis.place(count, left, right) - left
            shapes.append(Box(left, y + 0.12 * step, width, 0.76 * step, colour, f"{name}: {before} → {after}"))
        if after < before and row % every == 0:
            end = axis.place(before, left, right)
            shapes.append(Text("tick", end + 5, y + step / 2, f"−{1 - after / before:.0%}"))
    shapes.append(Line("axis", ((left, _TOP), (left, bottom))))
    return [*shapes, Text("label", (left + right) / 2, bottom + _BOTTOM - 6, axis.label, "middle")]


def _name_margin(names: Iterable[str]) -> float:
    """Return the left margin for names of rows: at most half of the panel."""
    return min(_CHARACTER * max(map(len, names), default=0) + 14, 0.5 * WIDTH)


def _heat_map(figure: HeatMap) -> list[Shape]:
    """Return a box with its text per cell, the names of the rows on the left, those of the columns below."""
    left = _name_margin(name for name, _ in figure.rows)
    step = (WIDTH - _RIGHT - left) / max(len(figure.columns), 1)
    middles = [left + (column + 0.5) * step for column in range(len(figure.columns))]
    shapes: list[Shape] = []
    for row, (name, cells) in enumerate(figure.rows):
        y = _TOP + row * _ROW
        shapes.append(Text("tick", left - 6, y + _ROW / 2, _fitting(name, left - 14), "end"))
        for cell, x in zip(cells, middles, strict=True):
            if cell is not None:
                shapes.append(Box(x - step / 2 + 0.5, y + 0.5, step - 1, _ROW - 1, cell.colour, cell.hint))
                if _CHARACTER * len(cell.text) < step:
                    shapes.append(Text("note", x, y + _ROW / 2 + 3.7, cell.text, "middle"))
    bottom = _TOP + _ROW * len(figure.rows)
    every = 1 + int(_CHARACTER * max(map(len, figure.columns), default=0) / step)
    shapes += [
        Text("tick", x, bottom + 12, label, "middle")
        for x, label in [*zip(middles, figure.columns, strict=True)][::every]
    ]
    shapes.append(Line("axis", ((left, bottom), (WIDTH - _RIGHT, bottom))))
    return [*shapes, Text("label", (left + WIDTH - _RIGHT) / 2, bottom + _BOTTOM - 6, figure.x.label, "middle")]


def _fitting(name: str, width: float) -> str:
    """Return a name, or its end if it is too long: layers of a network differ in the ends of their names."""
    most = max(int(width / _CHARACTER), 4)
    return name if len(name) <= most else f"...{name[3 - most :]}"


# -- panels with title and legend, for files --------------------------------------------------------------------------

_LINE_HEIGHT, _CHARACTER, _ICON = 16.0, 5.4, 19.0
"""Of a row of the legend, of a letter of it (as wide as most fonts have them), of the mark before it."""
_TITLE_HEIGHT = 22.0
GAP = 16.0
"""Between panels."""


def panel_height(figures: Sequence[Figure]) -> float:
    """Return the height of panels side by side: that of the plot, a title, and the longest legend."""
    return max(map(height_of, figures)) + max(map(_header_height, figures))


def _header_height(figure: Figure) -> float:
    return _TITLE_HEIGHT + _LINE_HEIGHT * len(_legend_rows(figure))


def panels(figures: Sequence[Figure]) -> list[Shape]:
    """Return figures side by side, each with its title and its legend."""
    height = panel_height(figures)
    shapes: list[Shape] = []
    for number, figure in enumerate(figures):
        right = number * (WIDTH + GAP)
        shapes += [moved(shape, right, 0) for shape in _header(figure)]
        shapes += [moved(shape, right, height - height_of(figure)) for shape in plot(figure)]
    return shapes


def _header(figure: Figure) -> list[Shape]:
    shapes: list[Shape] = [Text("title", 8, 15, figure.title)]
    for number, row in enumerate(_legend_rows(figure)):
        x, y = 8.0, _TITLE_HEIGHT + _LINE_HEIGHT * (number + 0.6)
        for mark, label, colour in row:
            if mark is not None:
                shapes.append(_icon(mark, x, y, colour))
                x += _ICON
            shapes.append(Text("label", x, y + 4, label))
            x += _CHARACTER * len(label) + 12
    return shapes


def _legend_rows(figure: Figure) -> list[list[Legend]]:
    """Break the label of the y axis and the legend into rows that are not wider than a panel."""
    rows: list[list[Legend]] = [[]]
    used = 0.0
    named = [] if figure.y.label == figure.title else [(None, figure.y.label, GREY)]
    for entry in (*named, *figure.legend):
        width = (_ICON if entry[0] else 0) + _CHARACTER * len(entry[1]) + 12
        if rows[-1] and used + width > WIDTH:
            rows.append([])
            used = 0.0
        rows[-1].append(entry)
        used += width
    return rows


def _icon(mark: str, x: float, y: float, colour: int) -> Shape:
    if mark == "line" or mark == "dashes":
        return Line("line" if mark == "line" else "dashes", ((x, y), (x + 14, y)), colour)
    if mark == "bar" or mark == "level":
        return Line("bar", ((x + 7, y - 6), (x + 7, y + 6)), colour) if mark == "bar" else _icon("dashes", x, y, colour)
    if mark == "box":
        return Box(x + 3, y - 4.5, 9, 9, colour)
    return Circle(x + 7, y, min(_RADIUS[mark], 5.0), mark != "ring", colour)


def moved(shape: Shape, right: float, down: float) -> Shape:
    """Return a shape somewhere else."""
    if isinstance(shape, Line):
        return replace(shape, points=tuple((x + right, y + down) for x, y in shape.points))
    return replace(shape, x=shape.x + right, y=shape.y + down)
