"""Reading recipes: YAML with line numbers, `key=value` overrides, and every problem reported at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bnprune.config.bounded_reading import DEEPEST, LONGEST_NUMBER, RECIPE_BYTES, read_text, require_shallow
from bnprune.config.schema import PipelineConfig
from bnprune.errors import ConfigError, quoted, shortened

KeyPath = tuple[str, ...]
Origins = dict[KeyPath, str]
"""Where each key was written: "configs/c10.yaml:14" or "command line"."""


_MOST_VALUES = 10_000
"""In a recipe, where an alias counts as much as what it stands for."""


class _Refusal(yaml.MarkedYAMLError):
    """YAML that is valid, but too much: `problem` says why."""


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: `1e-4` is a number, only `true` and `false` are booleans, dates are text.

    What it builds is bounded: nodes are counted with aliases followed, before any value is made of them.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        mark, is_alias, before = self.peek_event().start_mark, self.check_event(yaml.AliasEvent), self._count
        self._depth += 1
        if self._depth > DEEPEST:
            raise _Refusal(problem=f"is nested deeper than {DEEPEST} levels", problem_mark=mark)
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and node not in self._sizes:
            raise _Refusal(problem="has an alias inside what it stands for", problem_mark=mark)
        self._count += self._sizes[node] if is_alias else 1
        self._sizes.setdefault(node, self._count - before)
        if self._count > _MOST_VALUES:
            raise _Refusal(problem=f"has more than {_MOST_VALUES} values, with aliases followed", problem_mark=mark)
        return cast("yaml.Node", node)

    def construct_plain(self, node: yaml.Node) -> Any:
        """Build a number, a boolean or null."""
        if len(node.value) > LONGEST_NUMBER and isinstance(node, yaml.ScalarNode):
            problem = f"has a number of more than {LONGEST_NUMBER} characters"
            raise _Refusal(problem=problem, problem_mark=node.start_mark)
        try:
            return yaml.SafeLoader.yaml_constructors[node.tag](self, node)
        except (ValueError, LookupError) as error:  # a tag that its text does not fit
            problem = f"has {quoted(node.value)}, which is not of the type {node.tag.rpartition(':')[2]}"
            raise _Refusal(problem=problem, problem_mark=node.start_mark) from error


_PLAIN = ("int", "float", "bool", "null")
_Loader.yaml_constructors = {
    **{f"tag:yaml.org,2002:{name}": _Loader.construct_plain for name in _PLAIN},
    **{
        tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (f"tag:yaml.org,2002:{n}" for n in ("str", "seq", "map"))
    },
    None: yaml.SafeLoader.construct_undefined,
}
_NUMBER = re.compile(
    r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_REPLACED = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_REPLACED[0], re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_REPLACED[1], _NUMBER, list("-+0123456789."))


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read a recipe, apply `key=value` overrides and check everything.

    Raises:
        ConfigError: With every problem: file, line, key, what was got, and the nearest valid name.
    """
    try:
        text = read_text(path, RECIPE_BYTES)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file. `bnprune init --list` lists the recipes.") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not a text file.") from error
    data, origins, problems = parse(text, str(path))
    problems += override(data, origins, overrides)
    return check(data, origins, problems)


def parse(text: str, name: str) -> tuple[dict[str, Any], Origins, list[str]]:
    """Return the data of a YAML mapping, where each key stands, and the keys given twice.

    Raises:
        ConfigError: The text is not YAML, or not a mapping.
    """
    origins: Origins = {}
    problems: list[str] = []
    try:
        data = read_yaml(text, lambda node: problems.extend(_walk(node, (), name, origins)))
    except YamlError as error:
        line = f":{error.line}" if error.line else ""
        raise ConfigError(f"{name}{line}: {error}.") from error
    if data is None:
        raise ConfigError(f"{name}: is empty. `bnprune init` writes a recipe to start from.")
    if not isinstance(data, dict):
        raise ConfigError(f"{name}:1: expected keys such as 'model:' and 'data:', got {_shown(data)}.")
    return data, origins, problems


