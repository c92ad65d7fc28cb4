"""Charts as SVG: inline in the page, whose style sheet colours them, or as a file with colours of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

from bnprune.reporting import chart_style
from bnprune.reporting.figures import GREY, KEPT, SHADES, Figure, Legend
from bnprune.reporting.layout import (
    GAP,
    WIDTH,
    Box,
    Circle,
    Line,
    Shape,
    Text,
    height_of,
    panel_height,
    panels,
    plot,
)

Attributes = dict[str, str]
Style = Callable[[Shape], Attributes]


def inline(figure: Figure) -> str:
    """Return a figure for the page, with its legend."""
    shapes = _elements(plot(figure), _page_style)
    box = f'class="chart" viewBox="0 0 {WIDTH:g} {height_of(figure):g}"'
    return f'{legend(figure.legend)}<svg {box} role="img" aria-label="{escape(figure.title)}">{shapes}</svg>'


def legend(entries: Sequence[Legend]) -> str:
    """Return a legend for the page; empty if there are no entries."""
    items = "".join(
        f'<li><i class="{mark} {_colour_class(colour)}"></i>{escape(label)}</li>' for mark, label, colour in entries
    )
    return f'<ul class="legend">{items}</ul>' if items else ""


def document(figures: Sequence[Figure]) -> str:
    """Return an SVG file with figures side by side."""
    width, height = len(figures) * (WIDTH + GAP) - GAP, panel_height(figures)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="{chart_style.FONTS}">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{_elements(panels(figures), _file_style)}</svg>\n'
    )


def _elements(shapes: Iterable[Shape], style: Style) -> str:
    return "".join(_element(shape, style(shape)) for shape in shapes)


def _element(shape: Shape, style: Attributes) -> str:
    match shape:
        case Line():
            place = {"points": " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)}
            return _tag("polyline", style | place, _hint(shape.hint))
        case Box():
            place = {name: f"{getattr(shape, name):.2f}" for name in ("x", "y", "width", "height")}
            return _tag("rect", style | place, _hint(shape.hint))
        case Circle():
            place = {"cx": f"{shape.x:.1f}", "cy": f"{shape.y:.1f}", "r": f"{shape.radius:g}"}
            return _tag("circle", style | place, _hint(shape.hint))
        case Text():
            middle = {"dy": ".35em"} if shape.kind == "tick" else {}
            place = {"x": f"{shape.x:.1f}", "y": f"{shape.y:.1f}", "text-anchor": shape.anchor}
            return _tag("text", style | place | middle, escape(shape.text))


def _tag(name: str, attributes: Attributes, content: str) -> str:
    written = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def _hint(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _page_style(shape: Shape) -> Attributes:
    match shape:
        case Line():
            return {"class": f"{shape.kind} {_colour_class(shape.colour)}"}
        case Box():
            return {"class": _colour_class(shape.colour)}
        case Circle():
            return {"class": f"{'dot' if shape.filled else 'ring'} {_colour_class(shape.colour)}"}
        case Text():
            return {"class": shape.kind}


def _colour_class(number: int) -> str:
    if number in SHADES:
        return f"s{SHADES.index(number)}"
    return {GREY: "grey", KEPT: "kept"}.get(number) or f"c{number % len(chart_style.COLOURS)}"


def _file_style(shape: Shape) -> Attributes:
    match shape:
        case Line():
            return _stroke(shape.kind, shape.colour)
        case Circle() if not shape.filled:
            return _stroke("ring", shape.colour)
        case Box() | Circle():
            return {"fill": chart_style.colour(shape.colour)}
        case Text():
            size = {"font-size": f"{chart_style.SIZES[shape.kind]:g}", "fill": chart_style.TEXT_COLOURS[shape.kind]}
            return size | ({"font-weight": "bold"} if shape.kind == "title" else {})


def _stroke(kind: str, colour: int) -> Attributes:
    stroke = chart_style.STROKES[kind]
    drawn = {"fill": "none", "stroke": stroke.colour or chart_style.colour(colour), "stroke-width": f"{stroke.width:g}"}
    return drawn | ({"stroke-dasharray": "{:g} {:g}".format(*stroke.dashes)} if stroke.dashes else {})
