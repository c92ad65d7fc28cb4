"""Tables and bars."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

from rich.table import Table
from rich.text import Text

from bnprune.cli.render.console import stdout


def make_table(*columns: str, words: Collection[str] = ()) -> Table:
    """Return an empty table: columns are right-aligned, except the first, those without a name, and those of words.

    On a narrow terminal, the first column is broken into lines first if there are columns of words.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        right = bool(position and column and column not in words)
        table.add_column(
            column, justify="right" if right else "left", overflow="fold", no_wrap=bool(words and position)
        )
    return table


def show_rows(columns: Sequence[str], rows: Sequence[Sequence[str | Text]], words: Collection[str] = ()) -> None:
    """Print a table on stdout; `words` are the columns that hold words, aligned to the left."""
    table = make_table(*columns, words=words)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    stdout().print(table)


def bar(part: int, whole: int, longest: int | None = None, width: int = 20) -> Text:
    """Draw a share as a bar, scaled so that `longest` fills the width; a part above 0 has at least one cell."""
    cells = max(round(width * whole / max(longest or whole, 1)), 1) if whole else 0
    filled = max(round(cells * part / max(whole, 1)), 1) if part else 0
    full, empty = ("█", "·") if _can_encode("█·") else ("#", ".")
    return Text.assemble((full * filled, "cyan"), (empty * (cells - filled), "dim"))


def sparkline(values: Sequence[float], largest: float) -> str:
    """Draw values from 0 to `largest` as bars of eighths, or as digits from 0 to 7."""
    bars = "▁▂▃▄▅▆▇█" if _can_encode("▁█") else "01234567"
    return "".join(bars[round(7 * min(value / largest, 1))] if largest else bars[0] for value in values)


def _can_encode(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def percent(share: float | None, digits: int = 2) -> str:
    """Return a share as text; empty for None."""
    return "" if share is None else f"{share:.{digits}%}"
