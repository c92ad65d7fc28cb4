"""Charts: the same shapes on the page, in files and, as far as it goes, in a terminal."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import bnprune
from bnprune.recovery.sweep import Point
from bnprune.reporting import chart_style
from bnprune.reporting.charts import sensitivity_map, sweep_chart
from bnprune.reporting.figures import GREY, KEPT, SHADES, Axis, Cell, Chart, Figure, HeatMap, Histogram, Series, Widths
from bnprune.reporting.layout import HEIGHT, WIDTH, Box, Circle, Line, Text, height_of, panels, plot
from bnprune.reporting.pictures import save_picture
from bnprune.reporting.svg import document, inline
from bnprune.reporting.text import draw

STYLE = (Path(bnprune.__file__).parent / "reporting" / "style.css").read_text(encoding="utf-8")


def axis(label: str, high: float) -> Axis:
    return Axis(label, 0.0, high, lambda value: f"{value:g}")


CHART = Chart(
    "A < B",
    (Series("line", ((0.0, 0.0), (2.0, 4.0)), 0), Series("dot", ((1.0, 2.0),), 1, "dot", ("one & two",))),
    axis("x", 2.0),
    axis("y", 4.0),
    (("line", "line", 0), ("dot", "dot", 1)),
)
HISTOGRAM = Histogram("|γ|", (0.0, 0.5, 1.0), (0, 7), (3, 1), axis("|γ|", 1.0), axis("channels", 8.0), threshold=0.6)
WIDTHS = Widths("Channels", (("conv1", 8, 4), ("conv2", 16, 16)))
HEAT_MAP = HeatMap(
    "Losses",
    (
        ("conv1", (Cell("71.0", SHADES[0], "conv1: 71%"), None)),
        ("conv2", (Cell("70", SHADES[1]), Cell("60", SHADES[6]))),
    ),
    ("10%", "20%"),
    axis("channels removed", 1.0),
    axis("loss", 1.0),
    (("box", "< 1%", SHADES[0]), ("box", "more", SHADES[6])),
)
FIGURES: list[Figure] = [CHART, HISTOGRAM, WIDTHS, HEAT_MAP]


def test_a_line_goes_through_its_points_and_a_dot_stands_on_one() -> None:
    shapes = plot(CHART)
    [line] = [shape for shape in shapes if isinstance(shape, Line) and shape.kind == "line"]
    [dot] = [shape for shape in shapes if isinstance(shape, Circle)]
    (left, bottom), (right, top) = line.points
    assert right > left
    assert top < bottom, "y points downwards"
    assert (dot.x, dot.y) == pytest.approx(((left + right) / 2, (top + bottom) / 2))
    assert dot.hint == "one & two"


def test_kept_channels_are_stacked_on_removed_ones() -> None:
    boxes = [shape for shape in plot(HISTOGRAM) if isinstance(shape, Box)]
    assert [box.colour for box in boxes] == [GREY, GREY, HISTOGRAM.colour]
    assert [box.height for box in boxes] == pytest.approx([3 * boxes[1].height, boxes[1].height, 7 * boxes[1].height])
    assert boxes[2].y + boxes[2].height == pytest.approx(boxes[1].y)


def test_a_heat_map_has_a_box_per_value_and_grows_with_its_rows() -> None:
    shapes = plot(HEAT_MAP)
    boxes = [shape for shape in shapes if isinstance(shape, Box)]
    assert [box.colour for box in boxes] == [SHADES[0], SHADES[1], SHADES[6]]
    assert boxes[0].x == boxes[1].x < boxes[2].x
    assert boxes[0].y < boxes[1].y == boxes[2].y
    assert all(box.x + box.width <= WIDTH for box in boxes)
    assert {"conv1", "conv2", "71.0", "10%", "20%"} <= {shape.text for shape in shapes if isinstance(shape, Text)}
    twice = replace(HEAT_MAP, rows=HEAT_MAP.rows * 2)
    assert height_of(twice) - height_of(HEAT_MAP) == pytest.approx(2 * (boxes[1].y - boxes[0].y))


def test_losses_are_coloured_by_their_size() -> None:
    made = sensitivity_map([("a", {0.5: 0.9, 0.75: 0.885}), ("b", {0.5: 0.1})], (0.5, 0.75), 0.9)
    (_, (none, small)), (_, (large, absent)) = made.rows
    assert none is not None and small is not None and large is not None  # noqa: PT018
    assert [none.colour, small.colour, large.colour] == [SHADES[0], SHADES[2], SHADES[6]]
    assert absent is None
    assert made.legend[2] == ("box", "1 to 2%", SHADES[2])
    assert made.legend[0][1] == "below 0.5%"
    assert made.legend[-1][1] == "20% or more"


def test_widths_are_proportional_to_channels() -> None:
    boxes = [shape for shape in plot(WIDTHS) if isinstance(shape, Box)]
    lengths = [box.width for box in boxes]
    assert lengths == pytest.approx([lengths[2] * share for share in (0.5, 0.25, 1.0, 1.0)])
    assert [box.colour for box in boxes] == [GREY, KEPT] * 2
    assert boxes[0].y == boxes[1].y < boxes[2].y, "in the order of the network"


def test_layers_have_their_names_an_axis_and_the_share_that_they_lost() -> None:
    texts = [shape.text for shape in plot(WIDTHS) if isinstance(shape, Text)]
    assert {"conv1", "conv2", "0", "5", "15", "channels", "−50%"} <= {*texts}
    assert sum("%" in text for text in texts) == 1


def test_many_layers_share_the_height_and_their_names_do_not_touch() -> None:
    many = Widths("Channels", tuple((f"layer{number}", 8, 4) for number in range(200)))
    assert height_of(many) < 5 * HEIGHT
    names = [shape.y for shape in plot(many) if isinstance(shape, Text) and shape.text.startswith("layer")]
    assert len(names) > 20
    assert min(after - before for before, after in pairwise(names)) > 10


def test_kept_and_removed_have_the_same_colours_in_every_figure() -> None:
    assert HISTOGRAM.legend == WIDTHS.legend


SIMULATED = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}
"""Linear RGB as colour-blind readers see it: Machado, Oliveira & Fernandes 2009, severity 1."""
TO_XYZ = ((0.4339, 0.3762, 0.1899), (0.2126, 0.7152, 0.0722), (0.0177, 0.1095, 0.8728))
"""Relative to the white point."""


def lab(colour: str, sight: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """Return CIELAB coordinates of a colour such as #0072b2."""
    channels = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    relative = np.array(TO_XYZ) @ np.clip(np.array(sight) @ linear, 0, 1)
    x, y, z = np.where(relative > 0.008856, np.cbrt(relative), 7.787 * relative + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIMULATED)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colour_blind_readers_can_tell_series_apart(sight: str, scheme: str) -> None:
    light, dark = STYLE.partition("@media")[::2]
    colours = dict(re.findall(r"--(c\d): (#\w+)", light))
    if scheme == "dark":
        colours |= dict(re.findall(r"--(c\d): (#\w+)", dark))
    seen = [lab(colour, SIMULATED[sight]) for colour in colours.values()]
    assert len(seen) == 6
    distances = [float(np.linalg.norm(one - other)) for one, other in combinations(seen, 2)]
    assert min(distances) > 12  # 2.3 is just noticeable; of the colours before these, two were 2 apart


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: type(figure).__name__)
def test_markup_is_well_formed_and_has_the_shapes_of_the_layout(figure: Figure) -> None:
    ElementTree.fromstring(f"<div>{inline(figure)}</div>")
    root = ElementTree.fromstring(document([figure, figure]))
    tags = [element.tag.rpartition("}")[2] for element in root.iter()]
    shapes = panels([figure, figure])
    for tag, kind in (("polyline", Line), ("circle", Circle), ("text", Text)):
        assert tags.count(tag) == sum(isinstance(shape, kind) for shape in shapes) > 0 or kind is Circle
    assert tags.count("rect") == 1 + sum(isinstance(shape, Box) for shape in shapes), "the first one is the ground"


