"""Colours, line widths and font sizes of charts in files. The page has its own, in style.css, with a dark mode."""

from __future__ import annotations

from dataclasses import dataclass

from bnprune.reporting.figures import GREY, KEPT, SHADES

COLOURS = ("#0072b2", "#d55e00", "#cc79a7", "#009e73", "#e69f00", "#56b4e9")
"""The colours c0 to c5 of style.css: those of Okabe and Ito (2008), which colour-blind readers can tell apart."""
SCALE = ("#f3f1ea", "#fbe6c2", "#f8cf94", "#f3b06b", "#ea9158", "#e07355", "#d05a4c")
"""The colours s0 to s6 of style.css, light enough for dark text."""
TEXT, SOFT, FAINT, LEFT = "#1d1e20", "#63656b", "#e3e1db", "#3f434b"
FONT_NAMES = ("Helvetica", "Arial", "Liberation Sans", "DejaVu Sans")
FONTS = ", ".join([*(f"'{name}'" for name in FONT_NAMES), "sans-serif"])


@dataclass(frozen=True)
class Stroke:
    """The style of a line."""

    width: float
    colour: str | None = None
    """None for the colour of the series."""
    dashes: tuple[float, float] | None = None
    """Length of a dash, and of the gap after it."""


STROKES = {
    "grid": Stroke(1, FAINT),
    "axis": Stroke(1, SOFT),
    "line": Stroke(1.8),
    "dashes": Stroke(1.4, dashes=(3, 4)),
    "bar": Stroke(1.1),
    "threshold": Stroke(1.6, TEXT, (4, 3)),
    "ring": Stroke(2.2),
}
SIZES = {"tick": 10.5, "label": 10.5, "note": 10.5, "title": 12.5}
TEXT_COLOURS = {"tick": SOFT, "label": SOFT, "note": TEXT, "title": TEXT}


def colour(number: int) -> str:
    """Return the colour of a series, or of a shade."""
    return ({GREY: "#b3b4b9", KEPT: LEFT} | dict(zip(SHADES, SCALE, strict=True))).get(number) or COLOURS[
        number % len(COLOURS)
    ]
