"""How much is said, and in what colours: --quiet, --verbose, --debug and NO_COLOR."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from bnprune.cli.stdout import emit
from bnprune.errors import ConfigError, printable

WORDS = ("--quiet", "-q", "--verbose", "-v", "--debug")
"""Options of the program itself; people write them after the verb, too."""


@dataclass
class Verbosity:
    """What the command line asks for."""

    quiet: bool = False
    """Results, warnings and errors; no progress, no remarks."""
    verbose: bool = False
    """Everything there is to say."""
    debug: bool = False
    """Tracebacks."""
    answered: bool = False
    """Whether a JSON document is on stdout: there is one at most, whatever fails afterwards."""


VERBOSITY = Verbosity()
"""Of the command that runs."""


def forward(args: Sequence[str]) -> list[str]:
    """Move the words to the front, from wherever they stand before a `--`."""
    end = list(args).index("--") if "--" in args else len(args)
    words = [word for word in args[:end] if word in WORDS]
    return [*words, *(word for word in args[:end] if word not in WORDS), *args[end:]]


def require_no_empty(args: Sequence[str]) -> None:
    """Refuse empty arguments: usually a variable of the shell that is not set, and as a path the current folder.

    Raises:
        ConfigError: An argument, or the value of an option, is empty.
    """
    for position, arg in enumerate(args):
        if not arg or (arg.startswith("--") and arg.partition("=")[1:] == ("=", "")):
            where = f"'{arg[:-1]}'" if arg else f"after '{args[position - 1]}'" if position else "at the beginning"
            raise ConfigError(f"command line: an argument is empty ({where}). Give a value, or leave it out.")


def answer(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout; nothing if there is one already."""
    if not VERBOSITY.answered:
        emit(json.dumps(document, indent=2) + "\n")
    VERBOSITY.answered = True


def say(text: str, *, err: bool = False, nl: bool = True, **style: Any) -> None:
    """Print text, in colour if there is a terminal that wants it (https://no-color.org)."""
    typer.secho(printable(text), err=err, nl=nl, **({} if os.environ.get("NO_COLOR") else style))