def test_panels_do_not_overlap() -> None:
    first = max(shape.x for shape in panels([CHART]) if isinstance(shape, Text))
    both = [shape.x for shape in panels([CHART, CHART]) if isinstance(shape, Text)]
    assert first < WIDTH <= max(both) - first + 16


def test_the_same_figures_give_the_same_bytes(tmp_path: Path) -> None:
    for suffix in (".svg", ".png"):
        for name in ("a", "b"):
            save_picture(tmp_path / f"{name}{suffix}", FIGURES)
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_files_have_the_colours_of_the_page() -> None:
    light = STYLE.partition("@media")[0]
    page = dict(re.findall(r"--(\w+): (#\w+)", light))
    assert tuple(page[f"c{number}"] for number in range(6)) == chart_style.COLOURS
    assert tuple(page[n] for n in ("text", "soft", "line", "kept")) == (
        chart_style.TEXT,
        chart_style.SOFT,
        chart_style.FAINT,
        chart_style.LEFT,
    )
    assert chart_style.colour(GREY) == page["grey"]
    for kind in (*chart_style.STROKES, *chart_style.SIZES):
        assert kind in ("line", "tick", "label", "title") or f".{kind}" in STYLE, kind


def test_a_sweep_in_a_terminal_shows_every_point_where_it_belongs() -> None:
    points = [
        Point(0.0, 0.0, 1.0, 1.0, 0.9, 0.9),
        Point(0.5, 0.5, 0.5, 0.5, 0.5, 0.8),
        Point(0.9, 0.9, 0.1, 0.1, 0.1, 0.3),
    ]
    lines = draw(sweep_chart(points, points[1])).splitlines()
    plotted = [line.partition("┤")[2] for line in lines if "┤" in line]
    marks = {mark: [(row, line.index(mark)) for row, line in enumerate(plotted) if mark in line] for mark in "●◆·"}
    assert len(marks["●"]) == 2
    assert len(marks["◆"]) == 1
    assert len(marks["·"]) == 2
    [(row, column)] = marks["◆"]
    assert column == round(60 * 0.5 / 1.04)
    assert marks["●"][0][0] < row < marks["●"][1][0]
    assert lines[-1].strip() == "MACs left;  ● recovered  · without recovery  ◆ recommended"
    assert max(map(len, lines)) <= 80


