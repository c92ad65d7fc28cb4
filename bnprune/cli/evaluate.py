"""`bnprune evaluate`: accuracy of a network."""

from __future__ import annotations

import typer

from bnprune.cli.options import (
    DataConfig,
    Json,
    Model,
    ModelArguments,
    Overrides,
    Pretrained,
    SourcePath,
    Stage,
    Trust,
    Weights,
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("evaluate", epilog="Example:\nbnprune evaluate runs/digits")(evaluate)


def evaluate(
    source: SourcePath = None,
    overrides: Overrides = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    config: DataConfig = None,
    stage: Stage = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Measure accuracy and loss of a network."""
    from bnprune.cli.arguments import checkpoint_of, parse_arguments, recipe_and_overrides, source_and_overrides
    from bnprune.cli.render.evaluate import show_evaluate
    from bnprune.cli.render.output import output
    from bnprune.workflows import evaluate as workflow

    source, changes = source_and_overrides(source, overrides)
    recipe, changes = recipe_and_overrides(changes, config)
    source = checkpoint_of(source, stage)
    result = workflow.evaluate(
        source,
        changes,
        model=model,
        model_arguments=parse_arguments(model_arg),
        weights=weights,
        pretrained=pretrained,
        recipe=recipe,
        trust=trust,
    )
    output(result, show_evaluate, as_json=json)
