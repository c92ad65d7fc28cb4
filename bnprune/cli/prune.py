"""`bnprune prune`: trace, score, cut, prove, save."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bnprune.cli.options import Force, InputShape, Json, Model, ModelArguments, SourcePath, Trust, Weights, option

_PRUNING = "Pruning"
DEFAULT_RATIO, DEFAULT_FLOOR = 0.5, 1
"""Not the defaults of the options: with --plan, an option that is given is an error."""


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
    from bnprune.cli.arguments import parse_arguments, parse_shape, prune_request
    from bnprune.cli.render.output import output
    from bnprune.cli.render.progress import RichDisplay
    from bnprune.cli.render.prune import show_prune
    from bnprune.workflows import prune as workflow

    wanted = {
        "ratio": ratio,
        "macs": macs,
        "params": params,
        "latency_ms": latency,
        "min_channels": min_channels,
        "cap": cap,
        "round_to": round_to,
        "exclude": tuple(exclude or ()),
        "criterion": criterion,
        "coupling": coupling,
        "fold_bias": fold_bias,
    }
    request = prune_request(wanted, DEFAULT_RATIO, replayed=plan is not None)
    with RichDisplay() as display:
        result = workflow.prune(
            source,
            request,
            model=model,
            model_arguments=parse_arguments(model_arg),
            weights=weights,
            input_shape=parse_shape(input),
            trust=trust,
            plan=plan,
            compensated=compensate,
            dry_run=dry_run,
            out=out,
            force=force,
            display=display,
        )
    output(result, show_prune, as_json=json)
