"""Multiply-accumulates of one operator call, by PyTorch's own formulas (which count two FLOPs per MAC)."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count, flop_registry

_CONVOLUTION = torch.ops.aten.convolution.default
_TRANSPOSED = 6
"""Position of `transposed` among the arguments of aten::convolution."""


def macs_of(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """Return the MACs of convolutions, matrix products and attention; 0 for everything else."""
    if func is _CONVOLUTION:  # the registered formula walks all arguments in search of tensors first
        x, weight = args[:2]
        return int(conv_flop_count(x.shape, weight.shape, output.shape, transposed=args[_TRANSPOSED])) // 2
    formula = flop_registry.get(func._overloadpacket)
    return int(formula(*args, **kwargs, out_val=output)) // 2 if formula is not None else 0
