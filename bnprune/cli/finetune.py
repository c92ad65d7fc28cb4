"""`bnprune finetune`: recover the accuracy of a pruned network by training it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnprune.cli.loading import loading_torch
from bnprune.cli.options import (
    DataConfig,
    Force,
    Gpus,
    Json,
    Model,
    ModelArguments,
    OutDirectory,
    Overrides,
    ProcessCount,
    Resume,
    Teacher,
    Trust,
    Unlabelled,
)
from bnprune.cli.processes import with_processes


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("finetune", epilog="Example:\nbnprune finetune slim.safetensors finetune.epochs=20")(finetune)


def finetune(
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", help="Pruned checkpoint or run directory.")],
    changes: Overrides = None,
    config: DataConfig = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    teacher: Teacher = None,
    unlabelled: Unlabelled = None,
    trust: Trust = False,
    out: OutDirectory = None,
    resume: Resume = False,
    gpus: Gpus = None,
    processes: ProcessCount = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Recover the accuracy of a pruned checkpoint.

    A checkpoint of a run contains its network, plan and recipe. For other checkpoints, give a recipe (--config).
    KEY=VALUE overrides keys of the recipe. With finetune.distill=true, the network also learns from the network before
    pruning, which is found in a run directory; otherwise, name its checkpoint with --teacher. With --unlabelled, no
    labels are needed: it learns from the outputs of that network alone.
    """
    if with_processes(gpus, processes):
        return
    with loading_torch():
        from bnprune.cli.arguments import parse_arguments, recipe_and_overrides
        from bnprune.cli.render.run import run_with_progress
        from bnprune.workflows import run as workflow

    recipe, overrides = recipe_and_overrides(changes or (), config)
    arguments = parse_arguments(model_arg)
    run_with_progress(
        lambda display: workflow.finetune(
            pruned,
            recipe,
            overrides,
            model=model,
            model_arguments=arguments,
            teacher=teacher,
            unlabelled=unlabelled,
            trust=trust,
            out=out,
            resume=resume,
            force=force,
            display=display,
        ),
        as_json=json,
    )
