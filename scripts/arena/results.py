"""The results of the arena: one JSON file per cell, written atomically, with everything needed to repeat it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from arena.cells import Cell
from bnprune.config.recipe import as_data
from bnprune.config.schema import PipelineConfig
from bnprune.runs.directory import processor
from bnprune.runs.files import write_json

SCHEMA = "bnprune.arena/1"
_PACKAGES = ("torch", "torchvision", "numpy", "torch-pruning", "onnxruntime")
_PLACES = ("--data", "--work", "--results")
"""Options whose values are folders of one machine: a recorded command holds their names in capitals instead."""


def path_of(results: Path, cell: Cell) -> Path:
    """Return the file of a cell."""
    return results / f"{cell.name}.json"


def read_all(results: Path) -> list[dict[str, Any]]:
    """Return the documents of a folder, sorted by name.

    Raises:
        SystemExit: A file is of another kind: none is left out silently.
    """
    found = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}
    for path, document in found.items():
        if document.get("schema") != SCHEMA or path.stem != Cell(**document["cell"]).name:
            raise SystemExit(f"'{path}' is not the result of a cell of that name. Remove it, or rename it.")
    return list(found.values())


def read(results: Path, cell: Cell) -> dict[str, Any] | None:
    """Return the document of a cell; None if it is not finished."""
    path = path_of(results, cell)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write(results: Path, cell: Cell, config: PipelineConfig, command: str, figures: Mapping[str, Any]) -> None:
    """Write the document of a finished cell."""
    document = {
        "schema": SCHEMA,
        "cell": asdict(cell),
        **figures,
        "recipe": recipe_data(config),
        "environment": environment(command),
    }
    write_json(path_of(results, cell), document)


def recipe_data(config: PipelineConfig) -> dict[str, Any]:
    """Return a recipe as plain data, without the folder of the images."""
    data = as_data(config)
    data["data"].pop("root", None)
    return data


def environment(command: str) -> dict[str, Any]:
    """Return commit, versions, hardware, time and command; no names of machines or folders."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "versions": versions,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "date": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "command": command,
    }


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def command_of(arguments: Sequence[str]) -> str:
    """Return the command line, with names in capitals in place of folders."""
    words, place = ["python", "scripts/arena.py"], None
    for word in arguments:
        name, equals, _ = word.partition("=")
        if name in _PLACES:
            words.append(f"{name}={name[2:].upper()}" if equals else name)
            place = None if equals else name
        else:
            words.append(word if place is None else place[2:].upper())
            place = None
    return shlex.join(words)
