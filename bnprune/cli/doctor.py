"""`bnprune doctor`: versions, devices, and what is wrong with them."""

from __future__ import annotations

import typer

from bnprune.cli.options import Json


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("doctor", epilog="Example:  bnprune doctor --json")(doctor)


def doctor(json: Json = False) -> None:
    """Show versions and devices, and explain problems."""
    from bnprune.cli.diagnosis import run_doctor

    run_doctor(as_json=json)
