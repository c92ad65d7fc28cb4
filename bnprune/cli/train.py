"""`bnprune train`: the training stage of a recipe."""

from __future__ import annotations

import typer

from bnprune.cli.options import Config, Force, Json, OutDirectory, Overrides, Resume


def register(app: typer.Typer) -> None:
    """Add the verb."""
    example = "Example:  bnprune train digits.yaml --out runs/sparse train.sparsity.lambda=1e-4"
    app.command("train", epilog=example)(train)


def train(
    config: Config,
    overrides: Overrides = None,
    out: OutDirectory = None,
    resume: Resume = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Train with a penalty on the scale factors (γ)."""
    from bnprune.cli.stages import run_recipe

    run_recipe(
        config, overrides or (), verb="train", stages=("train",), out=out, resume=resume, force=force, as_json=json
    )
