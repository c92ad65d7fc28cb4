"""Checks of output files: they must not replace an input, or a file of a run."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from bnprune.errors import ConfigError
from bnprune.runs.files import real_path, require_free_file

RUN_FILES = (
    "result.json",
    "checkpoints/last.state.pt",
    "metrics.jsonl",
    "env.json",
    "report.html",
    "gamma.safetensors",
    "plan*.json",
    "checkpoints/*.safetensors",
    "exports/network.*",
    "tensorboard/*/events.out.tfevents.*",
    "config.yaml",
)
"""The files of a run; a new run in the same directory replaces all of them."""


def require_output(
    path: Path, *, force: bool, sources: Iterable[Path | None] = (), recipe: Path | None = None, option: str = "out"
) -> None:
    """Refuse an output file that would replace something needed.

    Args:
        path: The file.
        force: True if an existing file that is none of the following may be overwritten.
        sources: Files and run directories from which a network or a plan is read.
        recipe: The recipe that is read.
        option: The argument that names the file.

    Raises:
        ConfigError: It is one of the sources, or belongs to a run; or the file exists and `force` is not set.
        DataError: The path is a folder, a device or a link, or cannot be used as a name.
    """
    for source in sources:
        if source is not None and (is_same(path, source) or real_path(path.parent) == _checkpoint_folder(source)):
            raise ConfigError(
                f"'{path}' is the source of the network, or in its folder. Choose another.", argument=option
            )
    if recipe is not None and is_same(path, recipe):
        raise ConfigError(f"'{path}' is the recipe. Choose another.", argument=option)
    if run := _run_of(path):
        raise ConfigError(f"'{path}' belongs to the run '{run}'. Choose another.", argument=option)
    require_free_file(path, force=force, option=option)


def require_checkpoint_name(path: Path, option: str) -> None:
    """Refuse a name that promises another format than that of checkpoints, as `slim.pt` does.

    Args:
        path: The file.
        option: The argument that names it.

    Raises:
        ConfigError: The name does not end in `.safetensors`.
    """
    if path.suffix != ".safetensors":
        name = path.with_suffix(".safetensors")
        message = f"checkpoints are safetensors files, which torch.load does not read (got '{path}'). Use '{name}'."
        raise ConfigError(message, argument=option)


def _checkpoint_folder(source: Path) -> Path:
    return real_path(source / "checkpoints")


def _run_of(path: Path) -> Path | None:
    """Return the run that a file would belong to, or None; pages and exports of a run may be replaced."""
    folder = real_path(path.parent)
    if folder.name == "checkpoints":
        run, kept = folder.parent, True
    else:
        run, kept = folder, any(fnmatch(path.name, name) for name in RUN_FILES if name != "report.html")
    return run if kept and is_run(run) else None


def is_run(folder: Path) -> bool:
    """Return True if a folder is a run directory: it has both the recipe and the environment of a run."""
    return (folder / "config.yaml").is_file() and (folder / "env.json").is_file()


def is_same(one: Path, other: Path) -> bool:
    """Return True if two paths lead to the same existing file or folder, also through links."""
    try:
        return one.samefile(other)
    except OSError:
        return False
