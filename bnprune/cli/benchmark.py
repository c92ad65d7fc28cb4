"""`bnprune benchmark`: measure one network on this machine, or compare two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bnprune.cli.options import (
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
)

_RUNNING = "Running"

Other = Annotated[
    Path | None,
    typer.Argument(
        metavar="[OTHER]", help="Second run directory or checkpoint, to compare with the first.", show_default=False
    ),
]
Dense = Annotated[
    bool,
    typer.Option(
        "--dense", help="Compare with the dense network that SOURCE was pruned from.", rich_help_panel="Input"
    ),
]
BackendOption = Annotated[
    list[str] | None,
    option(
        _RUNNING,
        "--backend",
        "NAME",
        "eager, compiled or onnxruntime; repeatable, or separated by commas.  [default: eager]",
    ),
]
Batch = Annotated[
    int,
    typer.Option(
        "--batch", metavar="N", min=1, max=1_000_000, help="Batch size to measure besides 1.", rich_help_panel=_RUNNING
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        max=1024,
        help="Number of CPU threads.",
        rich_help_panel=_RUNNING,
        show_default=False,
    ),
]
DtypeOption = Annotated[
    Literal["float32", "bfloat16", "float16"],
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="Data type of weights and inputs: float32, bfloat16 or float16.",
        rich_help_panel=_RUNNING,
    ),
]
ChannelsLast = Annotated[
    bool, typer.Option("--channels-last", help="Use the memory format channels_last.", rich_help_panel=_RUNNING)
]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or mps.", rich_help_panel=_RUNNING)
]
Rounds = Annotated[
    int | None,
    typer.Option(
        "--rounds",
        metavar="N",
        min=1,
        max=1_000_000,
        help="Forward passes per network and setting. Default: as many as fit into 15 seconds.",
        rich_help_panel=_RUNNING,
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("benchmark", epilog="Example:\nbnprune benchmark slim.safetensors --dense --threads 1")(benchmark)


def benchmark(
    source: SourcePath = None,
    other: Other = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    input: InputShape = None,
    stage: Stage = None,
    trust: Trust = False,
    dense: Dense = False,
    backend: BackendOption = None,
    batch: Batch = 32,
    threads: Threads = None,
    dtype: DtypeOption = "float32",
    channels_last: ChannelsLast = False,
    device: Device = "auto",
    rounds: Rounds = None,
    json: Json = False,
) -> None:
    """Measure latency, throughput, memory and size.

    Two networks run in turn, pass by pass, so that other programs on the machine slow both down; the ratio is the
    median over such pairs of passes.
    """
    from bnprune.cli.arguments import checkpoint_of, parse_arguments, parse_shape
    from bnprune.cli.render.benchmark import show_benchmark
    from bnprune.cli.render.output import output
    from bnprune.cli.render.progress import RichDisplay
    from bnprune.workflows import benchmark as workflow

    with RichDisplay() as display:
        result = workflow.benchmark(
            checkpoint_of(source, stage),
            other,
            model=model,
            model_arguments=parse_arguments(model_arg),
            weights=weights,
            pretrained=pretrained,
            input_shape=parse_shape(input),
            trust=trust,
            dense=dense,
            backends=backend or ("eager",),
            batch=batch,
            threads=threads,
            dtype=dtype,
            channels_last=channels_last,
            device=device,
            rounds=rounds,
            display=display,
        )
    output(result, show_benchmark, as_json=json)
