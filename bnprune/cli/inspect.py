"""`bnprune inspect`: which channels can be pruned, which cannot, and why."""

from __future__ import annotations

from typing import Any

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
    with_prune_flags,
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("inspect", epilog="Example:\nbnprune inspect --model torchvision/resnet50 --input 3,224,224")(inspect)


@with_prune_flags(("exclude", "include", "coupling", "outputs"))
def inspect(
    source: SourcePath = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    input: InputShape = None,
    stage: Stage = None,
    trust: Trust = False,
    asked: dict[str, Any] | None = None,
    json: Json = False,
) -> None:
    """Show which channels can be pruned, which cannot, and why."""
    from bnprune.cli.arguments import checkpoint_of, parse_arguments, parse_shape
    from bnprune.cli.render.inspect import show_inspect
    from bnprune.cli.render.output import output
    from bnprune.workflows import inspect as workflow

    asked = asked or {}
    result = workflow.inspect(
        checkpoint_of(source, stage),
        model=model,
        model_arguments=parse_arguments(model_arg),
        weights=weights,
        pretrained=pretrained,
        input_shape=parse_shape(input),
        trust=trust,
        exclude=asked.get("exclude", ()),
        include=asked.get("include", ()),
        coupling=asked.get("coupling", "shared"),
        outputs=asked.get("outputs"),
    )
    output(result, show_inspect, as_json=json)
