"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_INPUT, _OUTPUT, _RUNTIME = "Input", "Output", "Runtime"


def option(panel: str | None, flag: str, metavar: str, text: str) -> Any:
    """Declare an option with a value; its default, if it has one that matters, is told in `text`."""
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=panel, show_default=False)


Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="Recipe (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Override keys of the recipe: train.lr=0.05", show_default=False),
]
SourcePath = Annotated[
    Path | None,
    typer.Argument(metavar="[SOURCE]", help="Run directory or .safetensors checkpoint.", show_default=False),
]
Model = Annotated[
    str | None,
    option(_INPUT, "--model", "NAME", "torchvision/NAME, timm/NAME, a zoo name, or package.module:factory."),
]
ModelArguments = Annotated[
    list[str] | None,
    option(_INPUT, "--model-arg", "KEY=VALUE", "Argument of the model; repeatable."),
]
Weights = Annotated[
    Path | None,
    option(_INPUT, "--weights", "FILE", "Weights of --model: .safetensors, or .pt with a state dict."),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run the code and use the paths that the given files name. Without it, files are data.",
        rich_help_panel=_INPUT,
    ),
]
Teacher = Annotated[
    Path | None,
    option(_INPUT, "--teacher", "FILE", "Checkpoint of the network before the cut, to learn from (distillation)."),
]
InputShape = Annotated[
    str | None,
    option(_INPUT, "--input", "C,H,W", "Shape of one input, without the batch."),
]
DataConfig = Annotated[
    Path | None,
    option(_INPUT, "--config", "CONFIG", "Recipe to use in place of the one in the checkpoint: its data, above all."),
]
OutDirectory = Annotated[
    Path | None,
    option(_OUTPUT, "--out", "DIR", "Run directory. Default: runs/VERB-MODEL-TIME."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out, exactly.", rich_help_panel=_RUNTIME)
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.", rich_help_panel=_OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=_OUTPUT)]
