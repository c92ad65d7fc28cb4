"""Exported networks on disk: written, described, and made at the end of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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
from bnprune.runs.results import (
    ExportedFile,
    ExportFigures,
    ExportVerification,
    Folding,
    ParityOutcome,
    RunResult,
)

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


def export_figures(artifact: Artifact, wish: Wish, path: Path) -> dict[str, Any]:
    """Return the figures of an export, by the names that `ExportFigures` gives them."""
    folding = None if artifact.folded is None else Folding(folded=artifact.folded, batchnorms=artifact.batchnorms)
    files = files_of(artifact, path).items()
    return {
        "format": wish.format,
        "batch": wish.batch or "any",
        "fold_bn": folding,
        "files": [ExportedFile(path=str(file), bytes=len(content)) for file, content in files],
        "verification": ExportVerification(
            passed=True if artifact.random else None,
            tolerance=artifact.random.tolerance if artifact.random else TOLERANCE,
            random=_outcome(artifact.random),
            real=_outcome(artifact.real),
        ),
        "notes": list(artifact.notes),
    }


def _outcome(parity: Parity | None) -> ParityOutcome | None:
    if parity is None:
        return None
    return ParityOutcome(
        inputs=parity.inputs,
        max_absolute_error=parity.max_absolute_error,
        max_relative_error=parity.max_relative_error,
        argmax_agreement=parity.argmax_agreement,
    )


def title_of_network(header: Header) -> str:
    """Return what a network is called in files for people."""
    return f"{header.spec.label}, slim" if header.plans else header.spec.label


def wishes(config: ExportConfig) -> list[Wish]:
    """Return what a recipe asks for.

    Raises:
        ConfigError: A format needs an extra that is missing.
    """
    return [Wish.of(format, fold_bn=config.fold_bn) for format in dict.fromkeys(config.formats)]


def export_run(config: PipelineConfig, directory: RunDirectory, note: Callable[[str], None]) -> RunResult:
    """Export the last network of a run as its recipe asks, add the figures to the result, and return it.

    Raises:
        BnpruneError: A format cannot be made; those before it stay.
    """
    wanted = wishes(config.export) if config.export else []
    result = directory.result()
    done = [export.format for export in result.exports]
    todo = [wish for wish in wanted if wish.format not in done]
    if not todo:
        return result
    model, header = load_stage(config, directory.network())
    splits = load_data(config.data)
    for wish in todo:
        path = directory.export(SUFFIXES[wish.format][0])
        real = real_batches(splits, wish.batch)
        title = title_of_network(header)
        artifact = make_artifact(model, splits.shape, wish, title=title, stem=path.stem, real=real)
        write_artifact(artifact, path)
        figures = export_figures(artifact, wish, path.relative_to(directory.path))
        result.exports.append(ExportFigures(**figures))
        directory.write_result(result)
        error = artifact.random.max_relative_error if artifact.random else None
        checked = "not verified" if error is None else f"relative error {error:.1e} to the eager network"
        note(f"export: {path} ({wish.format}, {checked})")
        for remark in artifact.notes:
            note(f"export: {remark}")
    return result
