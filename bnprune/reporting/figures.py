"""Figures as data: what a chart shows. Drawn as inline SVG by `svg`, as pictures by `plots`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Mark = Literal["line", "dashes", "dot", "ring", "small"]


@dataclass(frozen=True)
class Axis:
    """One axis: what it shows, and how its ticks are written."""

    label: str
    low: float
    high: float
    write: Callable[[float], str]
    root: bool = False
    """Whether lengths stand for square roots, so that small counts beside large ones can be seen."""
    whole: bool = False
    """Whether only whole numbers make sense."""

    def ticks(self) -> list[float]:
        """Return round values within the axis."""
        if self.root:
            return self._root_ticks()
        step = _step((self.high - self.low) / 4.5)
        step = math.ceil(step) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [step * n for n in range(first, first + 12) if step * n <= self.high + step * 1e-9]

    def _root_ticks(self) -> list[float]:
        """Return round values from the top downwards, as far as there is room for them."""
        chosen: list[float] = []
        for value in reversed(_ROOT_TICKS):
            room = math.sqrt(chosen[-1]) - math.sqrt(value) if chosen else math.inf
            if value <= self.high and (room >= 0.09 * math.sqrt(self.high)):
                chosen.append(value)
        return chosen

    def place(self, value: float, start: float, end: float) -> float:
        """Return where a value is between two coordinates."""
        low, high, value = map(math.sqrt, (0.0, self.high, value)) if self.root else (self.low, self.high, value)
        return start + (end - start) * (value - low) / ((high - low) or 1.0)


_ROOT_TICKS = (0, *(factor * 10**power for power in range(8) for factor in (1, 4)))


@dataclass(frozen=True)
class Series:
    """Points that belong together."""

    label: str
    points: tuple[tuple[float, float], ...]
    colour: int
    """Index of the colour; -1 for grey."""
    mark: Mark = "line"
    names: tuple[str, ...] = ()
    """What to say of each point when it is pointed at."""


def _step(rough: float) -> float:
    """Return the nearest of 1, 2, 2.5 and 5 times a power of ten that is not smaller."""
    if not rough > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))


@dataclass(frozen=True)
class Chart:
    """Series of lines and marks over two axes."""

    title: str
    series: tuple[Series, ...]
    x: Axis
    y: Axis
    legend: tuple[tuple[Mark, str, int], ...]
    """(mark, label, colour) of each entry."""


@dataclass(frozen=True)
class Histogram:
    """Counts between edges; those of removed channels stand below those of kept ones."""

    title: str
    edges: tuple[float, ...]
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    x: Axis
    y: Axis
    threshold: float | None = None


@dataclass(frozen=True)
class Widths:
    """Channels of every layer before and after: (name, before, after)."""

    title: str
    layers: tuple[tuple[str, int, int], ...]


Figure = Chart | Histogram | Widths
