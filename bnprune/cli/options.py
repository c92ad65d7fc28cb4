"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_INPUT, _OUTPUT, _RUNTIME = "Input", "Output", "Runtime"

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
    typer.Option(
        "--model",
        metavar="NAME",
        help="torchvision/NAME, timm/NAME, a zoo name, or package.module:factory.",
        rich_help_panel=_INPUT,
        show_default=False,
    ),
]
ModelArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--model-arg",
        metavar="KEY=VALUE",
        help="Argument of the model; repeatable.",
        rich_help_panel=_INPUT,
        show_default=False,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Weights of --model: .safetensors, or .pt with a state dict.",
        rich_help_panel=_INPUT,
        show_default=False,
    ),
]
InputShape = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="C,H,W",
        help="Shape of one input, without the batch.",
        rich_help_panel=_INPUT,
        show_default=False,
    ),
]
OutDirectory = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Run directory. Default: runs/VERB-MODEL-TIME.",
        rich_help_panel=_OUTPUT,
        show_default=False,
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out, exactly.", rich_help_panel=_RUNTIME)
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.", rich_help_panel=_OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=_OUTPUT)]
