"""`bnprune prune`: trace, rank, prune, verify, save."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bnprune.cli.options import (
    PRUNING,
    Force,
    InputShape,
    Json,
    Model,
    ModelArguments,
    Pretrained,
    SourcePath,
    Stage,
    Trust,
    Weights,
    option,
    with_prune_flags,
)
from bnprune.config.prune_options import DEFAULT_RATIO, prune_options

Compensate = Annotated[
    bool,
    typer.Option(
        "--compensate/--no-compensate",
        help="After verification, add the constant outputs of removed channels, act(β), to the next biases.",
        rich_help_panel=PRUNING,
    ),
]
Calibrate = Annotated[
    str | None,
    option(
        PRUNING,
        "--calibrate",
        "DIR",
        "Folder of images, of any structure, or package.module:factory that returns batches: to rank channels by "
        "activations, and to repair the slim network. Default: training images of the stored recipe.",
    ),
]
Mean = Annotated[
    str | None,
    option(
        PRUNING,
        "--mean",
        "R,G,B",
        "Mean of the pixel values, from 0 to 1, to normalise the images of --calibrate with. Default: that of the "
        "training images, if it is known, or of ImageNet.",
    ),
]
Std = Annotated[
    str | None,
    option(PRUNING, "--std", "R,G,B", "Standard deviation of the pixel values, as for --mean."),
]
PlanFile = Annotated[
    Path | None,
    option(PRUNING, "--plan", "FILE", "Apply a saved plan instead of making one."),
]
ProfileFile = Annotated[
    Path | None,
    option(
        PRUNING,
        "--profile",
        "FILE",
        "Latency profile for --latency (see `bnprune profile`); gives batch size and backend.",
    ),
]
SensitivityFile = Annotated[
    Path | None,
    option(
        PRUNING,
        "--sensitivity",
        "FILE",
        "Sensitivity table (see `bnprune sensitivity`): all groups of layers lose the same accuracy.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan without pruning; write nothing.", rich_help_panel=PRUNING)
]
OutFile = Annotated[
    Path,
    typer.Option("--out", metavar="FILE", help="Checkpoint to write.", rich_help_panel="Output"),
]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        "prune",
        epilog="Example:\nbnprune prune --model torchvision/resnet18 --input 3,224,224 --ratio 0.5",
    )(prune)


@with_prune_flags()
def prune(
    source: SourcePath = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    input: InputShape = None,
    stage: Stage = None,
    trust: Trust = False,
    asked: dict[str, Any] | None = None,
    calibrate: Calibrate = None,
    mean: Mean = None,
    std: Std = None,
    compensate: Compensate = True,
    plan: PlanFile = None,
    profile: ProfileFile = None,
    sensitivity: SensitivityFile = None,
    dry_run: DryRun = False,
    out: OutFile = Path("slim.safetensors"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Remove channels, verify the slim network, save it.

    The BatchNorm channels with the smallest scale factors in the whole network are removed. SOURCE is a run directory
    or a checkpoint; for a network of your own, give --model and --input instead.
    """
    from bnprune.cli.arguments import checkpoint_of, parse_arguments, parse_numbers, parse_shape
    from bnprune.cli.render.output import output
    from bnprune.cli.render.progress import RichDisplay
    from bnprune.cli.render.prune import show_prune
    from bnprune.errors import ConfigError
    from bnprune.pruning.request import Request
    from bnprune.workflows import prune as workflow

    asked, options = asked or {}, prune_options()
    targets = [name for name in asked if options[name].is_target]
    if len(targets) > 1:
        raise ConfigError(f"{' and '.join(str(options[name].flag) for name in targets)}: give one target.")
    if plan is not None and asked:
        given = " and ".join(str(options[name].flag) for name in asked)
        raise ConfigError(f"--plan replays a plan as it is; leave {given} out.")
    request = None if plan is not None else Request(**(asked if targets else {"ratio": DEFAULT_RATIO, **asked}))
    with RichDisplay() as display:
        result = workflow.prune(
            checkpoint_of(source, stage),
            request,
            model=model,
            model_arguments=parse_arguments(model_arg),
            weights=weights,
            pretrained=pretrained,
            input_shape=parse_shape(input),
            trust=trust,
            plan=plan,
            profile=profile,
            sensitivity=sensitivity,
            compensated=compensate,
            calibrate=calibrate,
            mean=parse_numbers(mean, "--mean"),
            std=parse_numbers(std, "--std"),
            dry_run=dry_run,
            out=out,
            force=force,
            display=display,
        )
    output(result, show_prune, as_json=json)
