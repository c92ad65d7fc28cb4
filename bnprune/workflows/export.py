"""Export: write a network in a format that loads without bnprune, compared with the network in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnprune.config.bounded_reading import require_batch
from bnprune.config.recipe import load_recipe
from bnprune.config.tables import FORMATS, format_of
from bnprune.errors import BnpruneError, ConfigError, Problems, first_line
from bnprune.exporters.card import model_card
from bnprune.exporters.export import ExportOptions, export_network
from bnprune.exporters.preprocessing import WithPreprocessing, input_values_of
from bnprune.exporters.stage import (
    export_figures,
    metadata_of,
    network_title,
    paths_of,
    real_batches,
    write_network,
)
from bnprune.notes import Note
from bnprune.runs.files import write_text
from bnprune.runs.network_source import NetworkSource, open_source
from bnprune.runs.outputs import require_output
from bnprune.runs.results import ExportFigures, InputFormat
from bnprune.workflows.data_source import fitting_data
from bnprune.workflows.results import ExportResult


def export(
    source: str | Path | None = None,
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    input_shape: Sequence[int] | None = None,
    recipe: str | Path | None = None,
    trust: bool = False,
    format: str | None = None,
    fold_bn: bool = False,
    batch: int | None = None,
    verify: bool = True,
    with_preprocessing: bool = False,
    byte_inputs: bool = False,
    card: bool = False,
    out: str | Path | None = None,
    force: bool = False,
) -> ExportResult:
    """Write a network as ONNX, as pt2 (`torch.export`), or as plain weights with a Python file.

    The files load without bnprune. They are compared with the network in PyTorch before they are written.

    Args:
        source: A run directory or a checkpoint.
        model: A name or `package.module:factory`, in place of `source` or to rebuild it.
        model_arguments: Keyword arguments of `model`.
        weights: File with the weights of `model`.
        pretrained: Load the weights that torchvision or timm publish for `model`.
        input_shape: Shape of one input, without the batch.
        recipe: Recipe that names the data to compare on; default: the one in the checkpoint.
        trust: Run the code and use the paths that the files name.
        format: A name in `FORMATS`: "onnx", "pt2" or "state-dict"; default: by the suffix of `out`.
        fold_bn: Fold BatchNorms into the layers before them.
        batch: The only batch size; default: any.
        verify: Compare with the network in PyTorch on random inputs and, if a recipe names the data, on real images.
        with_preprocessing: Let the file normalise its inputs itself: it then takes pixel values between 0 and 1.
        byte_inputs: The same for pixel values as bytes: uint8, from 0 to 255.
        card: Write a model card, a page in Markdown, beside the file.
        out: The file; default: `network` with the suffix of the format.
        force: Overwrite an existing file.

    Returns:
        The files, and the largest errors of the comparison; `to_dict()` is what `export --json` prints.

    Raises:
        ConfigError: The arguments contradict each other, an extra is missing, or the file exists.
        TraceError: The network cannot be written in this format.
        VerificationError: The exported network computes something else; nothing is written.
        DataError: A file cannot be read or written.

    Example::

        result = bnprune.export("runs/digits", out="digits.pt2", with_preprocessing=True, card=True)
        print(result.verification.passed)  # True
        network = torch.export.load("digits.pt2").module()
    """
    options, path = _options(format, None if out is None else Path(out), fold_bn=fold_bn, batch=batch, verify=verify)
    given = [Path(read) for read in (source, weights) if read is not None]
    problems = Problems()
    for file in [*paths_of(options, path), *([path.with_suffix(".md")] if card else [])]:
        with problems.noted():
            require_output(file, force=force, sources=given, recipe=None if recipe is None else Path(recipe))
    with problems.noted():
        network = open_source(
            source,
            model=model,
            arguments=model_arguments,
            weights=weights,
            pretrained=pretrained and not problems,  # no download if something is wrong already
            shape=input_shape,
            needs_shape=True,
            trust=trust,
        )
        shape = tuple(network.inputs.shape[1:])
        if batch is not None:
            require_batch(batch, shape)
    problems.raise_all()
    real, without = _real(network, recipe, batch) if verify else ((), [])
    title, written, inputs = network_title(network.header), network.model, network.header.inputs
    if with_preprocessing or byte_inputs:
        written = _normalising(written, inputs, options, byte_inputs=byte_inputs)
        real = list(written.pixels(real))
    metadata = metadata_of(inputs, input_values_of(written))
    exported = export_network(written, shape, options, title=title, stem=path.stem, real=real, metadata=metadata)
    write_network(exported, options, path)
    notes = [*(without if exported.random is not None else ()), *exported.notes]
    if inputs is not None and not isinstance(written, WithPreprocessing):
        notes.append(_to_normalise(inputs, options.format))
    figures = export_figures(exported, options, path) | {"notes": notes}
    if card:
        text = model_card(network.header, shape, ExportFigures(**figures), input_values_of(written))
        write_text(path.with_suffix(".md"), text)
    return ExportResult(model=network.header.spec.to_dict(), input=list(shape), **figures)


def _to_normalise(inputs: InputFormat, format: str) -> Note:
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (inputs.mean, inputs.std))
    text = f"inputs have to be images from 0 to 1, normalised with mean {mean} and standard deviation {std}"
    if FORMATS[format].has_batch_size:
        text += "; an export with preprocessing does that itself"
    return Note("export.normalise", "note", text)


def _normalising(
    model: nn.Module, inputs: InputFormat | None, options: ExportOptions, *, byte_inputs: bool
) -> WithPreprocessing:
    """Return the network with the normalisation of its inputs as the first step.

    Raises:
        ConfigError: The normalisation is not known, or the format holds the weights alone.
    """
    argument = "byte_inputs" if byte_inputs else "with_preprocessing"
    if not FORMATS[options.format].has_batch_size:
        message = f"the format {options.format} holds the weights of the network alone. Choose another format."
        raise ConfigError(message, argument=argument)
    if inputs is None:
        raise ConfigError(
            "the checkpoint does not say how its images were normalised: the data was your own, or an earlier version "
            "of bnprune wrote it. Give data.mean and data.std in the recipe, and run the last stage again.",
            argument=argument,
        )
    return WithPreprocessing(model, inputs.mean, inputs.std, byte_inputs=byte_inputs)


def _options(
    format: str | None, out: Path | None, *, fold_bn: bool, batch: int | None, verify: bool
) -> tuple[ExportOptions, Path]:
    """Return the options of the export, and its main file."""
    if batch is not None and batch < 1:
        raise ConfigError(f"expected a positive number (got {batch}).", argument="batch")
    chosen = format or (None if out is None else format_of(out.suffix))
    if chosen not in FORMATS:
        raise ConfigError(f"choose one of {', '.join(FORMATS)}.", argument="format")
    path = out or Path(f"network{FORMATS[chosen].suffixes[0]}")
    return ExportOptions.of(chosen, path.suffix, fold_bn=fold_bn, batch=batch, verify=verify), path


def _real(
    network: NetworkSource, recipe: str | Path | None, batch: int | None
) -> tuple[Sequence[torch.Tensor], list[str]]:
    """Return batches of the network's data set, or none and the reason."""
    if recipe is None and network.header.config is None:
        return (), ["compared on random inputs only: no recipe names the data"]
    try:
        config = network.config(sections=("data", "task")) if recipe is None else load_recipe(Path(recipe))
        splits, _ = fitting_data(network, config)
        return list(real_batches(splits, batch)), []
    except BnpruneError as error:
        if recipe is not None:
            raise
        return (), [f"compared on random inputs only: {first_line(error)}"]
