"""The numbers that go into an operator call. A width among them would be wrong in a slim network."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def numbers_in(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the numbers that go into an elementwise operator or a constant; they must not depend on a width."""
    if not _has_numbers(func):
        return ()
    values = [
        value.item() if isinstance(value, torch.Tensor) and func is _LIFT and value.numel() == 1 else value
        for value in (*args, *kwargs.values())
    ]
    numbers = (float(value) for value in values if isinstance(value, int | float))
    return tuple(math.nan if math.isnan(number) else number for number in numbers)  # one NaN, which equals itself


@functools.cache
def _has_numbers(func: torch._ops.OpOverload) -> bool:
    return torch.Tag.pointwise in func.tags or func in _CONSTANTS


_LIFT = torch.ops.aten.lift_fresh.default
_CONSTANTS = {
    _LIFT,
    torch.ops.aten.full.default,
    torch.ops.aten.full_like.default,
    torch.ops.aten.scalar_tensor.default,
    torch.ops.aten.fill_.Scalar,
}
