"""`bnprune inspect`: what can be pruned, what cannot, and why."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from bnprune.cli.options import InputShape, Json, Model, ModelArguments, SourcePath, Trust, Weights


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("inspect", epilog="Example:  bnprune inspect --model torchvision/resnet50 --input 3,224,224")(inspect)


def inspect(
    source: SourcePath = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    input: InputShape = None,
    trust: Trust = False,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="PATTERN", help="Layers whose width stays; repeatable.", show_default=False),
    ] = None,
    coupling: Annotated[
        Literal["shared", "gates"], typer.Option("--coupling", help="As for `bnprune prune`.")
    ] = "shared",
    json: Json = False,
) -> None:
    """Show what can be pruned, what cannot, and why."""
    from bnprune.cli.arguments import parse_arguments, parse_shape
    from bnprune.cli.render.inspect import show_inspect
    from bnprune.cli.render.output import output
    from bnprune.workflows import inspect as workflow

    result = workflow.inspect(
        source,
        model=model,
        model_arguments=parse_arguments(model_arg),
        weights=weights,
        input_shape=parse_shape(input),
        trust=trust,
        exclude=exclude or (),
        coupling=coupling,
    )
    output(result, show_inspect, as_json=json)
