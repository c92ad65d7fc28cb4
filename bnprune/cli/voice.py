"""How much is said, and in what colours: --quiet, --verbose, --debug and NO_COLOR."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

WORDS = ("--quiet", "-q", "--verbose", "-v", "--debug")
"""Options of the program itself; people write them after the verb, too."""


@dataclass
class Voice:
    """What the command line asks for."""

    quiet: bool = False
    """Results, warnings and errors; no progress, no remarks."""
    verbose: bool = False
    """Everything there is to say."""
    debug: bool = False
    """Tracebacks."""


VOICE = Voice()
"""Of the command that runs."""


def forward(args: Sequence[str]) -> list[str]:
    """Move the words to the front, from wherever they stand before a `--`."""
    end = list(args).index("--") if "--" in args else len(args)
    words = [word for word in args[:end] if word in WORDS]
    return [*words, *(word for word in args[:end] if word not in WORDS), *args[end:]]


def say(text: str, *, err: bool = False, nl: bool = True, **style: Any) -> None:
    """Print a line, in colour where there is a terminal that wants it (https://no-color.org)."""
    typer.secho(text, err=err, nl=nl, **({} if os.environ.get("NO_COLOR") else style))
