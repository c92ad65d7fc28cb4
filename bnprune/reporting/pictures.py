"""Pictures in files: .svg without further packages, .png with matplotlib."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from bnprune.errors import ConfigError
from bnprune.reporting import charts
from bnprune.reporting.figures import Figure
from bnprune.reporting.png import save_png
from bnprune.reporting.run_data import RunData
from bnprune.reporting.svg import document
from bnprune.runs.files import require_replaceable, write_atomically, write_text

SUFFIXES = (".png", ".svg")


def require_matplotlib() -> None:
    """Raise an error if PNG files cannot be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("PNG files need matplotlib: pip install matplotlib")


def require_picture(path: Path) -> None:
    """Raise an error if a picture cannot be drawn into a file of that name.

    Raises:
        ConfigError: The suffix is unknown, or matplotlib is missing.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"'{path}' must end in .png or .svg.")
    if path.suffix == ".png":
        require_matplotlib()


def save_picture(path: Path, figures: Sequence[Figure]) -> None:
    """Draw figures side by side into a .png or .svg file.

    Raises:
        DataError: The file cannot be written.
    """
    if path.suffix == ".svg":
        write_text(path, document(figures))
    else:
        write_atomically(path, lambda temporary: save_png(temporary, figures))


def save_pictures(runs: Sequence[RunData], folder: Path) -> list[Path]:
    """Draw every figure of every run into a folder, each as PNG and SVG; return the files.

    Raises:
        DataError: A file cannot be written.
    """
    pictures = _pictures(runs)
    for name, figures in pictures.items():
        for path in _paths(folder, name):
            save_picture(path, figures)
    return [path for name in pictures for path in _paths(folder, name)]


def require_free_pictures(runs: Sequence[RunData], folder: Path, *, force: bool) -> None:
    """Raise an error if a picture would overwrite a file, before the first one is drawn.

    Raises:
        ConfigError: There is a file and `force` is off.
        DataError: There is a folder, a device, or a link.
    """
    for path in (path for name in _pictures(runs) for path in _paths(folder, name)):
        require_replaceable(path)
        if path.exists() and not force:
            raise ConfigError(f"'{path}' exists. Choose another folder, or overwrite it.", remedy={"force": True})


def _paths(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}{suffix}" for suffix in SUFFIXES]


def _pictures(runs: Sequence[RunData]) -> dict[str, list[Figure]]:
    """Return the figures of each picture, side by side, by the name of its files without suffix."""
    pictures: dict[str, list[Figure | None]] = {}
    for run, own in zip(runs, _file_names([run.name for run in runs]), strict=True):
        prefix = "" if len(runs) == 1 else f"{own}-"
        histograms = charts.gamma_histograms(run)
        accuracy, widths = charts.accuracy_against_macs(run), charts.layer_widths(run)
        pictures |= {
            f"{prefix}overview": [histograms[-1] if histograms else None, widths, accuracy],
            f"{prefix}accuracy": [accuracy],
            f"{prefix}gamma": [*histograms],
            f"{prefix}layers": [widths],
            f"{prefix}training": [charts.accuracy_curves(run), charts.loss_curves(run), charts.gamma_over_time(run)],
        }
    if len(runs) > 1:
        pictures["comparison"] = [charts.accuracy_of_runs(runs), charts.last_trainings(runs)]
    drawable = {name: [figure for figure in figures if figure is not None] for name, figures in pictures.items()}
    return {name: figures for name, figures in drawable.items() if figures}


def _file_names(names: Sequence[str]) -> list[str]:
    """Return a file name for each run, no two alike, not even if case is ignored."""
    chosen: dict[str, str] = {}
    for name in map(_file_name, names):
        candidates = (name, *(f"{name}-{number}" for number in range(2, len(names) + 1)))
        free = next(candidate for candidate in candidates if candidate.casefold() not in chosen)
        chosen[free.casefold()] = free
    return [*chosen.values()]


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
