"""`bnprune report`: write an HTML page about runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnprune.cli.options import Force, Json, option


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("report", epilog="Example:\nbnprune report runs/digits runs/digits-gates --out compared.html")(report)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)],
    out: Annotated[
        Path | None,
        option(
            "Output",
            "--out",
            "FILE",
            "File to write. Default: report.html in the run directory; for several runs, in the current folder.",
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        option("Output", "--plots", "DIR", "Also draw every figure as PNG and SVG into a folder (needs matplotlib)."),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write an HTML page about a run, or several side by side.

    The page is a single file without scripts. It shows stages, accuracy, cost, scale factors, layers, the reasons why
    layers were not pruned, the recipe and the environment.
    """
    from bnprune.cli.render.output import output
    from bnprune.cli.render.report import show_report
    from bnprune.workflows import report as workflow

    result = workflow.report(runs, out=out, plots=plots, force=force)
    output(result, lambda written: show_report(written, plots), as_json=json)
