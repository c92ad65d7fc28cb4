"""Exported networks on disk: write them, describe them as data, and export the last network of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bnprune.config.schema import ExportConfig, PipelineConfig
from bnprune.config.tables import FORMATS
from bnprune.data import Splits, splits_of
from bnprune.errors import TraceError
from bnprune.exporters.export import ExportedNetwork, ExportOptions, export_network
from bnprune.exporters.parity import TOLERANCE, Parity
from bnprune.exporters.preprocessing import InputValues, input_values_of
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
    InputFormat,
    ParityOutcome,
    RunResult,
)

_IMAGES = 64
"""Number of real images that a network is compared on."""


def real_batches(splits: Splits, batch: int | None = None) -> Iterator[torch.Tensor]:
    """Yield some validation images, evenly chosen, in batches of 16.

    If `batch` is given, every batch has that size; if there are too few images for it, some are used twice.
    """
    size, available = batch or 16, len(splits.validation)
    count = math.ceil(_IMAGES / batch) * batch if batch else min(_IMAGES, available)
    indices = torch.linspace(0, available - 1, count).long()
    for images, _ in splits.validation.serve(indices.split(size), torch.device("cpu")):
        yield images


def paths_of(options: ExportOptions, path: Path) -> list[Path]:
    """Return the files that an export may write; `path` is the main one."""
    return [path, *(path.with_suffix(suffix) for suffix in FORMATS[options.format].optional_files)]


def files_of(network: ExportedNetwork, path: Path) -> dict[Path, bytes]:
    """Return the content of each file; `path` is the main one."""
    return {path.with_suffix(suffix): content for suffix, content in network.files.items()}


def write_network(network: ExportedNetwork, options: ExportOptions, path: Path) -> None:
    """Write every file atomically, the main file last: a Python file must never lie beside weights that do not fit it.

    A Python file that an earlier export wrote is deleted if this export has none.

    Raises:
        DataError: A file cannot be written.
    """
    files = files_of(network, path)
    for other in paths_of(options, path)[1:]:
        if other not in files and is_ours(other):
            other.unlink()
    for file in sorted(files, key=lambda file: file == path):
        write_atomically(file, lambda temporary, content=files[file]: _write(temporary, content))  # type: ignore[misc]


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def export_figures(network: ExportedNetwork, options: ExportOptions, path: Path) -> dict[str, Any]:
    """Return the figures of an export, by the names that `ExportFigures` gives them."""
    folding = None if network.folded is None else Folding(folded=network.folded, batchnorms=network.batchnorms)
    files = files_of(network, path).items()
    return {
        "format": options.format,
        "batch": options.batch or "any",
        "fold_bn": folding,
        "files": [ExportedFile(path=str(file), bytes=len(content)) for file, content in files],
        "verification": ExportVerification(
            passed=True if network.random else None,
            tolerance=network.random.tolerance if network.random else TOLERANCE,
            random=_outcome(network.random),
            real=_outcome(network.real),
        ),
        "notes": list(network.notes),
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


def metadata_of(inputs: InputFormat | None, values: InputValues) -> dict[str, str]:
    """Return what a file says about its inputs and outputs, as JSON texts by key.

    An input is (pixels - mean) / std in the type `dtype`, with pixel values in `pixel_range`.

    Args:
        inputs: How images become inputs of the network without preprocessing.
        values: The numbers that the network takes.
    """
    if inputs is None:
        return {}
    data = inputs.to_dict()
    classes = data.pop("classes", [])
    data |= {"dtype": values.type_name, "pixel_range": [0, values.white]}
    if not values.normalised:
        data |= {"mean": [0.0] * len(inputs.mean), "std": [1.0] * len(inputs.std)}
    entries = {"bnprune.preprocessing": json.dumps(data)}
    return entries | ({"bnprune.classes": json.dumps(classes)} if classes else {})


def network_title(header: Header) -> str:
    """Return the name of a network in files that people read."""
    return f"{header.spec.label}, slim" if header.plans else header.spec.label


def options_of(config: ExportConfig) -> list[ExportOptions]:
    """Return the options of each export that a recipe asks for.

    Raises:
        ConfigError: A format needs an extra that is missing.
    """
    return [
        ExportOptions.of(format, fold_bn=config.fold_bn, batch=config.batch) for format in dict.fromkeys(config.formats)
    ]


@contextmanager
def _naming_keys(directory: RunDirectory, options: ExportOptions) -> Iterator[None]:
    """Name the key of the recipe, and the command for the finished run, if one batch size would help."""
    try:
        yield
    except TraceError as error:
        size = error.remedy.get("batch")
        if size is None:
            raise
        command = f"bnprune export {directory.path} --format {options.format} --batch {size}"
        raise TraceError(f"{error} In a recipe: export.batch={size}. For this run: {command}") from error


def export_run(config: PipelineConfig, directory: RunDirectory, note: Callable[[str], None]) -> RunResult:
    """Export the last network of a run as its recipe asks, add the figures to the result, and return it.

    Raises:
        BnpruneError: A format cannot be written. Files of the formats before it are kept.
    """
    wanted = options_of(config.export) if config.export else []
    result = directory.result()
    done = [export.format for export in result.exports]
    todo = [options for options in wanted if options.format not in done]
    if not todo:
        return result
    model, header = load_stage(config, directory.network())
    splits = splits_of(config)
    for options in todo:
        path = directory.export(options.suffix)
        real = real_batches(splits, options.batch)
        title = network_title(header)
        with _naming_keys(directory, options):
            network = export_network(
                model,
                splits.shape,
                options,
                title=title,
                stem=path.stem,
                real=real,
                metadata=metadata_of(header.inputs, input_values_of(model)),
            )
        write_network(network, options, path)
        figures = export_figures(network, options, path.relative_to(directory.path))
        result.exports.append(ExportFigures(**figures))
        directory.write_result(result)
        error = network.random.max_relative_error if network.random else None
        checked = "not verified" if error is None else f"relative error {error:.1e} to the eager network"
        note(f"export: {path} ({options.format}, {checked})")
        for remark in network.notes:
            note(f"export: {remark}")
    return result
