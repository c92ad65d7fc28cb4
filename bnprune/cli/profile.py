"""`bnprune profile`: measure the latencies of a network's layers over their widths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bnprune.cli.benchmark import Threads
from bnprune.cli.options import (
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
)

_RUNNING = "Running"
BackendName = Annotated[
    Literal["eager", "onnxruntime"],
    typer.Option(
        "--backend", metavar="NAME", help="What runs the network: eager or onnxruntime.", rich_help_panel=_RUNNING
    ),
]
BatchSize = Annotated[
    int, typer.Option("--batch", metavar="N", min=1, max=1_000_000, help="Batch size.", rich_help_panel=_RUNNING)
]
OutFile = Annotated[
    Path, typer.Option("--out", metavar="FILE", help="Latency profile to write.", rich_help_panel="Output")
]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("profile", epilog="Example:\nbnprune profile trained.safetensors --out cpu.json")(profile)


def profile(
    source: SourcePath = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    input: InputShape = None,
    stage: Stage = None,
    trust: Trust = False,
    backend: BackendName = "eager",
    batch: BatchSize = 1,
    threads: Threads = None,
    out: OutFile = Path("profile.json"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure the latency of every layer over its widths, for prune.

    With `prune --latency MS --profile FILE`, channels are chosen by their loss per millisecond. The profile holds for
    this network, input size, batch size, backend, number of threads and machine.
    """
    from bnprune.cli.arguments import checkpoint_of, parse_arguments, parse_shape
    from bnprune.cli.render.output import output
    from bnprune.cli.render.profile import show_profile
    from bnprune.cli.render.progress import RichDisplay
    from bnprune.workflows import profile as workflow

    with RichDisplay() as display:
        result = workflow.profile(
            checkpoint_of(source, stage),
            model=model,
            model_arguments=parse_arguments(model_arg),
            weights=weights,
            pretrained=pretrained,
            input_shape=parse_shape(input),
            trust=trust,
            backend=backend,
            batch=batch,
            threads=threads,
            out=out,
            force=force,
            display=display,
        )
    output(result, show_profile, as_json=json)
