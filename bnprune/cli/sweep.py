"""`bnprune sweep`: how far a trained network can be cut."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bnprune.cli.options import DataConfig, Json, Model, ModelArguments, Overrides, SourcePath, Trust, Weights, option


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("sweep", epilog="Example:  bnprune sweep runs/digits --tolerance 0.005")(sweep)


def sweep(
    source: SourcePath = None,
    overrides: Overrides = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    config: DataConfig = None,
    trust: Trust = False,
    by: Annotated[
        Literal["ratio", "macs"],
        typer.Option("--by", help="Vary the share of channels that goes, or the share of MACs that stays."),
    ] = "ratio",
    at: Annotated[str | None, option(None, "--at", "V,V,...", "Values to try. Default: a dozen.")] = None,
    tolerance: Annotated[
        float | None,
        option(
            None,
            "--tolerance",
            "F",
            "Loss of validation accuracy that is allowed, as a share of all images.  \\[default: prune.tolerance]",
        ),
    ] = None,
    plot: Annotated[
        Path | None, option("Output", "--plot", "FILE", "Draw into a .png or .svg file (needs matplotlib).")
    ] = None,
    json: Json = False,
) -> None:
    """Find out how far a trained network can be cut.

    Every cut is compensated and recalibrated, then evaluated on validation images; nothing is fine-tuned or written.
    SOURCE is a run directory (its sparse-trained network) or a checkpoint.
    """
    from bnprune.cli.evaluation import Subject
    from bnprune.cli.sweeping import run_sweep

    subject = Subject(source, overrides or (), model, model_arg or (), weights, config, trust)
    run_sweep(subject, by=by, at=at, tolerance=tolerance, plot=plot, as_json=json)
