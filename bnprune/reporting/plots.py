"""The same figures as pictures, PNG and SVG, drawn by matplotlib."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnprune.errors import ConfigError, DataError
from bnprune.reporting import charts
from bnprune.reporting.figures import Axis, Chart, Figure, Histogram, Widths
from bnprune.reporting.run_data import RunData
from bnprune.runs.files import require_replaceable, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#1f6fd6", "#c9621a", "#7a4fc4", "#1c8a6b", "#b8345f", "#7d7420")
_GREY, _PALE, _STAY, _THRESHOLD = "#9a9ba1", "#dcdad4", "#1f6fd6", "#b4461f"
_TEXT, _SOFT = "#1d1e20", "#63656b"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _SOFT,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "text.color": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "ytick.left": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # a $ in a name is a dollar
    "svg.hashsalt": "bnprune",  # the same picture, the same bytes
}


def require_matplotlib() -> None:
    """Refuse early where pictures cannot be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plots needs matplotlib: pip install 'bnprune[report]'")


def save_plots(stories: Sequence[RunData], folder: Path) -> list[Path]:
    """Draw every figure of every run into a folder, each as PNG and SVG; return the files.

    Raises:
        DataError: A file cannot be written.
    """
    written = []
    for name, panels in _pictures(stories).items():
        written += _save(_paths(folder, name), panels)
    return written


def require_free_plots(stories: Sequence[RunData], folder: Path, *, force: bool) -> None:
    """Refuse to draw over anything else, before the first picture.

    Raises:
        ConfigError: There is a file and `force` is off.
        DataError: There is a folder, a device, or a link.
    """
    for path in (path for name in _pictures(stories) for path in _paths(folder, name)):
        try:
            require_replaceable(path)
        except DataError as error:
            raise DataError(f"--plots: {error}") from error
        if path.exists() and not force:
            raise ConfigError(f"--plots: '{path}' exists. Choose another folder, or give --force to overwrite it.")


def _paths(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}.{ending}" for ending in ("png", "svg")]


def _pictures(stories: Sequence[RunData]) -> dict[str, list[Figure]]:
    """File names without ending -> the figures in them, side by side."""
    found: dict[str, list[Figure | None]] = {}
    for run_data, own in zip(stories, _file_names([run_data.name for run_data in stories]), strict=True):
        prefix = "" if len(stories) == 1 else f"{own}-"
        histograms = charts.gamma_histograms(run_data)
        accuracy, widths = charts.accuracy_against_macs(run_data), charts.layer_widths(run_data)
        found |= {
            f"{prefix}overview": [histograms[-1] if histograms else None, widths, accuracy],
            f"{prefix}accuracy": [accuracy],
            f"{prefix}gamma": [*histograms],
            f"{prefix}layers": [widths],
            f"{prefix}training": [
                charts.accuracy_curves(run_data),
                charts.loss_curves(run_data),
                charts.gamma_over_time(run_data),
            ],
        }
    if len(stories) > 1:
        found["comparison"] = [charts.accuracy_of_runs(stories), charts.last_trainings(stories)]
    drawable = {name: [panel for panel in panels if panel is not None] for name, panels in found.items()}
    return {name: panels for name, panels in drawable.items() if panels}


def _file_names(names: Sequence[str]) -> list[str]:
    """Return a name for files per run, no two alike, even where capitals do not count."""
    found: dict[str, str] = {}
    for name in map(_file_name, names):
        tries = (name, *(f"{name}-{number}" for number in range(2, len(names) + 1)))
        free = next(one for one in tries if one.casefold() not in found)
        found[free.casefold()] = free
    return [*found.values()]


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)


def _save(paths: list[Path], panels: Sequence[Figure]) -> list[Path]:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(_STYLE):
        canvas = Canvas(figsize=(4.3 * len(panels), 3.0), layout="constrained")
        for position, panel in enumerate(panels, 1):
            _draw(panel, canvas.add_subplot(1, len(panels), position))
        for path in paths:
            options: dict[str, Any] = {"format": path.suffix[1:], "dpi": 150}
            if path.suffix == ".svg":
                options["metadata"] = {"Date": None}
            try:
                write_atomically(path, lambda temporary, options=options: canvas.savefig(temporary, **options))  # type: ignore[misc]
            except DataError as error:
                raise DataError(f"--plots: {error}") from error
    return paths


def _draw(figure: Figure, axes: Axes) -> None:
    match figure:
        case Chart():
            _chart(figure, axes)
        case Histogram():
            _histogram(figure, axes)
        case Widths():
            _widths(figure, axes)
    axes.set_title(figure.title)


def _colour(number: int) -> str:
    return _GREY if number < 0 else _COLOURS[number % len(_COLOURS)]


def _axes(axes: Axes, x: Axis, y: Axis) -> None:
    if y.root:
        axes.set_yscale("function", functions=(_root, _square))
    axes.set(xlim=(x.low, x.high), ylim=(y.low, y.high), xlabel=x.label)
    axes.set_xticks(x.ticks(), [x.write(tick) for tick in x.ticks()])
    axes.set_yticks(y.ticks(), [y.write(tick) for tick in y.ticks()])
    axes.grid(axis="y", color="#e3e1db", linewidth=0.8)


def _root(value: Any) -> Any:
    return abs(value) ** 0.5


def _square(value: Any) -> Any:
    return value**2


def _chart(figure: Chart, axes: Axes) -> None:
    styles: dict[str, dict[str, Any]] = {
        "line": {"linestyle": "-", "linewidth": 1.6},
        "dashes": {"linestyle": (0, (3, 3)), "linewidth": 1.1},
        "dot": {"linestyle": "", "marker": "o", "markersize": 6},
        "ring": {"linestyle": "", "marker": "o", "markersize": 11, "fillstyle": "none", "markeredgewidth": 1.8},
        "small": {"linestyle": "", "marker": "o", "markersize": 3},
    }
    _axes(axes, figure.x, figure.y)
    for series in figure.series:
        xs, ys = [x for x, _ in series.points], [y for _, y in series.points]
        axes.plot(xs, ys, color=_colour(series.colour), clip_on=False, **styles[series.mark])
    handles = [
        axes.plot([], [], color=_colour(colour), label=label, **styles[mark])[0]
        for mark, label, colour in figure.legend
    ]
    axes.legend(handles=handles, loc="best")


def _histogram(figure: Histogram, axes: Axes) -> None:
    _axes(axes, figure.x, figure.y)
    width = [0.92 * (right - left) for left, right in zip(figure.edges, figure.edges[1:], strict=False)]
    left = figure.edges[:-1]
    axes.bar(left, figure.removed, width, align="edge", color=_GREY, label="removed")
    axes.bar(left, figure.kept, width, bottom=figure.removed, align="edge", color=_STAY, label="kept")
    if figure.threshold is not None:
        said = f"threshold {figure.threshold:.3g}"
        axes.axvline(figure.threshold, color=_THRESHOLD, linestyle="--", linewidth=1.2, label=said)
    if any(figure.removed):
        axes.legend(loc="upper right")
    axes.set_ylabel("channels (square-root scale)")


def _widths(figure: Widths, axes: Axes) -> None:
    places = range(len(figure.layers))
    axes.bar(places, [before for _, before, _ in figure.layers], color=_PALE, label="removed")
    axes.bar(places, [after for _, _, after in figure.layers], color=_STAY, label="kept")
    axes.set(xlabel="layer, from input to output", ylabel="channels")
    axes.set_xticks([])
    axes.grid(axis="y", color="#e3e1db", linewidth=0.8)
    axes.legend(loc="upper left")
