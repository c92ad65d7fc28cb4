"""Code of the user's own: callables named as `package.module:function`, and hints for misspelt names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bnprune.errors import BnpruneError, ConfigError, quoted


def call_factory(reference: str, kwargs: Mapping[str, Any], where: str) -> Any:
    """Import and call `package.module:function`; modules in the current folder are found.

    Args:
        reference: Module and attribute, joined by a colon.
        kwargs: Keyword arguments of the call.
        where: What to call the setting in messages, such as "--model" or "model.factory".

    Raises:
        ConfigError: There is no such module or attribute, or the call fails.
    """
    factory = find_factory(reference, where)
    try:
        return factory(**kwargs)
    except BnpruneError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={quoted(value)}" for key, value in kwargs.items())
        raise ConfigError(f"{where}: {reference}({given}) failed: {type(error).__name__}: {error}") from error


def find_factory(reference: str, where: str) -> Callable[..., Any]:
    """Import `package.module:function`.

    Raises:
        ConfigError: There is no such module or attribute.
    """
    module_name, colon, attribute = reference.partition(":")
    if not (module_name and colon and attribute) or module_name.startswith("."):
        raise ConfigError(f"{where}: expected package.module:function (got '{reference}').")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        missing = f"there is no module '{error.name}'"
        raise ConfigError(f"{where}: '{reference}' cannot be imported: {missing}, in {here} or installed.") from error
    except AttributeError as error:
        near = hint(attribute, (name for name in vars(sys.modules[module_name]) if not name.startswith("_")))
        raise ConfigError(f"{where}: the module '{module_name}' has no '{attribute}'. {near}") from error
    except Exception as error:
        raise ConfigError(f"{where}: importing '{module_name}' failed: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ConfigError(f"{where}: '{reference}' is not callable.")
    return found


def hint(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean ...?", or the list of valid names where none is near."""
    names = list(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean '{near[0]}'?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"Choose one of: {shown}."
