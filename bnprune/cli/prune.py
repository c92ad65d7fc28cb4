"""`bnprune prune`: trace, score, cut, prove, save."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bnprune.cli.options import Force, InputShape, Json, Model, ModelArguments, SourcePath, Trust, Weights, option

_PRUNING = "Pruning"
DEFAULT_RATIO, DEFAULT_FLOOR = 0.5, 1
"""Not the options' own defaults: beside --plan it matters whether they were given."""


Ratio = Annotated[
    float | None,
    option(
        _PRUNING,
        "--ratio",
        "R",
        f"Share of the prunable BatchNorm channels to remove, in (0, 1).  \\[default: {DEFAULT_RATIO}, "
        "unless another target is given]",
    ),
]
Macs = Annotated[
    float | None,
    option(_PRUNING, "--macs", "F", "Share of the MACs to keep at most, in (0, 1)."),
]
Params = Annotated[
    float | None,
    option(_PRUNING, "--params", "F", "Share of the parameters to keep at most, in (0, 1)."),
]
Latency = Annotated[
    float | None,
    option(_PRUNING, "--latency", "MS", "Milliseconds a forward pass of one input may take on this machine; measured."),
]
RoundTo = Annotated[
    int | None,
    option(_PRUNING, "--round-to", "N", "Widths that are a multiple of N stay multiples of N."),
]
Cap = Annotated[
    float | None,
    option(_PRUNING, "--cap", "F", "Largest share of a layer's channels that goes."),
]
CriterionOption = Annotated[
    str | None,
    option(
        _PRUNING,
        "--criterion",
        "NAME",
        "What ranks channels: gamma (the paper), gamma-per-mac, or a control arm: uniform, random, l1, l2.  "
        "\\[default: gamma]",
    ),
]
Floor = Annotated[
    int | None,
    option(_PRUNING, "--min-channels", "N", f"Channels every layer keeps.  \\[default: {DEFAULT_FLOOR}]"),
]
Exclude = Annotated[
    list[str] | None,
    option(_PRUNING, "--exclude", "PATTERN", "Layers whose width stays; repeatable."),
]
CouplingOption = Annotated[
    Literal["shared", "gates"] | None,
    option(
        _PRUNING,
        "--coupling",
        "HOW",
        "shared: layers that share a stream of channels lose the same ones; gates: each its own, behind gates.  "
        "\\[default: shared]",
    ),
]
Compensate = Annotated[
    bool,
    typer.Option(
        "--compensate/--no-compensate",
        help="Put what removed channels said, act(β), into the biases behind them (after the proof).",
        rich_help_panel=_PRUNING,
    ),
]
FoldBias = Annotated[
    bool,
    typer.Option(
        "--fold-bias",
        help="Put biases that nothing but a following BatchNorm sees into its running mean.",
        rich_help_panel=_PRUNING,
    ),
]
PlanFile = Annotated[
    Path | None,
    option(_PRUNING, "--plan", "FILE", "Replay a plan instead of making one."),
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
    trust: Trust = False,
    ratio: Ratio = None,
    macs: Macs = None,
    params: Params = None,
    latency: Latency = None,
    min_channels: Floor = None,
    cap: Cap = None,
    round_to: RoundTo = None,
    exclude: Exclude = None,
    criterion: CriterionOption = None,
    coupling: CouplingOption = None,
    fold_bias: FoldBias = False,
    compensate: Compensate = True,
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
    from bnprune.errors import ConfigError
    from bnprune.pruning.request import Request

    targets = {"--ratio": ratio, "--macs": macs, "--params": params, "--latency": latency}
    wanted = [option for option, value in targets.items() if value is not None]
    if len(wanted) > 1:
        raise ConfigError(f"{' and '.join(wanted)}: give one target.")
    given = {
        **targets,
        "--min-channels": min_channels,
        "--cap": cap,
        "--round-to": round_to,
        "--exclude": exclude,
        "--criterion": criterion,
        "--coupling": coupling,
        "--fold-bias": fold_bias or None,
    }
    request = PruneRequest(
        what=Request(
            ratio=ratio if wanted else DEFAULT_RATIO,
            macs=macs,
            params=params,
            latency_ms=latency,
            min_channels=DEFAULT_FLOOR if min_channels is None else min_channels,
            cap=1.0 if cap is None else cap,
            round_to=1 if round_to is None else round_to,
            exclude=tuple(exclude or ()),
            criterion=criterion or "gamma",
            coupling=coupling or "shared",
            fold_bias=fold_bias,
        ),
        plan=plan,
        compensate=compensate,
        given=tuple(option for option, value in given.items() if value not in (None, [])),
        dry_run=dry_run,
        out=out,
        force=force,
        as_json=json,
    )
    run_prune(request, source, model=model, arguments=model_arg or (), weights=weights, shape=input, trust=trust)
