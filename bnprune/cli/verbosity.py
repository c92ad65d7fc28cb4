"""The amount and the colours of output: --quiet, --verbose, --debug and NO_COLOR."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from bnprune.cli.stdout import emit
from bnprune.errors import ConfigError, printable

PROGRAM_OPTIONS = ("--quiet", "-q", "--verbose", "-v", "--debug")
"""Options of the program itself, which are allowed after the verb as well."""


@dataclass
class Verbosity:
    """The amount of output that the command line asks for."""

    quiet: bool = False
    """Print results, warnings and errors only."""
    verbose: bool = False
    """Print every detail."""
    debug: bool = False
    """Print the tracebacks of errors."""
    document_printed: bool = False
    """True if a JSON document has been printed: at most one is, even if a later step fails."""


VERBOSITY = Verbosity()
"""The setting of the running command."""


def program_options_first(args: Sequence[str]) -> list[str]:
    """Move the options of the program in front of the verb; arguments after `--` stay."""
    end = list(args).index("--") if "--" in args else len(args)
    words = [word for word in args[:end] if word in PROGRAM_OPTIONS]
    return [*words, *(word for word in args[:end] if word not in PROGRAM_OPTIONS), *args[end:]]


def require_no_empty_arguments(args: Sequence[str]) -> None:
    """Refuse empty arguments. Most come from an unset shell variable, and as a path they mean the current folder.

    Raises:
        ConfigError: An argument, or the value of an option, is empty.
    """
    for position, arg in enumerate(args):
        if not arg or (arg.startswith("--") and arg.partition("=")[1:] == ("=", "")):
            where = f"'{arg[:-1]}'" if arg else f"after '{args[position - 1]}'" if position else "at the beginning"
            raise ConfigError(f"command line: an argument is empty ({where}). Give a value, or leave it out.")


def print_document(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout, unless one has been printed already."""
    if not VERBOSITY.document_printed:
        emit(json.dumps(document, indent=2) + "\n")
    VERBOSITY.document_printed = True


def echo(text: str, *, err: bool = False, nl: bool = True, **style: Any) -> None:
    """Print text; in colour unless NO_COLOR is set (https://no-color.org)."""
    typer.secho(printable(text), err=err, nl=nl, **({} if os.environ.get("NO_COLOR") else style))
