"""`bnprune train`: the training stage of a recipe."""

from __future__ import annotations

import typer

from bnprune.cli.loading import loading_torch
from bnprune.cli.options import Config, Force, Gpus, Json, OutDirectory, Overrides, ProcessCount, Resume
from bnprune.cli.processes import with_processes


def register(app: typer.Typer) -> None:
    """Add the verb."""
    example = "Example:\nbnprune train digits.yaml --out runs/sparse train.sparsity.lambda=1e-4"
    app.command("train", epilog=example)(train)


def train(
    config: Config,
    overrides: Overrides = None,
    out: OutDirectory = None,
    resume: Resume = False,
    gpus: Gpus = None,
    processes: ProcessCount = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Train with a penalty on the scale factors (γ)."""
    if with_processes(gpus, processes):
        return
    with loading_torch():
        from bnprune.cli.render.run import run_with_progress
        from bnprune.workflows import run as workflow

    run_with_progress(
        lambda display: workflow.train(config, overrides or (), out=out, resume=resume, force=force, display=display),
        as_json=json,
    )
