"""Checks that a built wheel or sdist holds the package, the recipes and nothing else.

Usage: python scripts/check_dist.py dist/*
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bnprune import __version__  # noqa: E402 - the package of this very folder, without torch

BESIDE = {
    ".whl": {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"},
    ".gz": {".gitignore", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"},
}
"""Other allowed files of each kind of archive: the `.dist-info` of a wheel, the top level of an sdist."""


def main() -> None:
    paths = [Path(argument) for argument in sys.argv[1:]]
    if not paths:
        sys.exit("usage: python scripts/check_dist.py ARCHIVE...")
    problems = [f"{path.name}: {problem}" for path in paths for problem in problems_of(path)]
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(paths)} checked: the package, {len(list((ROOT / 'configs').glob('*.yaml')))} recipes, nothing else")


def problems_of(path: Path) -> list[str]:
    """List the files that are missing from an archive, those that do not belong there, and a wrong version."""
    expected, found = source_files() | BESIDE[path.suffix], names_in(path)
    wrong = [] if f"-{__version__}" in path.name else [f"not of version {__version__}"]
    missing = [f"{name} is missing" for name in sorted(expected - found)]
    return [*wrong, *missing, *(f"{name} does not belong there" for name in sorted(found - expected))]


def source_files() -> set[str]:
    """Return every file of the package and every recipe, relative to the repository."""
    files = [file for folder in ("bnprune", "configs") for file in (ROOT / folder).rglob("*") if file.is_file()]
    return {file.relative_to(ROOT).as_posix() for file in files if "__pycache__" not in file.parts}


def names_in(path: Path) -> set[str]:
    """Return the files of an archive, named as in the repository."""
    if path.suffix == ".gz":
        with tarfile.open(path) as archive:
            return {entry.name.partition("/")[2] for entry in archive if not entry.isdir()}
    with zipfile.ZipFile(path) as wheel:
        return {_in_repository(entry) for entry in wheel.namelist() if not entry.endswith("/")}


def _in_repository(name: str) -> str:
    """Return the source path of a file of a wheel: the recipes are inside the package, metadata in its own folder."""
    top, _, rest = name.partition("/")
    if top.endswith(".dist-info"):
        return rest
    return rest if name.startswith("bnprune/configs/") else name


if __name__ == "__main__":
    main()
