"""Multiply-accumulates of one operator call, by PyTorch's own formulas (which count two FLOPs per MAC)."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import flop_registry


def macs_of(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """Return the MACs of convolutions, matrix products and attention; 0 for everything else."""
    formula = flop_registry.get(func._overloadpacket)
    return int(formula(*args, **kwargs, out_val=output)) // 2 if formula is not None else 0
