"""`bnprune sweep`: find out how far a trained network can be pruned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

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
    option,
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("sweep", epilog="Example:\nbnprune sweep runs/digits --tolerance 0.005")(sweep)


def sweep(
    source: SourcePath = None,
    overrides: Overrides = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    config: DataConfig = None,
    stage: Stage = None,
    trust: Trust = False,
    by: Annotated[
        Literal["ratio", "macs"],
        typer.Option(
            "--by", metavar="NAME", help="ratio: vary the share of channels to remove; macs: that of the MACs to keep."
        ),
    ] = "ratio",
    at: Annotated[str | None, option(None, "--at", "V,V,...", "Values to try. Default: a dozen.")] = None,
    tolerance: Annotated[
        float | None,
        option(
            None,
            "--tolerance",
            "F",
            "Largest loss of accuracy, as a share of all images.  [default: prune.tolerance]",
        ),
    ] = None,
    plot: Annotated[
        Path | None, option("Output", "--plot", "FILE", "Draw the chart into a .png or .svg file (needs matplotlib).")
    ] = None,
    json: Json = False,
) -> None:
    """Find out how far a trained network can be pruned.

    Each pruned network is compensated, recalibrated and compared with the network before pruning on the same validation
    images; none is fine-tuned or written. The largest cut whose true loss is within the tolerance with 95% confidence
    is recommended.
    SOURCE is a run directory (its sparse-trained network) or a checkpoint.
    """
    from bnprune.cli.arguments import (
        checkpoint_of,
        parse_arguments,
        parse_shares,
        recipe_and_overrides,
        source_and_overrides,
    )
    from bnprune.cli.render.output import output
    from bnprune.cli.render.prune_command import prune_command
    from bnprune.cli.render.sweep import require_plot, save_plot, show_sweep
    from bnprune.runs.stages import TRAINED
    from bnprune.workflows import sweep as workflow

    values = parse_shares(at)
    source, changes = source_and_overrides(source, overrides)
    recipe, changes = recipe_and_overrides(changes, config)
    source = checkpoint_of(source, stage, TRAINED)
    require_plot(plot, sources=(source, weights), recipe=recipe)
    result = workflow.sweep(
        source,
        changes,
        model=model,
        model_arguments=parse_arguments(model_arg),
        weights=weights,
        pretrained=pretrained,
        recipe=recipe,
        trust=trust,
        by=by,
        values=values,
        tolerance=tolerance,
    )
    if model is None and recipe is not None:
        model, model_arg = _own_network(recipe, changes)
    command = partial(
        prune_command, result, model=model, model_arg=model_arg, weights=weights, pretrained=pretrained, trust=trust
    )
    output(result, lambda shown: show_sweep(shown, command), as_json=json)
    save_plot(plot, result)  # after the output, so that a full disk does not lose it


def _own_network(recipe: Path, overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the --model and --model-arg with which `prune` builds a recipe's network, if that is the user's own."""
    import json

    from bnprune.config.recipe import load_recipe

    model = load_recipe(recipe, overrides).model
    if model.factory is None:
        return None, []
    return model.factory, [f"{key}={json.dumps(value)}" for key, value in model.kwargs.items()]
