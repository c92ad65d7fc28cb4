"""What `export` does and prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bnprune.cli.display import print_json, show_rows, stdout, tell
from bnprune.cli.error_messages import naming_options
from bnprune.config.bounded_reading import require_batch
from bnprune.config.recipe import load_recipe
from bnprune.config.tables import FORMATS, format_of
from bnprune.data import load_data
from bnprune.errors import BnpruneError, ConfigError, first_line
from bnprune.exporters.export import ExportedNetwork, ExportOptions, export_network
from bnprune.exporters.parity import Parity
from bnprune.exporters.stage import (
    describe_network,
    files_of,
    paths_of,
    real_batches,
    title_of_network,
    write_network,
)
from bnprune.runs.network_source import NetworkSource
from bnprune.runs.outputs import require_output
from bnprune.training.compatibility import require_fit

EXPORT_SCHEMA = "bnprune.export/1"


@dataclass(frozen=True)
class Export:
    """What the command line asks of `export`."""

    format: str | None
    out: Path | None
    fold_bn: bool
    batch: int | None
    verify: bool
    force: bool
    recipe: Path | None
    given: tuple[Path, ...] = ()
    """Files and run directories the network is read from."""

    def check(self) -> tuple[ExportOptions, Path]:
        """Return the options of the export, and its main file.

        Raises:
            ConfigError: The options contradict each other, an extra is missing, or something is in the way.
        """
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"--batch: expected a positive number (got {self.batch}).")
        format = self.format or (format_of(self.out.suffix) if self.out is not None else None)
        if format is None:
            raise ConfigError(f"--format: choose one of {', '.join(FORMATS)}.")
        path = self.out or Path(f"network{FORMATS[format].suffixes[0]}")
        with naming_options():
            options = ExportOptions.of(format, path.suffix, fold_bn=self.fold_bn, batch=self.batch, verify=self.verify)
        for file in paths_of(options, path):
            require_output(file, force=self.force, sources=self.given, recipe=self.recipe)
        return options, path


def run_export(source: NetworkSource, request: Export, *, as_json: bool) -> None:
    """Export a network."""
    options, path = request.check()
    shape = tuple(source.inputs.shape[1:])
    if request.batch is not None:
        require_batch("--batch", request.batch, shape)
    real, without = _real(source, request) if request.verify else ((), [])
    with naming_options():
        title = title_of_network(source.header)
        network = export_network(source.model, shape, options, title=title, stem=path.stem, real=real)
    notes = [*(without if network.random is not None else ()), *network.notes]
    write_network(network, options, path)
    if as_json:
        document = describe_network(network, options, path) | {"notes": notes}
        about = {"schema": EXPORT_SCHEMA, "model": source.header.spec.to_dict(), "input": list(shape)}
        print_json({**about, **document})
        return
    _show(network, options, path, notes)


def _real(source: NetworkSource, request: Export) -> tuple[Sequence[torch.Tensor], list[str]]:
    """Return batches of the data set the network comes with, or why there are none."""
    if request.recipe is None and source.header.config is None:
        return (), ["compared on noise alone: no recipe tells the data (--config CONFIG.yaml)"]
    try:
        config = load_recipe(request.recipe) if request.recipe is not None else source.config(sections=("data",))
        splits = load_data(config.data)
        require_fit(source.model, splits, source.label)
        return list(real_batches(splits, request.batch)), []
    except BnpruneError as error:
        if request.recipe is not None:
            raise
        return (), [f"compared on noise alone: {first_line(error)}"]


def _show(network: ExportedNetwork, options: ExportOptions, path: Path, notes: Sequence[str]) -> None:
    console = stdout()
    parities = {"noise": network.random, "real images": network.real}
    rows = [_row(name, parity) for name, parity in parities.items() if parity is not None]
    if rows:
        show_rows(["compared with PyTorch on", "inputs", "max abs", "max relative", "same argmax"], rows)
    else:
        console.print("not verified")
    if network.folded is not None:
        console.print(f"folded {network.folded} of {network.batchnorms} BatchNorms, proven equal in float64")
    for note in notes:
        tell(console, f"note: {note}")
    batch = f"batch {options.batch}" if options.batch else "any batch size"
    for file, content in files_of(network, path).items():
        what = f", {batch}" if FORMATS[options.format].has_batch_size else ""
        tell(console, f"wrote {file} ({len(content) / 1e6:.2f} MB{what})")


def _row(name: str, parity: Parity) -> tuple[str, ...]:
    agreement = "" if parity.argmax_agreement is None else f"{parity.argmax_agreement:.1%}"
    return name, str(parity.inputs), f"{parity.max_absolute_error:.1e}", f"{parity.max_relative_error:.1e}", agreement
