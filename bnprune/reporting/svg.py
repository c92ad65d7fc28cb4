"""Figures as inline SVG: pure functions from data to text. Colours and fonts are the page's (style.css)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape

from bnprune.reporting.figures import Axis, Chart, Figure, Histogram, Mark, Series, Widths

_WIDTH, _HEIGHT = 400.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 12.0, 40.0
_COLOURS = 6
"""How many colours of series the style sheet has."""
_RADIUS = {"dot": 4.5, "ring": 7.5, "small": 2.5}


def draw(figure: Figure) -> str:
    """Return a figure with its legend as markup."""
    match figure:
        case Chart():
            drawn = "".join(_series(one, figure.x, figure.y) for one in figure.series)
            return _legend(figure.legend) + _frame(figure.x, figure.y, drawn, figure.title)
        case Histogram():
            return _frame(figure.x, figure.y, _bars(figure) + _threshold(figure), figure.title)
        case Widths():
            return _silhouette(figure)


def _x(axis: Axis, value: float) -> float:
    return axis.place(value, _LEFT, _WIDTH - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return axis.place(value, _HEIGHT - _BOTTOM, _TOP)


def _frame(x: Axis, y: Axis, drawn: str, title: str) -> str:
    """Put axes around what is drawn."""
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    grid = "".join(
        f'<line class="grid" x1="{_LEFT:g}" x2="{right:g}" y1="{_y(y, tick):.1f}" y2="{_y(y, tick):.1f}"/>'
        f'<text x="{_LEFT - 6:g}" y="{_y(y, tick):.1f}" dy=".35em" text-anchor="end">{escape(y.write(tick))}</text>'
        for tick in y.ticks()
    )
    below = "".join(
        f'<text x="{_x(x, tick):.1f}" y="{bottom + 15:g}" text-anchor="middle">{escape(x.write(tick))}</text>'
        for tick in x.ticks()
    )
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(title)}">'
        f'{grid}{below}<line class="axis" x1="{_LEFT:g}" x2="{right:g}" y1="{bottom:g}" y2="{bottom:g}"/>'
        f'<text class="label" x="{(_LEFT + right) / 2:g}" y="{_HEIGHT - 6:g}" text-anchor="middle">{escape(x.label)}'
        f"</text>{drawn}</svg>"
    )


def _series(series: Series, x: Axis, y: Axis) -> str:
    places = [(_x(x, a), _y(y, b)) for a, b in series.points]
    if series.mark in ("line", "dashes"):
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        kind = f"{series.mark} {_colour(series.colour)}"
        return f'<polyline class="{kind}" points="{points}"><title>{escape(series.label)}</title></polyline>'
    kind = f"{'ring' if series.mark == 'ring' else 'dot'} {_colour(series.colour)}"
    return "".join(
        f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="{_RADIUS[series.mark]:g}"><title>{escape(name)}</title>'
        "</circle>"
        for (a, b), name in zip(places, series.names or (series.label,) * len(places), strict=True)
    )


def _colour(number: int) -> str:
    return "grey" if number < 0 else f"c{number % _COLOURS}"


def _legend(entries: Sequence[tuple[Mark, str, int]]) -> str:
    items = "".join(
        f'<li><i class="{mark} {_colour(colour)}"></i>{escape(label)}</li>' for mark, label, colour in entries
    )
    return f'<ul class="legend">{items}</ul>' if items else ""


def _bars(figure: Histogram) -> str:
    bars = []
    for (left, right), stay, go in zip(itertools.pairwise(figure.edges), figure.kept, figure.removed, strict=True):
        start, width = _x(figure.x, left), max(_x(figure.x, right) - _x(figure.x, left) - 1, 0.8)
        said = f"|γ| {left:.3g} to {right:.3g}: {stay + go} channels" + (f", {go} removed" if go else "")
        for base, height, kind in ((0, go, "gone"), (go, go + stay, "stay")):
            if height > base:
                top, low = _y(figure.y, height), _y(figure.y, base)
                bars.append(
                    f'<rect class="{kind}" x="{start:.1f}" y="{top:.1f}" width="{width:.1f}" height="{low - top:.1f}">'
                    f"<title>{escape(said)}</title></rect>"
                )
    return "".join(bars)


def _threshold(figure: Histogram) -> str:
    if figure.threshold is None:
        return ""
    at = _x(figure.x, figure.threshold)
    anchor, shift = ("end", -6) if at > _WIDTH * 0.6 else ("start", 14)
    return (
        f'<line class="threshold" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP:g}" y2="{_HEIGHT - _BOTTOM:g}"/>'
        f'<text class="said" x="{at + shift:.1f}" y="{_TOP + 9:g}" text-anchor="{anchor}">'
        f"threshold {figure.threshold:.3g}</text>"
    )


def _silhouette(figure: Widths) -> str:
    """Draw every layer as a bar, dense behind slim; it stretches to any width."""
    tallest = max((before for _, before, _ in figure.layers), default=1) or 1
    bars = []
    for position, (name, before, after) in enumerate(figure.layers):
        said = f"<title>{escape(f'{name}: {before} → {after}')}</title>"
        for kind, width in (("whole", before), ("stay", after)):
            height = 100 * width / tallest
            place = f'x="{position + 0.1:.1f}" y="{100 - height:.2f}" width="0.8" height="{height:.2f}"'
            bars.append(f'<rect class="{kind}" {place}>{said}</rect>')
    return (
        f'<svg class="silhouette" viewBox="0 0 {len(figure.layers)} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(figure.title)}">{"".join(bars)}</svg>'
    )
