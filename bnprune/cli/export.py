"""`bnprune export`: write a network in a format that can be used without bnprune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bnprune.cli.options import (
    DataConfig,
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
    option,
)
from bnprune.config.tables import FORMATS, listed, sentences

if TYPE_CHECKING:
    _Format = str
else:
    _Format = Literal[tuple(FORMATS)]
_EXPORT = "Export"

FormatOption = Annotated[
    _Format | None,
    option(_EXPORT, "--format", "FORMAT", f"{listed(sentences(FORMATS))}.  [default: by the suffix of --out]"),
]
OutFile = Annotated[
    Path | None,
    option("Output", "--out", "FILE", "File to write.  [default: network.onnx, .pt2 or .safetensors]"),
]
FoldBn = Annotated[
    bool,
    typer.Option("--fold-bn", help="Fold BatchNorms into the layers before them.", rich_help_panel=_EXPORT),
]
Batch = Annotated[
    int | None,
    option(_EXPORT, "--batch", "N", "Fix the batch size. Default: any."),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify",
        help="Compare with the network in PyTorch, on random inputs and, if a recipe names the data, on real images.",
        rich_help_panel=_EXPORT,
    ),
]
WithPreprocessing = Annotated[
    bool,
    typer.Option(
        "--with-preprocessing",
        help="Let the file normalise its inputs: it then takes pixel values between 0 and 1.",
        rich_help_panel=_EXPORT,
    ),
]
ByteInputs = Annotated[
    bool,
    typer.Option(
        "--byte-inputs",
        help="Let the file normalise its inputs: it then takes bytes (uint8), from 0 to 255.",
        rich_help_panel=_EXPORT,
    ),
]
Card = Annotated[
    bool,
    typer.Option("--card", help="Write a model card (Markdown) beside the file.", rich_help_panel="Output"),
]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("export", epilog="Example:\nbnprune export runs/digits --format onnx --out digits.onnx")(export)


def export(
    source: SourcePath = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    input: InputShape = None,
    config: DataConfig = None,
    stage: Stage = None,
    trust: Trust = False,
    format: FormatOption = None,
    fold_bn: FoldBn = False,
    batch: Batch = None,
    verify: Verify = True,
    with_preprocessing: WithPreprocessing = False,
    byte_inputs: ByteInputs = False,
    out: OutFile = None,
    card: Card = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a network as ONNX, pt2, or plain weights.

    The files can be used without bnprune. Before they are written, they are compared with the network in PyTorch.
    """
    from bnprune.cli.arguments import checkpoint_of, parse_arguments, parse_shape
    from bnprune.cli.render.export import show_export
    from bnprune.cli.render.output import output
    from bnprune.workflows import export as workflow

    result = workflow.export(
        checkpoint_of(source, stage),
        model=model,
        model_arguments=parse_arguments(model_arg),
        weights=weights,
        pretrained=pretrained,
        input_shape=parse_shape(input),
        recipe=config,
        trust=trust,
        format=format,
        fold_bn=fold_bn,
        batch=batch,
        verify=verify,
        with_preprocessing=with_preprocessing,
        byte_inputs=byte_inputs,
        card=card,
        out=out,
        force=force,
    )
    output(result, show_export, as_json=json)
