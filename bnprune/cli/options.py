"""Options that several verbs share, and the flags that come from the definition of the prune options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from bnprune.config.prune_options import Option, prune_options

_INPUT, _OUTPUT, _RUNTIME = "Input", "Output", "Runtime"
PRUNING = "Pruning"


def option(panel: str | None, flag: str, metavar: str, text: str) -> Any:
    """Declare an option with a value; `text` names its default, if that matters."""
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=panel, show_default=False)


Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="Recipe (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Override keys of the recipe, such as train.lr=0.05.", show_default=False
    ),
]
SourcePath = Annotated[
    Path | None,
    typer.Argument(metavar="[SOURCE]", help="Run directory or .safetensors checkpoint.", show_default=False),
]
Stage = Annotated[
    Literal["baseline", "train", "prune", "finetune", "scratch"] | None,
    typer.Option(
        "--stage",
        metavar="NAME",
        help="Which network of a run directory: that of baseline, train, prune, finetune or scratch. Default: of the "
        "last stage that has finished.",
        rich_help_panel=_INPUT,
        show_default=False,
    ),
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
Pretrained = Annotated[
    bool,
    typer.Option(
        "--pretrained",
        help="Load the published weights of --model torchvision/NAME or timm/NAME; downloads them if they are missing.",
        rich_help_panel=_INPUT,
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run the code and open the paths that the given files name. Without it, files are only data.",
        rich_help_panel=_INPUT,
    ),
]
Teacher = Annotated[
    Path | None,
    option(
        _INPUT,
        "--teacher",
        "FILE",
        "The network before pruning, as the teacher (distillation): checkpoint or state dict.",
    ),
]
Unlabelled = Annotated[
    Path | None,
    option(
        _INPUT,
        "--unlabelled",
        "DIR",
        "Folder of images without labels, of any structure: learn from the outputs of the teacher alone.",
    ),
]
InputShape = Annotated[
    str | None,
    option(_INPUT, "--input", "C,H,W", "Shape of one input, without the batch dimension."),
]
DataConfig = Annotated[
    Path | None,
    option(_INPUT, "--config", "CONFIG", "Recipe to use instead of the one in the checkpoint, mainly for its data."),
]
OutDirectory = Annotated[
    Path | None,
    option(_OUTPUT, "--out", "DIR", "Run directory. Default: runs/VERB-MODEL-TIME."),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Continue the interrupted run in --out, with bit-identical results.", rich_help_panel=_RUNTIME
    ),
]
Gpus = Annotated[
    str | None,
    option(_RUNTIME, "--gpus", "0,1,...", "Train on these GPUs, with one process for each."),
]
ProcessCount = Annotated[
    int | None,
    typer.Option(
        "--processes",
        metavar="N",
        min=1,
        max=1024,
        help="Train with N processes, on as many GPUs if there are any, else on CPUs.",
        rich_help_panel=_RUNTIME,
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.", rich_help_panel=_OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=_OUTPUT)]


# -- flags of the prune options ----------------------------------------------------------------------------------------

_TYPES: dict[str, Any] = {"number": float, "count": int, "switch": bool, "patterns": list[str]}


def with_prune_flags(names: Iterable[str] | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the flags of prune options.

    The verb has a parameter `asked`, at the position of the flags in the help. It receives the options that are given
    on the command line, by their names in Python: {"ratio": 0.5, "exclude": ["fc"]}.

    Args:
        names: The options; default: all that have a flag.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        chosen = [item for name, item in prune_options().items() if item.flag and (names is None or name in names)]
        parameters = [_flag(item) for item in chosen]

        @wraps(verb)
        def run(**values: Any) -> None:
            flags = {item.name: values.pop(item.name) for item in chosen}
            verb(asked={name: value for name, value in flags.items() if value not in (None, [])}, **values)

        _replace_asked(run, verb, parameters)
        return run

    return decorate


def _replace_asked(run: Any, verb: Callable[..., None], parameters: list[Parameter]) -> None:
    """Set the signature that typer reads: `asked` is replaced by the flags."""
    hints = get_type_hints(verb, include_extras=True)
    shown: list[Parameter] = []
    for parameter in inspect.signature(verb).parameters.values():
        own = [parameter.replace(annotation=hints[parameter.name], kind=Parameter.KEYWORD_ONLY)]
        shown += parameters if parameter.name == "asked" else own
    run.__signature__ = inspect.Signature(shown, return_annotation=None)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown} | {"return": None}
    del run.__wrapped__  # or typer would read the signature of the verb itself


def _flag(item: Option) -> Parameter:
    closed = item.kind == "choice" and not item.extensible
    kind = Literal[tuple(item.choices())] if closed else _TYPES.get(item.kind, str)
    declared = typer.Option(
        item.flag, metavar=item.metavar, help=flag_help(item), rich_help_panel=PRUNING, show_default=False
    )
    return Parameter(item.name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, declared])


def flag_help(item: Option) -> str:
    """Return the help of a flag: the sentence, the choices, the bounds and the default."""
    text = item.description(recipe=False)
    if item.interval():
        text = f"{text.removesuffix('.')}, in {item.interval()}."
    if item.kind == "patterns":
        text = f"{text.removesuffix('.')}; repeatable."
    default = item.default_text or ("" if item.default in (None, False, ()) else str(item.default))
    return f"{text}  [default: {default}]" if default else text
