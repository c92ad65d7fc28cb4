"""`bnprune sweep`: how far a trained network can be cut."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bnprune.cli.options import Json, Model, ModelArguments, Overrides, SourcePath, Weights


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("sweep", epilog="Example:  bnprune sweep runs/digits --tolerance 0.005")(sweep)


def sweep(
    source: SourcePath = None,
    overrides: Overrides = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="CONFIG",
            help="Recipe whose data and constraints to use. Default: the one in the checkpoint.",
            rich_help_panel="Input",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        Literal["ratio", "macs"],
        typer.Option("--by", help="Vary the share of channels that goes, or the share of MACs that stays."),
    ] = "ratio",
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="V,V,...", help="Values to try. Default: a dozen.", show_default=False),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            help="Loss of validation accuracy that is allowed, as a share of all images.  \\[default: prune.tolerance]",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw into a .png or .svg file (needs matplotlib).",
            rich_help_panel="Output",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Find out how far a trained network can be cut.

    Every cut is compensated and recalibrated, then evaluated on validation images; nothing is fine-tuned or written.
    SOURCE is a run directory (its sparse-trained network) or a checkpoint.
    """
    from bnprune.cli.sweeping import run_sweep

    run_sweep(
        source,
        overrides or (),
        model=model,
        arguments=model_arg or (),
        weights=weights,
        recipe=config,
        by=by,
        at=at,
        tolerance=tolerance,
        plot=plot,
        as_json=json,
    )
