"""Numbers that messages suggest: rounded to the safe side, so that they are accepted when they are typed."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context

_SPARE = 1e-12
"""Relative distance that covers the rounding of the sums in which the number is used."""
_MOST_DIGITS = 15


def rounded_up(value: float, digits: int = 3, *, below: float = math.inf) -> str:
    """Return a number above `value` in few digits, and in more if it would not be below a bound; empty if none is."""
    for precision in range(digits, _MOST_DIGITS):
        text = _rounded(value * (1 + _SPARE), precision, ROUND_CEILING)
        if float(text) < below:
            return text
    return ""


def rounded_down(value: float, digits: int = 3) -> str:
    """Return `value`, which is positive, or a number below it, in few digits."""
    return _rounded(value, digits, ROUND_FLOOR)


def _rounded(value: float, digits: int, rounding: str) -> str:
    return f"{Context(prec=digits, rounding=rounding).create_decimal_from_float(value).normalize():f}"
