"""`bnprune run`: the whole recipe."""

from __future__ import annotations

import typer

from bnprune.cli.options import Config, Force, Json, OutDirectory, Overrides, Resume


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("run", epilog="Example:  bnprune run digits.yaml --out runs/digits train.epochs=10")(run)


def run(
    config: Config,
    overrides: Overrides = None,
    out: OutDirectory = None,
    resume: Resume = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Run a recipe: train sparse, prune, fine-tune."""
    from bnprune.cli.stages import run_recipe

    run_recipe(config, overrides or (), verb="run", stages=None, out=out, resume=resume, force=force, as_json=json)
