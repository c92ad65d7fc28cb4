"""Trust: which entries of a file about models and data are used. All such entries are read here.

A file from a stranger is data. It may name an architecture of the zoo, torchvision or timm with plain keyword
arguments, and a built-in data set. Nothing is imported, called, opened or downloaded because a file names it, unless
the user trusts the file: for one call (`trust=True`, `--trust`), or for every file below the folders that the
environment variable BNPRUNE_TRUST lists.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bnprune.config.field_types import UserOnly
from bnprune.config.schema import PipelineConfig
from bnprune.errors import UntrustedError, quoted, shortened
from bnprune.models.zoo import ModelSpec
from bnprune.runs.files import real_path

TRUST_VARIABLE = "BNPRUNE_TRUST"

Withheld = dict[str, str]
"""Entries of a file that are ignored: key, such as "data.factory" -> its value, shortened; "" if unknown."""


def is_trusted(path: Path, *, asked: bool = False) -> bool:
    """Return True if code that a file names may run: if `asked`, or if the file is below a trusted folder."""
    if asked:
        return True
    folders = [Path(text) for text in os.environ.get(TRUST_VARIABLE, "").split(os.pathsep) if text]
    return any(real_path(path).is_relative_to(real_path(folder)) for folder in folders)


# -- networks ---------------------------------------------------------------------------------------------------------

_INITIAL_WEIGHTS = {
    *("weights", "weights_backbone", "weight_init"),
    *("pretrained", "pretrained_backbone", "checkpoint_path", "progress"),
}
"""Arguments that select initial weights. They are left out, because the weights in the file replace them."""
_READS = re.compile(r"(^|_)(weights?|pretrained|checkpoint|cache|path|dir|file|filename|url|hub|token|cfg)(_|$)")
"""Names of arguments that can make a constructor read or fetch something, unless they are numbers: `drop_path=0.1`."""
_FETCHES = re.compile(r"pretrained|download|hub|cache")
"""Names of arguments that may start a download if they are True."""
_WORD = re.compile(r"[A-Za-z0-9_.+-]{0,64}")
"""Text that can be the name of a layer or a mode, but not a path, an address, a scheme or a reference to code."""
_LARGEST, _MOST, _DEEPEST = 2**31, 64, 4


def spec_from_file(data: Mapping[str, Any], *, trusted: bool) -> tuple[ModelSpec, Withheld]:
    """Return the specification of the network that a file names.

    Args:
        data: {"name": ..., "kwargs": {...}}, or "factory" in place of "name".
        trusted: True if the file may name anything.

    Returns:
        The specification, and the arguments that were left out of it.
    """
    spec = ModelSpec(data.get("name"), data.get("factory"), dict(data.get("kwargs", {})))
    if trusted:
        return spec, {}
    kwargs = {key: value for key, value in spec.kwargs.items() if key not in _INITIAL_WEIGHTS}
    refused = {key for key, value in kwargs.items() if not _is_harmless(key, value)}
    withheld = {f"model.kwargs.{key}": _shown(kwargs[key]) for key in refused}
    kept = {key: value for key, value in kwargs.items() if key not in refused}
    return ModelSpec(spec.name, spec.factory, kept), withheld


def require_arguments(path: str, withheld: Withheld) -> None:
    """Refuse to build a network whose arguments were left out.

    Raises:
        UntrustedError: Some arguments were left out.
    """
    refused = {key: value for key, value in withheld.items() if key.startswith("model.")}
    if refused:
        raise UntrustedError(path, refused, "model")


def _is_harmless(key: str, value: Any) -> bool:
    if isinstance(value, bool):
        return key.isidentifier() and len(key) <= _MOST and not _FETCHES.search(key.lower())
    number = isinstance(value, int | float)
    return key.isidentifier() and len(key) <= _MOST and _is_plain(value) and (number or not _READS.search(key.lower()))


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Return True for a number of ordinary size, a word, true, false, nothing, and short lists and mappings of them."""
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) < _LARGEST
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    if depth >= _DEEPEST or not isinstance(value, list | dict) or len(value) > _MOST:
        return False
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    return all(_is_plain(part, depth + 1) for part in parts)


# -- recipes ----------------------------------------------------------------------------------------------------------


def recipe_from_file(data: Mapping[str, Any], spec: ModelSpec, *, trusted: bool) -> tuple[dict[str, Any], Withheld]:
    """Return a recipe of a file without the entries that an untrusted file may not have.

    Args:
        data: The recipe, as plain data that has not been checked yet.
        spec: The result of `spec_from_file`. It replaces the recipe's `model` section.
        trusted: True if the file may name anything.

    Returns:
        The recipe without keys that are marked `UserOnly`, and those of them that are needed.
    """
    if trusted:
        return dict(data), {}
    withheld: Withheld = {}
    clean = _without_marked(data, PipelineConfig, "", withheld)
    clean["model"] = spec.to_dict()
    return clean, {key: shown for key, shown in withheld.items() if not key.startswith("model.")}


def _without_marked(
    data: Mapping[str, Any], section: type[BaseModel], prefix: str, withheld: Withheld
) -> dict[str, Any]:
    fields = dict(_fields(section))
    clean: dict[str, Any] = {}
    for key, value in data.items():
        field = fields.get(key)
        mark = field and next((mark for mark in field.metadata if isinstance(mark, UserOnly)), None)
        if field is None or (mark is None and not isinstance(value, Mapping)):
            clean[key] = value
        elif mark is None:
            inner = _section_of(field)
            kept = value if inner is None else _without_marked(value, inner, f"{prefix}{key}.", withheld)
            if kept or not value:  # a section of which nothing is left is left out
                clean[key] = kept
        elif mark.needed and value is not None and value != _default(field):
            withheld[f"{prefix}{key}"] = _shown(value)
    return clean


def _fields(section: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield fields by every name that data may use for them."""
    for name, field in section.model_fields.items():
        yield name, field
        if field.alias is not None:
            yield field.alias, field


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    annotations = (field.annotation, *getattr(field.annotation, "__args__", ()))
    return next((kind for kind in annotations if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _default(field: FieldInfo) -> Any:
    default = field.get_default(call_default_factory=True)
    return str(default) if isinstance(default, Path) else default


def missing_entries(withheld: Withheld, overridden: set[str], sections: tuple[str, ...]) -> Withheld:
    """Return the entries of a stored recipe that were left out, that a command needs, and that the user has not given.

    Args:
        withheld: The entries that were left out.
        overridden: Keys the user gives, such as "data.root".
        sections: First parts of the keys that the command needs; none for all.
    """
    if overridden & {"data.name", "data.factory", "data.unlabelled"}:
        overridden = overridden | {"data.factory", "data.kwargs", "data.unlabelled"}
    if overridden & {"task", "task.name", "task.factory"}:
        overridden = overridden | {"task.factory", "task.kwargs"}
    return {
        key: shown
        for key, shown in withheld.items()
        if key not in overridden and (not sections or key.partition(".")[0] in sections)
    }


def _shown(value: Any) -> str:
    return shortened(value, 60) if isinstance(value, str) else quoted(value)
