"""`bnprune prune`: trace, score, cut, prove, save."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bnprune.cli.options import Force, InputShape, Json, Model, ModelArguments, SourcePath, Weights

_PRUNING = "Pruning"
DEFAULT_RATIO, DEFAULT_FLOOR = 0.5, 1
"""Not the options' own defaults: beside --plan it matters whether they were given."""


Ratio = Annotated[
    float | None,
    typer.Option(
        "--ratio",
        help=f"Share of the prunable BatchNorm channels to remove, in (0, 1).  \\[default: {DEFAULT_RATIO}]",
        rich_help_panel=_PRUNING,
        show_default=False,
    ),
]
Floor = Annotated[
    int | None,
    typer.Option(
        "--min-channels",
        help=f"Channels every layer keeps.  \\[default: {DEFAULT_FLOOR}]",
        rich_help_panel=_PRUNING,
        show_default=False,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        help="Layers whose width stays; repeatable.",
        rich_help_panel=_PRUNING,
        show_default=False,
    ),
]
CouplingOption = Annotated[
    Literal["shared", "gates"] | None,
    typer.Option(
        "--coupling",
        help="Whether layers that share a stream of channels lose the same ones, or each its own behind gates.  "
        "\\[default: shared]",
        rich_help_panel=_PRUNING,
        show_default=False,
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        help="Replay a plan instead of making one.",
        rich_help_panel=_PRUNING,
        show_default=False,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan; cut and write nothing.", rich_help_panel=_PRUNING)
]
OutFile = Annotated[
    Path,
    typer.Option("--out", metavar="FILE", help="Checkpoint to write.", rich_help_panel="Output"),
]


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
    ratio: Ratio = None,
    min_channels: Floor = None,
    exclude: Exclude = None,
    coupling: CouplingOption = None,
    plan: PlanFile = None,
    dry_run: DryRun = False,
    out: OutFile = Path("slim.safetensors"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Remove channels, prove the cut, save the slim network.

    Channels go by the scale factors of their BatchNorms, the smallest first, wherever they are in the network. SOURCE
    is a run directory or a checkpoint; or give --model and --input for a network of your own.
    """
    from bnprune.cli.pruning import PruneRequest, run_prune
    from bnprune.pruning.request import Request

    given = {"--ratio": ratio, "--min-channels": min_channels, "--exclude": exclude, "--coupling": coupling}
    request = PruneRequest(
        what=Request(
            ratio=DEFAULT_RATIO if ratio is None else ratio,
            min_channels=DEFAULT_FLOOR if min_channels is None else min_channels,
            exclude=tuple(exclude or ()),
            coupling=coupling or "shared",
        ),
        plan=plan,
        given=tuple(option for option, value in given.items() if value not in (None, [])),
        dry_run=dry_run,
        out=out,
        force=force,
        as_json=json,
    )
    run_prune(request, source, model=model, arguments=model_arg or (), weights=weights, shape=input)
