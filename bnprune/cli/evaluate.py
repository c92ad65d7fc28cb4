"""`bnprune evaluate`: accuracy of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnprune.cli.options import Json, Model, ModelArguments, Overrides, SourcePath, Weights


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("evaluate", epilog="Example:  bnprune evaluate runs/digits")(evaluate)


def evaluate(
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
            help="Recipe whose data to use. Default: the one in the checkpoint.",
            rich_help_panel="Input",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure accuracy and loss of a network."""
    from bnprune.cli.evaluation import run_evaluate

    run_evaluate(
        source, overrides or (), model=model, arguments=model_arg or (), weights=weights, recipe=config, as_json=json
    )
