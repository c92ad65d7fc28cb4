"""The result of a command: as text, or as one JSON document."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from bnprune.cli.verbosity import print_document
from bnprune.runs.results import Document

Result = TypeVar("Result", bound=Document)


def output(result: Result, show: Callable[[Result], None], *, as_json: bool) -> None:
    """Print a result on stdout: as JSON, or as text with `show`."""
    if as_json:
        print_document(result.to_dict())
    else:
        show(result)