def test_a_sweep_near_the_decision_shows_error_bars_and_the_allowed_loss() -> None:
    points = [
        Point(0.0, 0.0, 1.0, 1.0, 0.9, 0.9, 0.9, 0.9),
        Point(0.5, 0.5, 0.5, 0.5, 0.5, 0.895, 0.88, 0.91),
        Point(0.7, 0.7, 0.3, 0.3, 0.3, 0.3, 0.28, 0.32),
    ]
    lines = draw(sweep_chart(points, points[1], 0.01, near=True)).splitlines()
    plotted = [line.partition("┤")[2] for line in lines if "┤" in line]
    column = round(60 * 0.5 / 1.04)
    bar = [row for row, line in enumerate(plotted) if len(line) > column and line[column] in "│◆"]
    allowed = [row for row, line in enumerate(plotted) if "┄" in line]
    assert bar == list(range(bar[0], bar[-1] + 1))
    assert len(bar) > 6  # the decision takes half of the rows: without `near`, one
    assert len(allowed) == 1
    assert bar[0] < allowed[0] < bar[-1]
    assert plotted[-1][round(60 * 0.3 / 1.04)] == "↓"
    assert "↓ below 88%" in " ".join(lines[-2:]) or "↓ below 87" in " ".join(lines[-2:])
    assert max(map(len, lines)) <= 80


def test_error_bars_are_vertical_lines_of_a_picture() -> None:
    points = [Point(0.0, 0.0, 1.0, 1.0, 0.9, 0.9, 0.9, 0.9), Point(0.5, 0.5, 0.5, 0.5, 0.5, 0.8, 0.7, 0.85)]
    chart = sweep_chart(points, None, 0.01)
    [bars] = [series for series in chart.series if series.mark == "bar"]
    assert bars.points == ((0.5, 0.7), (0.5, 0.85))
    drawn = [shape for shape in plot(chart) if isinstance(shape, Line) and shape.hint == "95% confidence"]
    assert len(drawn) == 1
    (left, low), (right, high) = drawn[0].points
    assert left == right
    assert low > high  # y grows downwards
