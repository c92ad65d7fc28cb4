"""`bnprune sensitivity`: measure how accuracy falls as each group of layers is cut alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnprune.cli.options import (
    DataConfig,
    Force,
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

OutFile = Annotated[
    Path,
    typer.Option("--out", metavar="FILE", help="Table to write, or to continue.", rich_help_panel="Output"),
]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("sensitivity", epilog="Example:\nbnprune sensitivity runs/digits --plot sensitivity.svg")(sensitivity)


def sensitivity(
    source: SourcePath = None,
    overrides: Overrides = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    config: DataConfig = None,
    stage: Stage = None,
    trust: Trust = False,
    at: Annotated[
        str | None,
        option(None, "--at", "V,V,...", "Shares of a group's channels to remove. Default: 0.1,0.2,...,0.9."),
    ] = None,
    plot: Annotated[
        Path | None,
        option("Output", "--plot", "FILE", "Draw the table into a .png or .svg file (.png needs matplotlib)."),
    ] = None,
    out: OutFile = Path("sensitivity.json"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure accuracy as each group of layers is cut alone.

    Layers whose channels go together are a group. Each network is reconstructed and evaluated on validation images.
    After each cut the table is written; the same command continues an interrupted measurement.
    With `prune --sensitivity FILE`, all groups lose the same accuracy.
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
    from bnprune.cli.render.progress import RichDisplay
    from bnprune.cli.render.sensitivity import save_plot, show_sensitivity
    from bnprune.cli.render.sweep import require_plot
    from bnprune.runs.stages import TRAINED
    from bnprune.workflows import sensitivity as workflow

    values = parse_shares(at)
    source, changes = source_and_overrides(source, overrides)
    recipe, changes = recipe_and_overrides(changes, config)
    source = checkpoint_of(source, stage, TRAINED)
    require_plot(plot, sources=(source, weights), recipe=recipe)
    with RichDisplay() as display:
        result = workflow.sensitivity(
            source,
            changes,
            model=model,
            model_arguments=parse_arguments(model_arg),
            weights=weights,
            pretrained=pretrained,
            recipe=recipe,
            trust=trust,
            values=values,
            out=out,
            force=force,
            display=display,
        )
    output(result, show_sensitivity, as_json=json)
    save_plot(plot, result)  # after the output, so that a full disk does not lose it
