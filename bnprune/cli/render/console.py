"""The consoles for results and for progress."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from bnprune.errors import printable


class _Console(Console):
    """A console that escapes characters that are not printable: names of layers and files may hold escape sequences."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def stdout() -> Console:
    """Return the console for results. Lines are wrapped only if stdout is a terminal."""
    return _Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)


def stderr() -> Console:
    """Return the console for progress and remarks."""
    return _Console(stderr=True, highlight=False)


def print_text(console: Console, text: str, style: str = "") -> None:
    """Print text without interpreting brackets as markup."""
    console.print(Text(text, style=style), soft_wrap=True)
