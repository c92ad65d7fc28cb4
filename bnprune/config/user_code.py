"""Importing and calling the user's own code (`package.module:function`), its errors, and hints for misspelt names."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast

from bnprune.errors import BnpruneError, ConfigError, first_line, quoted


def prefix(where: str) -> str:
    """Return the start of a message about a setting; empty if the setting is the `argument` of the error."""
    return f"{where}: " if where else ""


def call_factory(reference: str, kwargs: Mapping[str, Any], where: str) -> Any:
    """Import and call `package.module:function`. Modules in the current folder can be imported.

    Args:
        reference: Module and attribute, joined by a colon.
        kwargs: Keyword arguments of the call.
        where: The name of the setting in messages, such as "model.factory"; may be empty.

    Raises:
        ConfigError: The module or attribute does not exist, or the call fails.
    """
    factory = find_factory(reference, where)
    require_known_arguments(factory, kwargs, f"{prefix(where)}{reference}")
    given = ", ".join(f"{key}={quoted(value)}" for key, value in kwargs.items())
    with user_code_errors(f"{prefix(where)}{reference}({given}) failed"):
        return factory(**kwargs)


def require_known_arguments(factory: Callable[..., Any], kwargs: Mapping[str, Any], name: str) -> None:
    """Refuse keyword arguments that a function does not have, with the nearest one that it has.

    Raises:
        ConfigError: An argument is unknown.
    """
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a function without a signature
        return
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in kwargs:
        if key not in parameters:
            raise ConfigError(f"{name} has no argument {quoted(key)}. {hint(key, parameters)}")


_Wrapped = TypeVar("_Wrapped", bound=Callable[..., Any])


def hinting_arguments(function: _Wrapped) -> _Wrapped:
    """Decorate a function: the TypeError about an unknown keyword argument names the nearest one that there is."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        parameters = inspect.signature(function).parameters
        for key in kwargs:
            if key not in parameters:
                unexpected = f"{function.__name__}() got an unexpected keyword argument '{key}'"
                raise TypeError(f"{unexpected}. {hint(key, parameters)}")
        return function(*args, **kwargs)

    return cast("_Wrapped", call)


def find_factory(reference: str, where: str) -> Callable[..., Any]:
    """Import `package.module:function`.

    Raises:
        ConfigError: The module or attribute does not exist, or is not callable.
    """
    module_name, colon, attribute = reference.partition(":")
    if module_name.endswith(".py") and attribute:
        write = _as_module(Path(module_name), attribute)
        raise ConfigError(f"{prefix(where)}expected a module, not a file (got '{reference}'). {write}")
    if not (module_name and colon and attribute) or module_name.startswith("."):
        raise ConfigError(f"{prefix(where)}expected package.module:function (got '{reference}').")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with user_code_errors(f"{prefix(where)}importing '{module_name}' failed"):
        try:
            module = value = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            missing = f"{first_line(error)}."
            if error.name:
                missing = (
                    f"there is no module '{error.name}' in the current folder ({folder}), in PYTHONPATH, or among the "
                    "installed packages. Change to the folder that has it (cd), or put that folder into PYTHONPATH."
                )
            raise ConfigError(f"{prefix(where)}'{reference}' cannot be imported: {missing}") from error
        try:
            for part in attribute.split("."):
                value = getattr(value, part)
        except AttributeError as error:
            near = hint(attribute, (name for name in dir(module) if not name.startswith("_")))
            raise ConfigError(f"{prefix(where)}the module '{module_name}' has no '{attribute}'. {near}") from error
    if not callable(value):
        raise ConfigError(f"{prefix(where)}'{reference}' is not callable.")
    return value


def _as_module(file: Path, attribute: str) -> str:
    """Return how to name a function in a file: by its path from the current folder, or else with PYTHONPATH."""
    relative = Path(os.path.relpath(file))
    parts = [*relative.parent.parts, relative.stem]
    if all(part.isidentifier() for part in parts):
        return f"Write {'.'.join(parts)}:{attribute}."
    folder = shlex.quote(str(file.parent.absolute()))
    return f"Write {file.stem}:{attribute}, and put the folder into PYTHONPATH: export PYTHONPATH={folder}"


@contextmanager
def user_code_errors(failed: str, kind: type[BnpruneError] = ConfigError) -> Iterator[None]:
    """Turn every exception of the user's code, `SystemExit` included, into an error of bnprune; Ctrl-C passes through.

    Args:
        failed: The beginning of the message, such as "importing 'nets' failed".
        kind: The error to raise.
    """
    try:
        yield
    except (BnpruneError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise kind(f"{failed}: {exception_text(error)}") from error


def exception_text(error: BaseException) -> str:
    """Return an exception as Python prints it: its class, and the first line of its message."""
    kind = type(error).__name__
    return f"{kind}: {first_line(error)}" if str(error).strip() else kind


def hint(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean ...?", or the valid names if none is similar."""
    names = list(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean '{near[0]}'?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"Choose one of: {shown}."
