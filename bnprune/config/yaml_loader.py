"""YAML of recipes: plain values, in bounded time and memory, with the line of each key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, cast

import yaml

from bnprune.config.bounded_reading import DEEPEST, LONGEST_NUMBER, require_shallow
from bnprune.errors import ConfigError, quoted, shortened

KeyPath = tuple[str, ...]
Origins = dict[KeyPath, str]
"""The place of each key: "configs/c10.yaml:14" or "command line"."""


_MOST_VALUES = 10_000
"""In a recipe. An alias counts as many as the value it refers to: a few lines of aliases of aliases make billions."""


class _LimitError(yaml.MarkedYAMLError):
    """Valid YAML that exceeds a limit, which `problem` names."""


class _Loader(yaml.SafeLoader):
    """YAML with fewer surprises: `1e-4` is a number, only `true` and `false` are booleans, dates are text.

    YAML 1.1 reads `1e-4` as text, and `on`, `off`, `yes` and `no` as booleans.
    Size is bounded: nodes are counted, with aliases followed, before any value is built.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        mark, is_alias, before = self.peek_event().start_mark, self.check_event(yaml.AliasEvent), self._count
        self._depth += 1
        if self._depth > DEEPEST:
            raise _LimitError(problem=f"is nested deeper than {DEEPEST} levels", problem_mark=mark)
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and node not in self._sizes:
            raise _LimitError(problem="has an alias inside the value it refers to", problem_mark=mark)
        self._count += self._sizes[node] if is_alias else 1
        self._sizes.setdefault(node, self._count - before)
        if self._count > _MOST_VALUES:
            raise _LimitError(
                problem=f"has more than {_MOST_VALUES} values, counting those behind aliases", problem_mark=mark
            )
        return cast("yaml.Node", node)

    def construct_plain(self, node: yaml.Node) -> Any:
        """Build a number, a boolean or null."""
        if len(node.value) > LONGEST_NUMBER and isinstance(node, yaml.ScalarNode):
            problem = f"has a number of more than {LONGEST_NUMBER} characters"
            raise _LimitError(problem=problem, problem_mark=node.start_mark)
        try:
            return yaml.SafeLoader.yaml_constructors[node.tag](self, node)
        except (ValueError, LookupError) as error:  # such as `!!int x`
            problem = f"has {quoted(node.value)}, which is not of the type {node.tag.rpartition(':')[2]}"
            raise _LimitError(problem=problem, problem_mark=node.start_mark) from error


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


def parse(text: str, name: str) -> tuple[dict[str, Any], Origins, list[str]]:
    """Return the data of a YAML mapping, the place of each key, and a problem for each key that is given twice.

    Raises:
        ConfigError: The text is not YAML, or not a mapping.
    """
    origins: Origins = {}
    problems: list[str] = []
    try:
        data = read_yaml(text, lambda root: problems.extend(_walk(root, (), name, origins)))
    except YamlError as error:
        line = f":{error.line}" if error.line else ""
        raise ConfigError(f"{name}{line}: {error}.") from error
    if data is None:
        raise ConfigError(f"{name}: is empty. `bnprune init` writes a recipe to start from.")
    if not isinstance(data, dict):
        raise ConfigError(f"{name}:1: expected keys such as 'model:' and 'data:', got {quoted(data)}.")
    return data, origins, problems


class YamlError(ValueError):
    """Text is not YAML, or exceeds a limit."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line
        """Counted from 1."""


def read_yaml(text: str, visit: Callable[[yaml.Node], object] | None = None) -> Any:
    """Read YAML of plain values, in bounded time and memory.

    Args:
        text: One document.
        visit: Called with the root node of the document, before values are built from it.

    Raises:
        YamlError: It is not such a document, or exceeds a limit.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        require_shallow(node, below=_nodes_in)  # again, because nested aliases add up
        if visit is not None:
            visit(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = shortened(getattr(error, "problem", None) or str(error).split("\n")[0])
        message = what if isinstance(error, _LimitError) else f"is not YAML: {what}"
        raise YamlError(message, mark.line + 1 if mark else None) from error
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
                del origins[below]  # the later section replaces the earlier one, with all of its keys
        origins[key] = place
        yield from _walk(value_node, key, name, origins)
