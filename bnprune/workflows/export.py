"""Export: write a network in a format that loads without bnprune, compared with the network in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bnprune.config.bounded_reading import require_batch
from bnprune.config.recipe import load_recipe
from bnprune.data import load_data
from bnprune.errors import BnpruneError, ConfigError, argument, first_line
from bnprune.exporters.artifact import SUFFIXES, Format, Wish, make_artifact
from bnprune.exporters.stage import export_figures, real_batches, title_of_network, write_artifact
from bnprune.runs.network_source import NetworkSource, open_source
from bnprune.runs.outputs import require_output
from bnprune.training.compatibility import require_fit
from bnprune.workflows.results import ExportResult


def export(
    source: str | Path | None = None,
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    input_shape: Sequence[int] | None = None,
    recipe: str | Path | None = None,
    trust: bool = False,
    format: Format | None = None,
    fold_bn: bool = False,
    batch: int | None = None,
    verify: bool = True,
    out: str | Path | None = None,
    force: bool = False,
) -> ExportResult:
    """Write a network as ONNX, as pt2 (`torch.export`), or as plain weights with a Python file.

    >>> bnprune.export("runs/digits", out="digits.onnx")

    Args:
        source: A run directory or a checkpoint.
        model: A name or `package.module:factory`, in place of `source` or to rebuild it.
        model_arguments: Keyword arguments of `model`.
        weights: File with the weights of `model`.
        input_shape: Shape of one input, without the batch.
        recipe: Recipe that names the data to compare on; default: the one in the checkpoint.
        trust: Run the code and use the paths that the files name.
        format: "onnx", "pt2" or "state-dict"; default: the one that the name of `out` ends in.
        fold_bn: Fold BatchNorms into the layers before them.
        batch: The only batch size; default: any.
        verify: Compare with the network in PyTorch on noise, and on real images if a recipe names the data.
        out: The file; default: `network` with the ending of the format.
        force: Overwrite an existing file.

    Raises:
        ConfigError: The arguments contradict each other, an extra is missing, or the file exists.
        TraceError: The network has no such form.
        VerificationError: The exported network computes something else; nothing is written.
        DataError: A file cannot be read or written.
    """
    wish, path = _wish(format, None if out is None else Path(out), fold_bn=fold_bn, batch=batch, verify=verify)
    given = [Path(read) for read in (source, weights) if read is not None]
    for file in (path, path.with_suffix(".py")) if wish.format == "state-dict" else (path,):
        require_output(file, force=force, sources=given, recipe=None if recipe is None else Path(recipe))
    network = open_source(
        source, model=model, arguments=model_arguments, weights=weights, shape=input_shape, trust=trust
    )
    shape = tuple(network.inputs.shape[1:])
    if batch is not None:
        require_batch(argument("batch"), batch, shape)
    real, without = _real(network, recipe, batch) if verify else ((), [])
    artifact = make_artifact(
        network.model, shape, wish, title=title_of_network(network.header), stem=path.stem, real=real
    )
    write_artifact(artifact, path)
    notes = [*(without if artifact.random is not None else ()), *artifact.notes]
    figures = export_figures(artifact, wish, path) | {"notes": notes}
    return ExportResult(model=network.header.spec.to_dict(), input=list(shape), **figures)


def _wish(
    format: Format | None, out: Path | None, *, fold_bn: bool, batch: int | None, verify: bool
) -> tuple[Wish, Path]:
    """Return what to make, and where to write it."""
    if batch is not None and batch < 1:
        raise ConfigError(f"{argument('batch')}: expected a positive number (got {batch}).")
    chosen = format or _format_of(out)
    path = out or Path(f"network{SUFFIXES[chosen][0]}")
    if path.suffix not in SUFFIXES[chosen]:
        endings = " or ".join(SUFFIXES[chosen])
        raise ConfigError(f"{argument('out')}: a file of format {chosen} ends in {endings} (got '{path.suffix}').")
    try:
        return Wish.of(chosen, path.suffix, fold_bn=fold_bn, batch=batch, verify=verify), path
    except ConfigError as error:
        raise ConfigError(f"{argument('format')}: {error}") from error


def _format_of(out: Path | None) -> Format:
    for format, suffixes in SUFFIXES.items():
        if out is not None and out.suffix in suffixes:
            return format
    raise ConfigError(f"{argument('format')}: choose one of {', '.join(SUFFIXES)}.")


def _real(
    network: NetworkSource, recipe: str | Path | None, batch: int | None
) -> tuple[Sequence[torch.Tensor], list[str]]:
    """Return batches of the network's data set, or none and the reason."""
    if recipe is None and network.header.config is None:
        known = argument("recipe", "CONFIG.yaml")
        return (), [f"compared on noise alone: no recipe tells the data ({known})"]
    try:
        config = network.config(sections=("data",)) if recipe is None else load_recipe(Path(recipe))
        splits = load_data(config.data)
        require_fit(network.model, splits, network.label)
        return list(real_batches(splits, batch)), []
    except BnpruneError as error:
        if recipe is not None:
            raise
        return (), [f"compared on noise alone: {first_line(error)}"]
