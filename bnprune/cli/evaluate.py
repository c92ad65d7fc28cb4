"""`bnprune evaluate`: accuracy of a network."""

from __future__ import annotations

import typer

from bnprune.cli.options import DataConfig, Json, Model, ModelArguments, Overrides, SourcePath, Trust, Weights


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("evaluate", epilog="Example:  bnprune evaluate runs/digits")(evaluate)


def evaluate(
    source: SourcePath = None,
    overrides: Overrides = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    config: DataConfig = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Measure accuracy and loss of a network."""
    from bnprune.cli.evaluation import Subject, run_evaluate

    run_evaluate(Subject(source, overrides or (), model, model_arg or (), weights, config, trust), as_json=json)
