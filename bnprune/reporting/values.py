"""Values of a run's files, checked where they are read: everything in a story has gone through here.

Raises:
    TypeError, ValueError: A value is not of its kind, or cannot be.
"""

from __future__ import annotations

from typing import Any

from bnprune.config.bounded_reading import table
from bnprune.errors import printable, shortened

MOST = 1e18
"""Of counts, seconds, bytes: beyond it, figures are those of a damaged file."""


def plain_data(found: Any) -> dict[str, Any]:
    """Return a mapping of plain data, with texts that can be shown. `reading` has bounded its size and depth."""
    return {printable(str(key)): _plain(value) for key, value in table(found).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return plain_data(value)
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def number(value: Any, low: float = -MOST, high: float = MOST) -> float | None:
    """Return a number within bounds, or None; what is not finite is written as null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {shortened(repr(value), 60)}")
    if not low <= value <= high:  # nor is NaN
        raise ValueError(f"expected a number from {low:g} to {high:g}, got {shortened(repr(value), 60)}")
    return float(value)


def share(value: Any) -> float | None:
    """Return a share of a whole, or None."""
    return number(value, 0, 1)


def amount(value: Any) -> float | None:
    """Return what is not negative, or None."""
    return number(value, 0)


def loss(value: Any) -> float | None:
    """Return a loss, or None: that of a training that diverges may be large."""
    return number(value, 0, 1e100)


def count(value: Any) -> int:
    """Return a whole number that is not negative."""
    if not isinstance(value, int):
        raise TypeError(f"expected a count, got a {type(value).__name__}")
    number(value, 0)
    return value
