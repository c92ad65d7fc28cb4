"""The rules for ATen operators: one `OpSpec` per operator (`spec`), in files by family.

An operator without an entry freezes everything that enters it: bnprune never guesses.
"""

from __future__ import annotations

from bnprune.channels.ops import (
    attention,
    convolution,
    creation,
    elementwise,
    matmul,
    movement,
    normalization,
    reduction,
    scattering,
    spatial,
)
from bnprune.channels.ops.spec import OpSpec, rule, spec_of, unknown

__all__ = ["FAMILIES", "OpSpec", "rule", "spec_of", "unknown"]

FAMILIES = (
    attention,
    convolution,
    creation,
    elementwise,
    matmul,
    movement,
    normalization,
    reduction,
    scattering,
    spatial,
)
"""The modules that fill the table when they are imported."""
