"""`bnprune report`: what a run did, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnprune.cli.options import Force, Json, option


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("report", epilog="Example:  bnprune report runs/digits runs/digits-gates --out compared.html")(report)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)],
    out: Annotated[
        Path | None,
        option("Output", "--out", "FILE", "The page. Default: report.html in the run, or here for several runs."),
    ] = None,
    plots: Annotated[
        Path | None,
        option("Output", "--plots", "DIR", "Also draw every figure as PNG and SVG into a folder (needs matplotlib)."),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write an HTML page about a run, or several side by side.

    One file that needs no network and no script: stages, accuracy, cost, scale factors, layers, what had to stay and
    why, recipe and environment.
    """
    from bnprune.cli.render.output import output
    from bnprune.cli.render.report import show_report
    from bnprune.workflows import report as workflow

    result = workflow.report(runs, out=out, plots=plots, force=force)
    output(result, lambda written: show_report(written, plots), as_json=json)
