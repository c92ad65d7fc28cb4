"""The plot of a network: accuracy after fine-tuning of every arm at every share of the MACs, a point per seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from html import escape

from arena.arms import ARMS
from arena.cells import SHARES
from arena.comparison import Document, of_arm, values
from arena.table import FINAL
from bnprune.reporting.chart_style import COLOURS, FAINT, FONTS, SOFT, TEXT

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _BOTTOM = 720, 140, 24, 58, 24, 44


def plot(documents: Sequence[Document], network: str) -> str | None:
    """Return an SVG file; None if no arm of the network has a figure."""
    arms = [arm for arm in ARMS if any(_points(documents, network, arm, share) for share in SHARES)]
    found = [point for arm in arms for share in SHARES for point in _points(documents, network, arm, share)]
    if not found:
        return None
    low, high = math.floor(min(found)) - 0.0, math.ceil(max(found)) + 0.0
    high = high if high > low else low + 1
    height = _TOP + _ROW * len(arms) + _BOTTOM
    shapes = [*_axis(low, high, height), *_legend(network)]
    for number, arm in enumerate(arms):
        middle = _TOP + _ROW * (number + 0.5)
        shapes.append(_text(_LEFT - 10, middle + 4, arm, "end", TEXT))
        for place, share in enumerate(SHARES):
            shapes += _marks(_points(documents, network, arm, share), low, high, middle + 6 * place - 3, COLOURS[place])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="{FONTS}" font-size="12">\n'
        '<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )


def _points(documents: Sequence[Document], network: str, arm: str, share: float) -> list[float]:
    return [100 * found for found in values(of_arm(documents, network, arm, share), *FINAL)]


def _place(value: float, low: float, high: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)


def _axis(low: float, high: float, height: int) -> Iterator[str]:
    step = next(step for step in (1, 2, 5, 10, 20) if (high - low) / step <= 10)
    for tick in range(math.ceil(low / step) * step, math.floor(high) + 1, step):
        x = _place(tick, low, high)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}" stroke="{FAINT}"/>'
        yield _text(x, height - _BOTTOM + 16, f"{tick:g}", "middle", SOFT)
    label = "test accuracy after fine-tuning, %: points are seeds, lines their means"
    yield _text((_LEFT + _WIDTH - _RIGHT) / 2, height - 8, label, "middle", SOFT)


def _legend(network: str) -> Iterator[str]:
    yield f'<text x="{_LEFT}" y="20" font-weight="bold" fill="{TEXT}">{escape(network)}</text>'
    for place, share in enumerate(SHARES):
        x = _LEFT + 150 * place
        yield f'<circle cx="{x + 4}" cy="38" r="3.5" fill="{COLOURS[place]}"/>'
        yield _text(x + 14, 42, f"{share:.0%} of the MACs", "start", SOFT)


def _marks(points: Sequence[float], low: float, high: float, y: float, colour: str) -> Iterator[str]:
    if points:
        x = _place(statistics.mean(points), low, high)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 6:.1f}" y2="{y + 6:.1f}" stroke="{colour}" stroke-width="2"/>'
    for point in points:
        yield f'<circle cx="{_place(point, low, high):.1f}" cy="{y:.1f}" r="3" fill="{colour}" fill-opacity="0.6"/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
