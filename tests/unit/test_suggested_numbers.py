"""Numbers in messages are rounded to the safe side."""

from __future__ import annotations

import pytest

from bnprune.config.suggested_numbers import rounded_down, rounded_up


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.30041, "0.301"), (0.0123, "0.0124"), (12.04, "12.1"), (1234.5, "1240"), (0.99973, "0.9998"), (1.0, "")],
)
def test_up_and_below_a_bound(value: float, text: str) -> None:
    assert rounded_up(value, below=1 if value <= 1 else 1e9) == text


def test_down() -> None:
    assert [rounded_down(value) for value in (12.04, 128.0, 0.30096)] == ["12", "128", "0.3"]


def test_a_share_that_is_typed_is_never_below_the_number_it_comes_from() -> None:
    for whole in (7, 100, 999, 304_288):
        for part in range(1, whole, max(1, whole // 1000)):
            assert float(rounded_up(part / whole, below=1)) * whole >= part
