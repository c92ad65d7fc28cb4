"""Exported networks on disk: written, described, and made at the end of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bnprune.config.schema import ExportConfig, PipelineConfig
from bnprune.data import Splits, load_data
from bnprune.exporters.artifact import SUFFIXES, Artifact, Wish, make_artifact
from bnprune.exporters.parity import TOLERANCE, Parity
from bnprune.exporters.python_source import is_ours
from bnprune.runs.checkpoint import Header
from bnprune.runs.directory import RunDirectory
from bnprune.runs.files import write_atomically
from bnprune.runs.preflight import load_stage

_IMAGES = 64
"""Real images a network is compared on."""


def real_batches(splits: Splits, batch: int | None = None) -> Iterator[torch.Tensor]:
    """Yield some validation images, evenly chosen, in batches of 16.

    With `batch`, every batch has that size; where there are too few images for it, some come twice.
    """
    size, there = batch or 16, len(splits.validation)
    count = math.ceil(_IMAGES / batch) * batch if batch else min(_IMAGES, there)
    indices = torch.linspace(0, there - 1, count).long()
    for images, _ in splits.validation.serve(indices.split(size), torch.device("cpu")):
        yield images


def files_of(artifact: Artifact, path: Path) -> dict[Path, bytes]:
    """Return where each file of an artifact goes; `path` is the main one."""
    return {path.with_suffix(suffix): content for suffix, content in artifact.files.items()}


def write_artifact(artifact: Artifact, path: Path) -> None:
    """Write every file, atomically; the weights come last, so that no Python file lies beside those of another network.

    A Python file of ours that has become stale goes.

    Raises:
        DataError: One cannot be written.
    """
    files = files_of(artifact, path)
    code = path.with_suffix(".py")
    if path.suffix in SUFFIXES["state-dict"] and code not in files and is_ours(code):
        code.unlink()
    for file, content in sorted(files.items(), key=lambda entry: entry[0].suffix != ".py"):
        write_atomically(file, lambda temporary, content=content: _write(temporary, content))  # type: ignore[misc]


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def describe_artifact(artifact: Artifact, wish: Wish, path: Path) -> dict[str, Any]:
    """Return the figures of an export as plain data."""
    folded = None if artifact.folded is None else {"folded": artifact.folded, "batchnorms": artifact.batchnorms}
    return {
        "format": wish.format,
        "batch": wish.batch or "any",
        "fold_bn": folded,
        "files": [{"path": str(file), "bytes": len(content)} for file, content in files_of(artifact, path).items()],
        "verification": {
            "passed": True if artifact.random else None,
            "tolerance": artifact.random.tolerance if artifact.random else TOLERANCE,
            "random": _parity(artifact.random),
            "real": _parity(artifact.real),
        },
        "notes": list(artifact.notes),
    }


def _parity(parity: Parity | None) -> dict[str, Any] | None:
    return None if parity is None else {k: v for k, v in asdict(parity).items() if k != "tolerance"}


def title_of_network(header: Header) -> str:
    """Return what a network is called in files for people."""
    return f"{header.spec.label}, slim" if header.plans else header.spec.label


def wishes(config: ExportConfig) -> list[Wish]:
    """Return what a recipe asks for.

    Raises:
        ConfigError: A format needs an extra that is missing.
    """
    return [Wish.of(format, fold_bn=config.fold_bn) for format in dict.fromkeys(config.formats)]


def export_run(config: PipelineConfig, directory: RunDirectory, note: Callable[[str], None]) -> None:
    """Export the last network of a run as its recipe asks, and add the figures to the result.

    Raises:
        BnpruneError: A format cannot be made; those before it stay.
    """
    wanted = wishes(config.export) if config.export else []
    result = directory.result()
    done = [found["format"] for found in result.get("exports", [])]
    todo = [wish for wish in wanted if wish.format not in done]
    if not todo:
        return
    model, header = load_stage(config, directory.network())
    splits = load_data(config.data)
    for wish in todo:
        path = directory.export(SUFFIXES[wish.format][0])
        real = real_batches(splits, wish.batch)
        title = title_of_network(header)
        artifact = make_artifact(model, splits.shape, wish, title=title, stem=path.stem, real=real)
        write_artifact(artifact, path)
        figures = describe_artifact(artifact, wish, path.relative_to(directory.path))
        result.setdefault("exports", []).append(figures)
        directory.write_result(result)
        error = artifact.random.max_relative_error if artifact.random else None
        checked = "not verified" if error is None else f"relative error {error:.1e} to the eager network"
        note(f"export: {path} ({wish.format}, {checked})")
        for remark in artifact.notes:
            note(f"export: {remark}")
