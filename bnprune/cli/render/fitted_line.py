"""Lines of several parts that are fitted to the width of a terminal."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console


class Part(NamedTuple):
    """One part of a line."""

    text: str
    rank: int
    """Rank by importance: on a narrow terminal, the parts with the largest ranks are left out."""


def fitted_line(parts: Sequence[Part], width: int | None) -> str:
    """Join parts with two spaces, without the least important ones if the line would be longer than `width`.

    The part of the smallest rank always stays. None for a line of any length.
    """
    kept = [part for part in parts if part.text]
    while width is not None and len(kept) > 1 and len("  ".join(part.text for part in kept)) > width:
        kept.remove(max(kept, key=lambda part: part.rank))
    return "  ".join(part.text for part in kept)


def width_of(console: Console) -> int | None:
    """Return the columns of a terminal, or those that COLUMNS names; None for a file or a pipe."""
    return console.width if console.is_terminal or "COLUMNS" in os.environ else None


def wrapped(text: str, width: int | None) -> str:
    """Break lines between words; continued lines are indented by two more spaces. Long words stay whole.

    A terminal would break them inside words and numbers.
    """
    if width is None:
        return text
    return "\n".join(_wrapped_line(line, width) for line in text.split("\n"))


def _wrapped_line(line: str, width: int) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    broken = textwrap.wrap(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )
    return "\n".join(broken) or line


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss, or m:ss if it is shorter than an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
