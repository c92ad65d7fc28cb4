"""Results as tables: for `print`, and as HTML for notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

Row = Sequence[str]

_MOST = 30
"""Rows of a table that are shown."""


def text_table(head: Row, rows: Sequence[Row]) -> list[str]:
    """Return lines of aligned columns, numbers to the right, names to the left; of many rows, the first ones."""
    shown = [head, *rows[:_MOST]]
    widths = [max(len(row[place]) for row in shown) for place in range(len(head))]
    numeric = [place > 0 and all(_NUMBER.fullmatch(row[place]) for row in rows) for place in range(len(head))]
    lines = [_aligned(row, widths, numeric) for row in shown]
    return [*lines, f"... and {len(rows) - _MOST} more"] if len(rows) > _MOST else lines


_NUMBER = re.compile(r"[\d,.]*%?")


def _aligned(row: Row, widths: Sequence[int], numeric: Sequence[bool]) -> str:
    columns = zip(row, widths, numeric, strict=True)
    return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in columns).rstrip()


def html_table(head: Row, rows: Sequence[Row]) -> str:
    """Return a table; of many rows, the first ones."""
    more = [(f"... and {len(rows) - _MOST} more", *[""] * (len(head) - 1))] if len(rows) > _MOST else []
    body = "".join(f"<tr>{_cells(row, 'td')}</tr>" for row in (*rows[:_MOST], *more))
    return f"<table><thead><tr>{_cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def html_lines(lines: Iterable[str]) -> str:
    """Return lines of text as paragraphs."""
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _cells(row: Row, tag: str) -> str:
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)


def change_row(name: str, before: int, after: int) -> Row:
    """Return a row: the name, the number before and after, and the share that is left."""
    return name, f"{before:,}", f"{after:,}", f"{after / max(before, 1):.1%}"


CHANGES = ("", "before", "after", "kept")
"""Head of a table of `change_row`."""
