"""What `export` does and prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bnprune.cli.display import print_json, show_rows, stdout, tell
from bnprune.config.bounded_reading import require_batch
from bnprune.config.recipe import load_recipe
from bnprune.data import load_data
from bnprune.errors import BnpruneError, ConfigError, first_line
from bnprune.exporters.artifact import SUFFIXES, Artifact, Format, Wish, make_artifact
from bnprune.exporters.parity import Parity
from bnprune.exporters.stage import describe_artifact, files_of, real_batches, title_of_network, write_artifact
from bnprune.runs.network_source import NetworkSource
from bnprune.runs.outputs import require_output
from bnprune.training.compatibility import require_fit

EXPORT_SCHEMA = "bnprune.export/1"


@dataclass(frozen=True)
class Export:
    """What the command line asks of `export`."""

    format: Format | None
    out: Path | None
    fold_bn: bool
    batch: int | None
    verify: bool
    force: bool
    recipe: Path | None
    given: tuple[Path, ...] = ()
    """Files and run directories the network is read from."""

    def check(self) -> tuple[Wish, Path]:
        """Return what to make, and where.

        Raises:
            ConfigError: The options contradict each other, an extra is missing, or something is in the way.
        """
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"--batch: expected a positive number (got {self.batch}).")
        format = self.format or self._told()
        path = self.out or Path(f"network{SUFFIXES[format][0]}")
        try:
            wish = Wish.of(format, path.suffix, fold_bn=self.fold_bn, batch=self.batch, verify=self.verify)
        except ConfigError as error:
            raise ConfigError(f"--out: {error}" if "ends in" in str(error) else f"--format: {error}") from error
        for file in (path, path.with_suffix(".py")) if format == "state-dict" else (path,):
            require_output(file, force=self.force, sources=self.given, recipe=self.recipe)
        return wish, path

    def _told(self) -> Format:
        suffix = self.out.suffix if self.out is not None else None
        for format, suffixes in SUFFIXES.items():
            if suffix in suffixes:
                return format
        raise ConfigError(f"--format: choose one of {', '.join(SUFFIXES)}.")


def run_export(source: NetworkSource, request: Export, *, as_json: bool) -> None:
    """Export a network."""
    wish, path = request.check()
    shape = tuple(source.inputs.shape[1:])
    if request.batch is not None:
        require_batch("--batch", request.batch, shape)
    real, without = _real(source, request) if request.verify else ((), [])
    artifact = make_artifact(
        source.model, shape, wish, title=title_of_network(source.header), stem=path.stem, real=real
    )
    notes = [*(without if artifact.random is not None else ()), *artifact.notes]
    write_artifact(artifact, path)
    if as_json:
        document = describe_artifact(artifact, wish, path) | {"notes": notes}
        about = {"schema": EXPORT_SCHEMA, "model": source.header.spec.to_dict(), "input": list(shape)}
        print_json({**about, **document})
        return
    _show(artifact, wish, path, notes)


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


def _show(artifact: Artifact, wish: Wish, path: Path, notes: Sequence[str]) -> None:
    console = stdout()
    parities = {"noise": artifact.random, "real images": artifact.real}
    rows = [_row(name, parity) for name, parity in parities.items() if parity is not None]
    if rows:
        show_rows(["compared with PyTorch on", "inputs", "max abs", "max relative", "same argmax"], rows)
    else:
        console.print("not verified")
    if artifact.folded is not None:
        console.print(f"folded {artifact.folded} of {artifact.batchnorms} BatchNorms, proven equal in float64")
    for note in notes:
        tell(console, f"note: {note}")
    batch = f"batch {wish.batch}" if wish.batch else "any batch size"
    for file, content in files_of(artifact, path).items():
        what = f", {batch}" if wish.format != "state-dict" else ""
        tell(console, f"wrote {file} ({len(content) / 1e6:.2f} MB{what})")


def _row(name: str, parity: Parity) -> tuple[str, ...]:
    agreement = "" if parity.argmax_agreement is None else f"{parity.argmax_agreement:.1%}"
    return name, str(parity.inputs), f"{parity.max_absolute_error:.1e}", f"{parity.max_relative_error:.1e}", agreement
