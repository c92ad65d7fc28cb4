"""`bnprune validate`: check a recipe without training."""

from __future__ import annotations

from typing import Annotated

import typer

from bnprune.cli.options import Config, Json, Overrides


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("validate", epilog="Example:\nbnprune validate digits.yaml train.lr=0.05 --print")(validate)


def validate(
    config: Config,
    overrides: Overrides = None,
    print_config: Annotated[bool, typer.Option("--print", help="Print the resolved recipe.")] = False,
    json: Json = False,
) -> None:
    """Check a recipe without training.

    All keys are checked, the network is built, the data is opened, and the prune stage is planned.
    """
    from bnprune.cli.render.output import output
    from bnprune.cli.render.validate import show_validate
    from bnprune.workflows import validate as workflow

    result = workflow.validate(config, overrides or ())
    output(result, lambda valid: show_validate(valid, config, print_config=print_config), as_json=json)
