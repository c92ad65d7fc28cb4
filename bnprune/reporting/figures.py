"""Figures as data. `layout` turns them into shapes, `svg` and `png` draw those; `text` draws charts in a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

Mark = Literal["line", "dashes", "dot", "ring", "small", "box", "bar", "level"]
"""`bar`: error bars; each pair of points are the ends of one. `level`: a horizontal line."""
GREY, KEPT = -1, -2
"""Colours besides those of series, which are numbered from 0. Kept channels have the second, removed ones the first."""
SHADES = tuple(range(-10, -17, -1))
"""Colours of a scale, from the lightest to the darkest."""
Legend = tuple[Mark | None, str, int]
"""(mark, label, colour) of one entry; without a mark, a text."""


@dataclass(frozen=True)
class Axis:
    """One axis: its label, its range, and the format of its ticks."""

    label: str
    low: float
    high: float
    write: Callable[[float], str]
    root: bool = False
    """True if lengths are square roots of values, so that small counts beside large ones can be seen."""
    whole: bool = False
    """True if all values are whole numbers."""
    ticked: bool = True
    """False for an axis without ticks."""

    def ticks(self) -> list[float]:
        """Return round values within the axis."""
        if not self.ticked:
            return []
        if self.root:
            return self._root_ticks()
        step = _step((self.high - self.low) / 4.5)
        step = math.ceil(step) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [step * n for n in range(first, first + 12) if step * n <= self.high + step * 1e-9]

    def _root_ticks(self) -> list[float]:
        """Return round values, the largest first, leaving out those too close to the one before."""
        chosen: list[float] = []
        for value in reversed(_ROOT_TICKS):
            room = math.sqrt(chosen[-1]) - math.sqrt(value) if chosen else math.inf
            if value <= self.high and (room >= 0.09 * math.sqrt(self.high)):
                chosen.append(value)
        return chosen

    def place(self, value: float, start: float, end: float) -> float:
        """Return the coordinate of a value, if the axis goes from `start` to `end`."""
        low, high, value = map(math.sqrt, (0.0, self.high, value)) if self.root else (self.low, self.high, value)
        return start + (end - start) * (value - low) / ((high - low) or 1.0)


_ROOT_TICKS = (0, *(factor * 10**power for power in range(8) for factor in (1, 4)))


@dataclass(frozen=True)
class Series:
    """Points with one mark and one colour."""

    label: str
    points: tuple[tuple[float, float], ...]
    colour: int
    """Number of the colour, or GREY."""
    mark: Mark = "line"
    names: tuple[str, ...] = ()
    """A hint for each point, shown on the page; the label by default."""


def _step(rough: float) -> float:
    """Return the smallest of 1, 2, 2.5 and 5 times a power of ten that is not below `rough`."""
    if not rough > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))


@dataclass(frozen=True)
class Chart:
    """Lines and marks between two axes."""

    title: str
    series: tuple[Series, ...]
    x: Axis
    y: Axis
    legend: tuple[Legend, ...]


@dataclass(frozen=True)
class Histogram:
    """Number of channels per bin; kept channels are stacked on removed ones."""

    title: str
    edges: tuple[float, ...]
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    x: Axis
    y: Axis
    threshold: float | None = None
    """The largest |γ| of a removed channel."""
    colour = KEPT

    @property
    def legend(self) -> tuple[Legend, ...]:
        """Kept and removed, if any channel was removed."""
        return (("box", "kept", self.colour), ("box", "removed", GREY)) if any(self.removed) else ()


@dataclass(frozen=True)
class Widths:
    """Channels of every layer, before and after pruning."""

    title: str
    layers: tuple[tuple[str, int, int], ...]
    """(name, channels before, channels after), from input to output."""
    colour = KEPT
    legend: ClassVar[tuple[Legend, ...]] = (("box", "kept", colour), ("box", "removed", GREY))
    y: ClassVar[Axis] = Axis("layers, from input to output", 0.0, 1.0, str, ticked=False)

    @property
    def x(self) -> Axis:
        """Axis of channel counts, from 0 to the widest layer."""
        most = max((before for _, before, _ in self.layers), default=0)
        return Axis("channels", 0.0, max(most, 1), lambda value: f"{value:.0f}", whole=True)


@dataclass(frozen=True)
class Cell:
    """One value of a heat map."""

    text: str
    colour: int
    hint: str = ""


@dataclass(frozen=True)
class HeatMap:
    """A table whose cells are coloured by their values."""

    title: str
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    """(name, cells) of each row, from top to bottom; None for a cell without a value."""
    columns: tuple[str, ...]
    """Labels of the columns."""
    x: Axis
    y: Axis
    """Their labels only."""
    legend: tuple[Legend, ...]


Figure = Chart | Histogram | Widths | HeatMap
