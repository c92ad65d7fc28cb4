"""Values of a run's files, checked where they are read: everything in a story has gone through here.

Raises:
    TypeError, ValueError: A value is not of its kind, or cannot be.
"""

from __future__ import annotations

from typing import Any

from bnprune.errors import printable, shortened

_DEEPEST = 64
MOST = 1e18
"""Of counts, seconds, bytes: beyond it, figures are those of a damaged file."""


def plain_data(found: Any) -> dict[str, Any]:
    """Return a mapping of plain data, with texts that can be shown, if it is nested as sections are."""
    if not isinstance(found, dict):
        raise TypeError(f"expected names and values, got a {type(found).__name__}")
    return {printable(str(key)): _plain(value, _DEEPEST, set()) for key, value in found.items()}


def _plain(value: Any, depth: int, seen: set[int]) -> Any:
    if isinstance(value, str):
        return printable(value)
    if not isinstance(value, dict | list):
        return value
    if not depth or id(value) in seen:  # what YAML's aliases repeat could be huge when it is written out
        raise ValueError("it is nested too deeply, or refers to a part of itself")
    seen.add(id(value))
    if isinstance(value, dict):
        return {printable(str(key)): _plain(inner, depth - 1, seen) for key, inner in value.items()}
    return [_plain(inner, depth - 1, seen) for inner in value]


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
