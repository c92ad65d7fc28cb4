"""Charts as PNG files, drawn by matplotlib from the same shapes as the SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnprune.reporting import chart_style
from bnprune.reporting.figures import Figure
from bnprune.reporting.layout import GAP, WIDTH, Box, Circle, Line, Shape, Text, panel_height, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCH = 92.0
"""Units in an inch."""
_POINT = 72.0 / _INCH
"""Points in a unit."""
_ALIGN = {"start": "left", "middle": "center", "end": "right"}


def save_png(path: Path, figures: Sequence[Figure]) -> None:
    """Draw figures side by side into a file."""
    from matplotlib.figure import Figure as Canvas

    width, height = len(figures) * (WIDTH + GAP) - GAP, panel_height(figures)
    canvas, font = Canvas(figsize=(width / _INCH, height / _INCH)), _font()
    axes = canvas.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    for order, shape in enumerate(panels(figures)):
        _draw(shape, axes, order, font)
    canvas.savefig(path, format="png", dpi=150)


def _font() -> str:
    """Return the first font of the pages' list that is installed."""
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    return next((name for name in chart_style.FONT_NAMES if name in installed), "sans-serif")


def _draw(shape: Shape, axes: Axes, order: int, font: str) -> None:
    from matplotlib import lines, patches

    match shape:
        case Line():
            xs, ys = zip(*shape.points, strict=True)
            axes.add_line(lines.Line2D(xs, ys, zorder=order, **_stroke(shape.kind, shape.colour)))
        case Box():
            corner, colour = (shape.x, shape.y), chart_style.colour(shape.colour)
            axes.add_patch(patches.Rectangle(corner, shape.width, shape.height, color=colour, lw=0, zorder=order))
        case Circle():
            fill = (
                {"color": chart_style.colour(shape.colour), "lw": 0} if shape.filled else _stroke("ring", shape.colour)
            )
            axes.add_patch(patches.Circle((shape.x, shape.y), shape.radius, fill=shape.filled, zorder=order, **fill))
        case Text():
            axes.text(
                shape.x,
                shape.y,
                shape.text,
                fontfamily=font,
                fontsize=chart_style.SIZES[shape.kind] * _POINT,
                fontweight="bold" if shape.kind == "title" else "normal",
                color=chart_style.TEXT_COLOURS[shape.kind],
                ha=_ALIGN[shape.anchor],
                va="center_baseline" if shape.kind == "tick" else "baseline",
                zorder=order,
                parse_math=False,  # a $ in a name is a dollar
            )


def _stroke(kind: str, colour: int) -> dict[str, Any]:
    stroke = chart_style.STROKES[kind]
    width = stroke.width * _POINT
    # matplotlib measures dashes in widths of the line
    dashes = (0, tuple(part / stroke.width for part in stroke.dashes)) if stroke.dashes else "-"
    return {"color": stroke.colour or chart_style.colour(colour), "linewidth": width, "linestyle": dashes}
