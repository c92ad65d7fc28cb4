"""Exporting a network: write it in a format, load it again, and compare it with the network in PyTorch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnprune.channels.torch_internals import BatchNorm
from bnprune.config.tables import FORMATS
from bnprune.errors import ConfigError, VerificationError, first_line
from bnprune.exporters.batchnorm_folding import fold_batchnorms
from bnprune.exporters.parity import Parity, Runner, compare, dtype_of, eager, tolerance_of
from bnprune.exporters.preprocessing import input_values_of
from bnprune.exporters.request import ExportedFiles, ExportRequest
from bnprune.exporters.state_dict import no_source


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export."""

    format: str
    """A name in `FORMATS`."""
    suffix: str
    """Suffix of the main file; `.pt` makes a state dict that `torch.load` reads."""
    fold_bn: bool = False
    batch: int | None = None
    """The only batch size; None for any."""
    verify: bool = True

    @classmethod
    def of(cls, format: str, suffix: str | None = None, **options: Any) -> ExportOptions:
        """Check the options.

        Raises:
            ConfigError: The suffix belongs to another format, or the format needs an extra that is missing.
        """
        suffixes = FORMATS[format].suffixes
        suffix = suffix or suffixes[0]
        if suffix not in suffixes:
            message = f"a file of format {format} ends in {' or '.join(suffixes)} (got '{suffix}')."
            raise ConfigError(message, argument="out")
        require_packages(format)
        return cls(format, suffix, **options)


def require_packages(format: str, needed_by: str = "") -> None:
    """Raise an error if a package that a format needs is missing.

    Args:
        format: A name in `FORMATS`.
        needed_by: What needs it, for the message; the format by default.

    Raises:
        ConfigError: A package is not installed.
    """
    missing = [name for name in FORMATS[format].packages if importlib.util.find_spec(name) is None]
    if missing:
        what = needed_by or f"the format {format}"
        message = f"{what} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        raise ConfigError(message, argument="format")


@dataclass(frozen=True)
class ExportedNetwork:
    """An exported network, not yet on disk, and how far it is from the network in PyTorch."""

    files: dict[str, bytes]
    """Content by suffix."""
    folded: int | None
    """Number of BatchNorms folded into the layers before them; None if folding was not asked for."""
    batchnorms: int
    """Number of BatchNorms of the network."""
    random: Parity | None
    """Comparison on random inputs; None if nothing was verified, or the files cannot be run."""
    real: Parity | None
    """Comparison on images of the network's data set; None if that is not known."""
    notes: tuple[str, ...]


class MismatchError(VerificationError):
    """The exported network fails, or computes something else than the network in PyTorch."""


def export_network(
    model: nn.Module,
    shape: tuple[int, ...],
    options: ExportOptions,
    *,
    title: str = "network",
    stem: str = "network",
    real: Iterable[torch.Tensor] = (),
    metadata: Mapping[str, str] | None = None,
) -> ExportedNetwork:
    """Export a network and compare the result with it.

    Args:
        model: Any network that takes one batch of inputs; left untouched.
        shape: Shape of one input, without the batch dimension.
        options: Format, suffix and the like.
        title: Name of the network in files that people read.
        stem: Name of the files, without suffix.
        real: Batches of real inputs to compare on, besides random ones.
        metadata: Entries for the metadata of the file, in formats that have any.

    Raises:
        ForwardError: The forward pass fails on inputs of that shape.
        TraceError: The network cannot be traced, or not be written in this format.
        VerificationError: The exported network does not compute what the network computes.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        return _exported(model, shape, options, title, stem, real, metadata or {})
    finally:
        for module, training in modes.items():
            module.training = training


_HALVES = (torch.bfloat16, torch.float16)
_FOLDED_HALF = (
    "compared with the folded network, whose weights are rounded anew; before that, folding was proven in float64"
)


def _exported(
    model: nn.Module,
    shape: tuple[int, ...],
    options: ExportOptions,
    title: str,
    stem: str,
    real: Iterable[torch.Tensor],
    metadata: Mapping[str, str],
) -> ExportedNetwork:
    written, folded, format = model, None, FORMATS[options.format]
    if options.fold_bn:
        written, folded = fold_batchnorms(model, torch.zeros(2, *shape, dtype=dtype_of(model)))
    files: ExportedFiles = format(ExportRequest(written, shape, options.suffix, options.batch, title, stem, metadata))
    content, notes = files.content, files.notes
    on_random = on_real = None
    if options.verify and files.load is not None:
        reference = model
        if folded and dtype_of(model) in _HALVES:
            # Folding rounds the weights to half precision once more. That error is not one of the exported file.
            reference, notes = written, (*notes, _FOLDED_HALF)
        try:
            on_random, on_real = _verified(reference, files.load(), shape, options, real)
        except MismatchError as error:
            if not format.optional_files:
                raise VerificationError(f"{error} Nothing was written.") from error
            content = {suffix: data for suffix, data in content.items() if suffix not in format.optional_files}
            notes = (no_source(error),)
    return ExportedNetwork(content, folded, _batchnorms(model), on_random, on_real, notes)


def _random_batches(model: nn.Module, shape: tuple[int, ...], batch: int | None) -> Iterator[torch.Tensor]:
    generator, dtype = torch.Generator().manual_seed(0), input_values_of(model).dtype
    for size in (batch,) if batch else (1, 3):
        if dtype == torch.uint8:
            yield torch.randint(256, (size, *shape), generator=generator, dtype=dtype)
        else:
            yield torch.randn(size, *shape, generator=generator).to(dtype)


def _verified(
    model: nn.Module, runner: Runner, shape: tuple[int, ...], options: ExportOptions, real: Iterable[torch.Tensor]
) -> tuple[Parity, Parity | None]:
    """Compare on random inputs, and on real inputs if there are any.

    Raises:
        ForwardError: The network in PyTorch fails.
        VerificationError: They differ, or there is nothing to compare.
    """
    dtype = input_values_of(model).dtype
    batches = [batch.to(dtype) for batch in real if options.batch in (None, len(batch))]
    random = _compared(model, runner, _random_batches(model, shape, options.batch), "random inputs")
    return random, _compared(model, runner, batches, "real inputs") if batches else None


def _compared(model: nn.Module, runner: Runner, batches: Iterable[torch.Tensor], inputs: str) -> Parity:
    def run(batch: torch.Tensor) -> list[torch.Tensor]:
        try:
            return runner(batch)
        except Exception as error:
            raise MismatchError(
                f"the exported network does not run on {inputs} of shape {tuple(batch.shape)}: {first_line(error)}."
            ) from error

    parity = compare(eager(model), run, batches, inputs=inputs, tolerance=tolerance_of(dtype_of(model)))
    if not parity.passed:
        raise MismatchError(
            f"the exported network does not compute what the eager one does: on {inputs} the relative error is "
            f"{parity.max_relative_error:.1e} (allowed {parity.tolerance:.0e})."
        )
    return parity


def _batchnorms(model: nn.Module) -> int:
    return sum(isinstance(module, BatchNorm) for module in model.modules())
