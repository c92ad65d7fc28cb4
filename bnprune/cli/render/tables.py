"""Tables and bars."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from bnprune.cli.render.console import stdout


def make_table(*columns: str) -> Table:
    """Return an empty table: columns are right-aligned, except the first and those without a name, which hold bars."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position and column else "left", overflow="fold")
    return table


def show_rows(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a table on stdout."""
    table = make_table(*columns)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    stdout().print(table)


def bar(part: int, whole: int, longest: int | None = None, width: int = 20) -> Text:
    """Draw a share as a bar, scaled so that `longest` fills the width; a part above 0 has at least one cell."""
    cells = max(round(width * whole / max(longest or whole, 1)), 1) if whole else 0
    filled = max(round(cells * part / max(whole, 1)), 1) if part else 0
    full, empty = ("█", "·") if _can_encode("█·") else ("#", ".")
    return Text.assemble((full * filled, "cyan"), (empty * (cells - filled), "dim"))


def _can_encode(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def percent(share: float | None, digits: int = 2) -> str:
    """Return a share as text; empty for None."""
    return "" if share is None else f"{share:.{digits}%}"
