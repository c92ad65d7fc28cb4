"""How each operator carries channels: one small function per operator, looked up by its ATen name.

A rule receives a `Call` and the operator's own arguments and returns the labels of its output, or a list of them for
an operator with several outputs. An operator without a rule freezes everything that enters it: never guess.

To teach bnprune an operator (a custom one, say), register a rule for its qualified name::

    @bnprune.rule("mylib::scale")
    def scale(call, x, factor):
        return call.labels(x)          # the output's channels are the input's
"""

from __future__ import annotations

from bnprune.channels.ops import (
    attention,
    contraction,
    creation,
    elementwise,
    movement,
    normalization,
    reduction,
    spatial,
)
from bnprune.channels.ops.registry import Rule, look_up, rule, unknown

__all__ = ["Rule", "look_up", "rule", "unknown"]

_MODULES = (attention, creation, contraction, elementwise, movement, normalization, reduction, spatial)
