"""Recipes: read from a file, overridden, and checked against the schema, with every problem reported at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bnprune.config.bounded_reading import RECIPE_BYTES, read_text
from bnprune.config.overrides import override
from bnprune.config.schema import PipelineConfig
from bnprune.config.yaml_loader import KeyPath, Origins, parse
from bnprune.errors import MOST_PROBLEMS, ConfigError, quoted, shortened, summary


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read a recipe, apply `key=value` overrides and check everything.

    Raises:
        ConfigError: With every problem: file, line, key, the value that was given, and the nearest valid name.
    """
    try:
        text = read_text(path, RECIPE_BYTES)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file. {_nearest_recipe(path)}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not a text file.") from error
    data, origins, problems = parse(text, str(path))
    problems += override(data, origins, overrides)
    return check(data, origins, problems)


def _nearest_recipe(path: Path) -> str:
    """Return the recipe with a similar name in the same folder, or how to get one."""
    try:
        names = [other.name for other in path.parent.iterdir() if other.suffix in (".yaml", ".yml")]
    except OSError:
        names = []
    near = get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f"Did you mean '{path.with_name(near[0])}'?" if near else "`bnprune init --list` lists the recipes."


def amend(config: PipelineConfig, overrides: Sequence[str]) -> PipelineConfig:
    """Apply `key=value` overrides to a configuration.

    Raises:
        ConfigError: With every problem found.
    """
    return amend_data(as_data(config), overrides)


def amend_data(data: dict[str, Any], overrides: Sequence[str]) -> PipelineConfig:
    """Apply `key=value` overrides to plain data, in place, and check it.

    Raises:
        ConfigError: With every problem found.
    """
    origins: Origins = {}
    problems = override(data, origins, overrides)
    return check(data, origins, problems)


def as_data(config: PipelineConfig) -> dict[str, Any]:
    """Return a configuration as plain data, as in a file."""
    return config.model_dump(mode="json", by_alias=True, exclude_none=True)


def check(data: Mapping[str, Any], origins: Origins, problems: Sequence[str] = ()) -> PipelineConfig:
    """Validate plain data against the schema.

    Raises:
        ConfigError: With every problem found, `problems` first.
    """
    all_problems = list(problems)
    config: PipelineConfig | None = None
    try:
        config = PipelineConfig.model_validate(dict(data))
    except ValidationError as error:
        all_problems += _sorted_problems(error, origins)
    if all_problems or config is None:
        raise ConfigError(summary(all_problems), all_problems[:MOST_PROBLEMS])
    return config


def _sorted_problems(error: ValidationError, origins: Origins) -> list[str]:
    described: dict[KeyPath, list[str]] = {}
    for details in error.errors(include_url=False):
        path, section = _located(details["loc"])
        described.setdefault(path, []).append(_problem(details, path, section))
    lines = {}
    for path, texts in described.items():
        place = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), "recipe")
        lines[f"{place}: {shortened('.'.join(path)) or 'recipe'}: {_joined(texts)}"] = _line_of(place)
    return sorted(lines, key=lambda text: lines[text])


def _line_of(place: str) -> tuple[bool, int]:
    number = place.rpartition(":")[2]
    return not number.isdigit(), int(number) if number.isdigit() else 0


def _located(loc: Sequence[str | int]) -> tuple[KeyPath, type[BaseModel]]:
    """Return the key's path, without what pydantic adds for unions, and the section that the key is in."""
    section: type[BaseModel] = PipelineConfig
    path: list[str] = []
    for part in loc:
        path.append(str(part))
        inner = next((f.annotation for n, f in section.model_fields.items() if part in (n, f.alias)), None)
        inner_section = next((t for t in (inner, *getattr(inner, "__args__", ())) if _is_section(t)), None)
        if inner_section is None:
            break
        section = inner_section
    return tuple(path), section


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _key_paths(section: type[BaseModel]) -> Iterator[KeyPath]:
    """Yield the path of every key in a section and in the sections inside it."""
    for name, field in section.model_fields.items():
        key = field.alias or name
        yield (key,)
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if _is_section(inner):
                yield from ((key, *rest) for rest in _key_paths(inner))


_YAML_WORDS = {
    "model_type": "must be a section of keys",
    "dict_type": "must be a section of keys",
    "tuple_type": "must be a list",
}
"""Messages in place of those in which pydantic names Python types."""


def _problem(details: ErrorDetails, path: KeyPath, section: type[BaseModel]) -> str:
    kind, got = details["type"], _shown(details["input"])
    if kind == "extra_forbidden":
        names = [field.alias or name for name, field in section.model_fields.items()]
        elsewhere = [".".join(other) for other in _key_paths(PipelineConfig) if other[-1] == path[-1]]
        near = elsewhere or get_close_matches(path[-1], names, n=1, cutoff=0.5)
        meant = " or ".join(f"'{name}'" for name in near)
        hint = f"Did you mean {meant}?" if near else f"Valid here: {', '.join(names)}."
        return f"unknown key (got {got}). {hint}"
    if kind == "missing":
        return "is required."
    message = _YAML_WORDS.get(kind) or details["msg"].removeprefix("Value error, ")
    for wording, ours in (("Input should be", "must be"), ("String should have", "must have")):
        message = message.replace(wording, ours)
    return f"{message} (got {got})." if kind != "value_error" else f"{message}."


def _joined(texts: Sequence[str]) -> str:
    if len(texts) == 1:
        return texts[0]
    first, got = texts[0].rpartition(" (got ")[::2]
    others = (text.rpartition(" (got ")[0].removeprefix("must be ") for text in texts[1:])
    return f"{' or '.join([first, *others])} (got {got}"


def _shown(value: Any) -> str:
    return "nothing" if value is None else quoted(value)
