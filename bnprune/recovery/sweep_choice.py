"""The choice among the cuts of a sweep: the recommended one, and the last one before accuracy falls steeply."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from bnprune.config.metrics import metric_of
from bnprune.recovery.paired import CONFIDENCE, samples_needed
from bnprune.recovery.sweep import Point, Sweep

_ROUNDING = 1e-9
"""Differences of accuracy that are rounding errors."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The cuts of a sweep that are singled out."""

    recommended: Point | None
    """The largest cut that is shown to be within the tolerance; None if there is none."""
    measured: Point | None
    """The largest cut whose measured loss is within the tolerance, as far as no cut is shown to lose more."""
    knee: Point | None
    """The last cut before accuracy falls steeply; None if there is no such cut."""

    @property
    def best(self) -> Point | None:
        """The cut to make: the recommended one, or, if none is shown to be within the tolerance, the measured one."""
        return self.recommended or self.measured


def choose(points: Sequence[Point], tolerance: float) -> Choice:
    """Choose among the cuts of a sweep.

    `recommended`: cuts are tested in order of their size, each with 95% confidence, until the first that is not shown
    to lose at most `tolerance`; the cut before it is recommended. A wrong recommendation needs a wrong outcome of the
    first test of a cut that loses more, so its probability is at most 5%, however many cuts there are (a fixed sequence
    of tests: Maurer, Hothorn and Lehmacher 1995).

    `measured`: the measured loss decides instead of its bound, so that a single image cannot end the search: only a cut
    that is shown to lose more than `tolerance` ends it.

    `knee`: see `find_knee`.
    """
    least = points[0].accuracy - tolerance - math.ulp(1.0)
    shown = list(itertools.takewhile(lambda point: _low(point) >= least, points[1:]))
    possible = itertools.takewhile(lambda point: _high(point) >= least, points[1:])
    measured = [point for point in possible if point.accuracy >= least]
    return Choice(shown[-1] if shown else None, measured[-1] if measured else None, find_knee(points))


def find_knee(points: Sequence[Point]) -> Point | None:
    """Return the cut that is furthest above the straight line between the ends of the curve.

    The curve is accuracy over the share of MACs that is removed, from the network before pruning to the first cut that
    loses half of the accuracy, or else to the last cut. This is the knee of Satopää et al. (2011), "Finding a 'Kneedle'
    in a Haystack". There is none if no cut is significantly worse than the network before pruning, or if every cut is
    on the line or below it. Of several such cuts, the largest is returned.
    """
    start = points[0]
    half = start.accuracy - abs(start.accuracy) / 2
    ends = [number for number, point in enumerate(points) if point.accuracy <= half]
    curve = points[: ends[0] + 1] if ends else points
    removed = start.macs - curve[-1].macs
    if all(_high(point) >= start.accuracy for point in curve[1:]) or removed <= 0:
        return None
    slope = (start.accuracy - curve[-1].accuracy) / removed
    heights = [point.accuracy - start.accuracy + slope * (start.macs - point.macs) for point in curve]
    highest = max(heights)
    if highest <= _ROUNDING:
        return None
    return next(p for p, height in zip(curve[::-1], heights[::-1], strict=True) if height >= highest - _ROUNDING)


def _low(point: Point) -> float:
    return -math.inf if point.lower is None else point.lower


def _high(point: Point) -> float:
    return point.accuracy if point.upper is None else point.upper


def why_not_larger(swept: Sweep, tolerance: float, choice: Choice) -> str:
    """Return why no larger cut is recommended, as a sentence."""
    needed = samples_needed(tolerance, (1 - CONFIDENCE) / swept.candidates)
    allowed = metric_of(swept.metric).text(tolerance, 1)
    loss = f"a loss of at most {allowed} cannot be shown with {CONFIDENCE:.0%} confidence"
    if needed is None or swept.points[0].lower is None:
        return f"{loss}."
    if swept.answers and swept.images < needed:
        return f"{loss} on {swept.images} images: even for equal answers, {needed} are needed."
    if choice.recommended is None:
        return f"{loss} on {swept.images} images, not even for the smallest cut."
    return f"{loss} on {swept.images} images, except up to {choice.recommended.asked:g}."
