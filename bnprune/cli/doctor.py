"""`bnprune doctor`: versions, devices, and problems of the installation."""

from __future__ import annotations

import typer

from bnprune.cli.options import Json


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("doctor", epilog="Example:\nbnprune doctor --json")(doctor)


def doctor(json: Json = False) -> None:
    """Show versions and devices, and explain problems."""
    from bnprune.cli.render.doctor import show_doctor
    from bnprune.cli.render.output import output
    from bnprune.errors import DataError
    from bnprune.workflows import doctor as workflow

    result = workflow.doctor()
    output(result, show_doctor, as_json=json)
    if result.problems:
        raise typer.Exit(DataError.exit_code)
