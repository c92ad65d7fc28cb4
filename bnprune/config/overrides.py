"""Overrides: `key=value` texts that change single keys of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bnprune.config.bounded_reading import DEEPEST
from bnprune.config.prune_options import TARGETS
from bnprune.config.yaml_loader import Origins, YamlError, read_yaml
from bnprune.errors import quoted, shortened


def override(data: dict[str, Any], origins: Origins, overrides: Sequence[str]) -> list[str]:
    """Apply `a.b=value` in place, the value read as YAML; return their problems."""
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
            # A copy, because through a YAML alias the same dict may also be the value of another key.
            section[part] = section = dict(inner) if isinstance(inner, dict) else {}
        section[path[-1]] = parsed
        for depth in range(1, len(path) + 1):
            origins.setdefault(path[:depth], "command line")
        origins[path] = "command line"
    _drop_replaced_targets(data, overrides)
    _drop_replaced_images(data, overrides)
    return problems


def _drop_replaced_targets(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """Leave out the target of the recipe if an override gives another one: `prune.macs=0.3` replaces `ratio: 0.7`."""
    given = {key.removeprefix("prune.") for key in overridden_keys(overrides) if key.startswith("prune.")}
    section = data.get("prune")
    if isinstance(section, dict) and given & {*TARGETS}:
        data["prune"] = {key: value for key, value in section.items() if key not in TARGETS or key in given}


def _drop_replaced_images(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """Leave out images without labels if an override names a data set: `data.name=digits` replaces `unlabelled`."""
    keys, section = overridden_keys(overrides), data.get("data")
    if isinstance(section, dict) and keys & {"data.name", "data.factory"} and "data.unlabelled" not in keys:
        data["data"] = {key: value for key, value in section.items() if key != "unlabelled"}


def overridden_keys(overrides: Sequence[str]) -> set[str]:
    """Return the keys that `key=value` overrides give, such as "data.root"."""
    return {text.partition("=")[0].strip() for text in overrides}
