"""Checks of the values in a run's files. Everything that a report shows has passed one of these functions.

Raises:
    TypeError, ValueError: A value has the wrong type, or is out of bounds.
"""

from __future__ import annotations

from typing import Any

from bnprune.config.bounded_reading import table
from bnprune.errors import printable, shortened

MOST = 1e18
"""Largest count, duration or size; a larger one can only come from a damaged file."""


def plain_data(data: Any) -> dict[str, Any]:
    """Return a mapping with all texts made printable. `bounded_reading` has limited its size and depth."""
    return {printable(str(key)): _plain(value) for key, value in table(data).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return plain_data(value)
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def number(value: Any, low: float = -MOST, high: float = MOST) -> float | None:
    """Return a number within bounds; None for None, which stands for a number that was not finite."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {shortened(repr(value), 60)}")
    if not low <= value <= high:  # nor is NaN
        raise ValueError(f"expected a number from {low:g} to {high:g}, got {shortened(repr(value), 60)}")
    return float(value)


def share(value: Any) -> float | None:
    """Return a number in [0, 1], or None."""
    return number(value, 0, 1)


def amount(value: Any) -> float | None:
    """Return a number that is not negative, or None."""
    return number(value, 0)


def loss(value: Any) -> float | None:
    """Return a loss, or None. The bound is high: a training may diverge."""
    return number(value, -1e100, 1e100)


def count(value: Any) -> int:
    """Return a whole number that is not negative."""
    if not isinstance(value, int):
        raise TypeError(f"expected a count, got a {type(value).__name__}")
    number(value, 0)
    return value
