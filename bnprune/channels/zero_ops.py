"""Zeros: which operators give zero for a removed channel, given zero for it.

A removed channel is a channel of zeros where a weighted layer or a BatchNorm wrote it. Weights that read it are cut, so
it matters little what a sigmoid makes of it; where two activations are multiplied and summed over channels, no weight
is cut, and the sum loses nothing only if one of the two is still zero.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ONE = _names("""
    mul mm bmm addmm linear convolution native_batch_norm cudnn_batch_norm batch_norm _native_batch_norm_legit
    _native_batch_norm_legit_no_training native_group_norm glu
""")
"""Zero where one of the operands is; layers, because a removed channel's weights and shifts are zero."""
_FIRST = _names("""
    relu leaky_relu elu gelu silu tanh hardswish hardtanh mish prelu _prelu_kernel rrelu_with_noise neg abs sin sqrt
    sign expm1 log1p erf div dropout native_dropout _to_copy detach alias clone contiguous lift_fresh
    view _unsafe_view reshape _reshape_alias permute transpose t numpy_T expand repeat slice select squeeze unsqueeze
    split split_with_sizes chunk unbind index roll flip index_select unfold im2col col2im pixel_shuffle pixel_unshuffle
    constant_pad_nd narrow mean sum amax amin cumsum linalg_vector_norm native_layer_norm
    avg_pool2d _adaptive_avg_pool2d max_pool2d_with_indices upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
    grid_sampler_2d
""")
"""Zero where the first operand is."""
_ALL = _names("add sub cat stack maximum minimum lerp")
"""Zero where all operands are."""
_RULES = {**dict.fromkeys(_ONE, "one"), **dict.fromkeys(_FIRST, "first"), **dict.fromkeys(_ALL, "all")}


@functools.cache
def _rule(op: str) -> str:
    name = op.partition("::")[2].partition(".")[0]
    return _RULES.get(name) or _RULES.get(name.removesuffix("_")) or ""


def _suits(op: str, args: Sequence[Any]) -> bool:
    """Look at the numbers of operators that keep zeros with some only."""
    low, high, padded = -1.0, 1.0, 0.0
    if op.startswith("aten::hardtanh"):
        low, high = args[1:3] if len(args) > 2 else (low, high)
    elif op.startswith("aten::constant_pad_nd") and len(args) > 2:
        padded = args[2]
    return bool(low <= 0 <= high and padded == 0)


def stays_zero(op: str, operands: Sequence[bool], args: Sequence[Any] = ()) -> bool:
    """Tell whether an operator ("aten::mul.Tensor") gives zero, given which of its tensors are zero.

    A sum of one tensor has a number for the other term.
    """
    if not _suits(op, args):
        return False
    match _rule(op):
        case "one":
            return any(operands)
        case "first":
            return any(operands[:1])
        case "all":
            return len(operands) > 1 and all(operands)
    return False