class YamlError(ValueError):
    """Text is not YAML, or too much of it."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line
        """Counted from 1."""


def read_yaml(text: str, look: Callable[[yaml.Node], object] | None = None) -> Any:
    """Read YAML of plain values, in bounded time and memory.

    Args:
        text: One document.
        look: Called with the root of the document before values are made of it.

    Raises:
        YamlError: It is not such a document.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        require_shallow(node, below=_nodes_in)  # again: aliases of aliases add up
        if look is not None:
            look(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = shortened(getattr(error, "problem", None) or str(error).split("\n")[0])
        said = what if isinstance(error, _Refusal) else f"is not YAML: {what}"
        raise YamlError(said, mark.line + 1 if mark else None) from error
    except ValueError as error:
        raise YamlError(f"is nested deeper than {DEEPEST} levels") from error


def _nodes_in(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _walk(node: yaml.Node | None, path: KeyPath, name: str, origins: Origins) -> Iterator[str]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        key = (*path, str(key_node.value))
        place = f"{name}:{key_node.start_mark.line + 1}"
        if key in origins:
            first = origins[key].rpartition(":")[2]
            yield f"{place}: {shortened('.'.join(key))}: is given twice (first in line {first})."
            for below in [known for known in origins if known[: len(key)] == key]:
                del origins[below]  # the later section counts; its keys are not those of the earlier one again
        origins[key] = place
        yield from _walk(value_node, key, name, origins)


def override(data: dict[str, Any], origins: Origins, overrides: Sequence[str]) -> list[str]:
    """Apply `a.b=value` in place, the value read as YAML; return what is wrong with them."""
    problems = []
    for text in overrides:
        key, equals, value = text.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path) or len(path) > DEEPEST:
            problems.append(f"command line: {quoted(text)}: expected key=value, such as train.lr=0.05.")
            continue
        try:
            parsed = read_yaml(value)
        except YamlError as error:
            problems.append(f"command line: {shortened(key)}: {quoted(value)} {error}.")
            continue
        section = data
        for part in path[:-1]:
            inner = section.get(part)
            # A copy: through an alias, the same section may stand elsewhere.
            section[part] = section = dict(inner) if isinstance(inner, dict) else {}
        section[path[-1]] = parsed
        for depth in range(1, len(path) + 1):
            origins.setdefault(path[:depth], "command line")
        origins[path] = "command line"
    return problems


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


def overridden_keys(overrides: Sequence[str]) -> set[str]:
    """Return the keys that `key=value` overrides give, such as "data.root"."""
    return {text.partition("=")[0].strip() for text in overrides}


def as_data(config: PipelineConfig) -> dict[str, Any]:
    """Return a configuration as plain data, as it would stand in a file."""
    return config.model_dump(mode="json", by_alias=True, exclude_none=True)


def check(data: Mapping[str, Any], origins: Origins, problems: Sequence[str] = ()) -> PipelineConfig:
    """Validate plain data against the schema.

    Raises:
        ConfigError: With every problem found, `problems` first.
    """
    found = list(problems)
    config: PipelineConfig | None = None
    try:
        config = PipelineConfig.model_validate(dict(data))
    except ValidationError as error:
        found += _described(error, origins)
    if found or config is None:
        raise ConfigError(summary(found), found[:_MOST_PROBLEMS])
    return config


def summary(problems: Sequence[str]) -> str:
    """Join problems into one message."""
    more = len(problems) - _MOST_PROBLEMS
    rest = f"\n... and {more} more." if more > 0 else ""
    count = "" if len(problems) == 1 else f"\n{len(problems)} problems. Nothing was started."
    return "\n".join(problems[:_MOST_PROBLEMS]) + rest + count


_MOST_PROBLEMS = 100
"""That are told."""


def _described(error: ValidationError, origins: Origins) -> list[str]:
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
    """Drop what pydantic adds for unions; return the key's path and the section it is in."""
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


_YAML_WORDS = {
    "model_type": "must be a section of keys",
    "dict_type": "must be a section of keys",
    "tuple_type": "must be a list",
}
"""Where pydantic speaks of Python's types."""


def _problem(details: ErrorDetails, path: KeyPath, section: type[BaseModel]) -> str:
    kind, got = details["type"], _shown(details["input"])
    if kind == "extra_forbidden":
        names = [field.alias or name for name, field in section.model_fields.items()]
        near = get_close_matches(path[-1], names, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'?" if near else f"Valid here: {', '.join(names)}."
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
    said, got = texts[0].rpartition(" (got ")[::2]
    others = (text.rpartition(" (got ")[0].removeprefix("must be ") for text in texts[1:])
    return f"{' or '.join([said, *others])} (got {got}"


def _shown(value: Any) -> str:
    return "nothing" if value is None else quoted(value)
