"""Write the references from the code: every verb with its options, and every key of a recipe.

They stand in bnprune/cli/README.md and configs/README.md. Run it after changing an option or a key;
`scripts/reference.py --check` fails if one is out of date.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, OptionInfo

from bnprune.cli import app
from bnprune.config.field_types import OneOf
from bnprune.config.schema import PipelineConfig, Section

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    for path, name, reference in (("bnprune/cli/README.md", "verbs", verbs()), ("configs/README.md", "keys", keys())):
        before = (ROOT / path).read_text(encoding="utf-8")
        text = replaced(before, path, name, reference)
        if "--check" not in sys.argv[1:]:
            (ROOT / path).write_text(text, encoding="utf-8")
        elif text != before:
            sys.exit(f"{path} is out of date: run scripts/reference.py")


def replaced(text: str, path: str, name: str, reference: str) -> str:
    """Return `text` with a reference between its markers."""
    begin, end = f"<!-- {name}: made by scripts/reference.py -->\n", f"<!-- end of {name} -->"
    before, has_begin, rest = text.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        sys.exit(f"{path}: the markers of '{name}' are missing")
    return f"{before}{begin}\n{reference}\n{end}{after}"


# -- verbs -----------------------------------------------------------------------------------------------------------


def verbs() -> str:
    return "\n".join(verb(command.name, command.callback) for command in app.registered_commands)


def verb(name: str, function: Any) -> str:
    parameters = [
        parameter(*item) for item in get_type_hints(function, include_extras=True).items() if item[0] != "return"
    ]
    defaults = {p.name: p.default for p in inspect.signature(function).parameters.values()}
    arguments = [info.metavar for _, kind, info in parameters if isinstance(info, ArgumentInfo)]
    usage = " ".join(["bnprune", name, *arguments, "[OPTIONS]"])
    rows = "".join(
        f"| `{spelling(kind, info)}` | {help_of(kind, info, defaults[key])} |\n" for key, kind, info in parameters
    )
    return f"**`{usage}`** – {function.__doc__.strip().splitlines()[0]}\n\n| | |\n|---|---|\n{rows}"


def parameter(name: str, hint: Any) -> tuple[str, Any, ArgumentInfo | OptionInfo]:
    """Take `Annotated[int | None, OptionInfo] | None` apart: name, int, OptionInfo."""
    while not hasattr(hint, "__metadata__"):
        hint = next(inner for inner in get_args(hint) if inner is not type(None))
    kinds = [kind for kind in get_args(hint.__origin__) if kind is not type(None)]
    kind = kinds[0] if kinds and get_origin(hint.__origin__) is not Literal else hint.__origin__
    return name, kind, hint.__metadata__[0]


def spelling(kind: Any, info: ArgumentInfo | OptionInfo) -> str:
    if isinstance(info, ArgumentInfo):
        return info.metavar or ""
    names = ", ".join(name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str))
    return names if kind is bool else f"{names} {info.metavar or ','.join(choices(kind))}"


def choices(kind: Any) -> list[str]:
    return list(get_args(kind)) if get_origin(kind) is Literal else []


def help_of(kind: Any, info: ArgumentInfo | OptionInfo, default: Any) -> str:
    text = info.help or ""
    if any(name not in text for name in choices(kind)):
        text += f"  One of: {', '.join(choices(kind))}."
    shown = info.show_default and default not in (inspect.Parameter.empty, None, False, True) and "efault" not in text
    return cell(f"{text}  [default: {default}]" if shown else text)


# -- keys ------------------------------------------------------------------------------------------------------------


def keys() -> str:
    return "\n".join(["| key | value | default | |", "|---|---|---|---|", *section(PipelineConfig, "", set()), ""])


def section(kind: type[Section], prefix: str, listed: set[type]) -> Iterator[str]:
    """Yield the rows of a section; keys that it shares with a section listed before are only named."""
    parent = kind.__mro__[1]
    known = parent in listed
    listed |= {kind, parent} - {Section}
    for name, field in kind.model_fields.items():
        inner = next((t for t in (field.annotation, *get_args(field.annotation)) if is_section(t)), None)
        path = f"{prefix}{field.alias or name}"
        if inner is not None:
            required = "required" if field.is_required() else ""
            yield f"| **`{path}`** | section | {required} | {cell(inner.__doc__ or '')} |"
            yield from section(inner, f"{path}.", listed)
        elif name in kind.__annotations__ or not known:
            yield f"| `{path}` | {value(field)} | {default(field)} | {described(kind, name)} |"
    if known:
        shared = ", ".join(f"`{name}`" for name in parent.model_fields if name not in kind.__annotations__)
        yield f"| {shared} | | | As in training. |"


def described(kind: type[Section], name: str) -> str:
    """Return the description of a key; one that only changes a default has that of the section it inherits from."""
    owners = (base.model_fields[name] for base in kind.__mro__ if name in getattr(base, "model_fields", {}))
    return cell(next((field.description for field in owners if field.description), ""))


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def value(field: FieldInfo) -> str:
    return cell(", ".join([named(field.metadata) or kind_of(field.annotation), *limits(field.metadata)]))


def named(metadata: Any) -> str:
    """Return the names that a table allows, if one does."""
    return ", ".join(f"`{name}`" for entry in metadata if isinstance(entry, OneOf) for name in entry.names)


def limits(metadata: Any) -> list[str]:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = ((sign, getattr(m, name, None)) for m in metadata for name, sign in signs.items())
    shown = [(sign, bound) for sign, bound in bounds if bound is not None and bound < _ABSURD]
    return ["> 0" if bound == _TINY else f"{sign} {bound:g}" for sign, bound in shown]


_TINY, _ABSURD = 1e-12, 1000
"""Bounds that only keep numbers representable are not shown."""


WORDS = {
    "int": "whole number",
    "float": "number",
    "str": "text",
    "bool": "true or false",
    "Path": "path",
    "PathLike": "path",
}


def kind_of(kind: Any) -> str:
    """Return the type of a value in words."""
    origin, inner = get_origin(kind), [k for k in get_args(kind) if k is not type(None)]
    if hasattr(kind, "__metadata__"):
        bounds = [entry for m in kind.__metadata__ for entry in getattr(m, "metadata", ())]
        return ", ".join([named(kind.__metadata__) or kind_of(inner[0]), *limits(bounds)])
    if origin is None:
        return WORDS.get(getattr(kind, "__name__", ""), "anything")
    if origin is dict:
        return "mapping"
    if origin is tuple:
        return f"list of {kind_of(inner[0])}"
    if origin.__name__ == "Literal":
        return ", ".join(f"`{word}`" for word in inner)
    return " or ".join(dict.fromkeys(map(kind_of, inner)))


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ({}, ()):
        return ""
    shown = str(value).lower() if isinstance(value, bool) else list(value) if isinstance(value, tuple) else value
    return f"`{shown}`"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
