"""`bnprune prune`: trace, score, cut, prove, save."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnprune.cli.options import Force, InputShape, Json, Model, ModelArguments, SourcePath, Weights


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        "prune",
        epilog="Example:  bnprune prune --model torchvision/resnet18 --input 3,224,224 --ratio 0.5",
    )(prune)


def prune(
    source: SourcePath = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    input: InputShape = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            "--ratio",
            help="Share of the prunable BatchNorm channels to remove, in (0, 1).  [default: 0.5]",
            rich_help_panel="Pruning",
            show_default=False,
        ),
    ] = None,
    min_channels: Annotated[
        int, typer.Option("--min-channels", help="Channels every layer keeps.", rich_help_panel="Pruning")
    ] = 1,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="PATTERN",
            help="Layers whose width stays; repeatable.",
            rich_help_panel="Pruning",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="FILE",
            help="Replay a plan instead of making one.",
            rich_help_panel="Pruning",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan; cut and write nothing.", rich_help_panel="Pruning")
    ] = False,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help="Checkpoint to write.", rich_help_panel="Output"),
    ] = Path("slim.safetensors"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Remove channels, prove the cut, save the slim network.

    Channels go by the scale factors of their BatchNorms, the smallest first, wherever they are in the network. SOURCE
    is a run directory or a checkpoint; or give --model and --input for a network of your own.
    """
    from bnprune.cli.pruning import PruneRequest, run_prune

    request = PruneRequest(
        ratio=ratio,
        min_channels=min_channels,
        exclude=tuple(exclude or ()),
        plan=plan,
        dry_run=dry_run,
        out=out,
        force=force,
        as_json=json,
    )
    run_prune(request, source, model=model, arguments=model_arg or (), weights=weights, shape=input)
