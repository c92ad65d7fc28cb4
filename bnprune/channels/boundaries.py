"""Boundaries: BatchNorms that may give up channels of their own, while the stream they read or write keeps them.

Several layers that add to (ResNet) or read from (DenseNet, PreResNet) one stream of channels are coupled: all of them
lose the same channels. A gate lifts that (UPSCALE, Apple, ICML 2023; Liu et al., ICCV 2017, section 3, prune
PreResNet and DenseNet with what is a read gate here):

* a *write* gate stands behind a BatchNorm that a convolution or linear layer of its own feeds. It widens the
  BatchNorm's output to the stream, with β in place of the channels that are gone: what a channel with γ = 0 wrote;
* a *read* gate stands before a BatchNorm that reads a stream. It picks the channels that the BatchNorm kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from bnprune.channels.ids import NO_CHANNEL, Ids, Refusal
from bnprune.channels.zeros import stays_zero

GateKind = Literal["read", "write"]
Gates = Mapping[str, GateKind]
"""Kind of gate at each gated BatchNorm, by module name."""

_DENSE = ("aten::convolution", "aten::mm", "aten::addmm", "aten::linear")
_GROUPS = 8
"""Position of `groups` among the arguments of aten::convolution."""


@dataclass(frozen=True, slots=True)
class Producer:
    """The operator call that made a tensor."""

    op: str
    grouped: bool
    zero: bool
    """Whether it gives zero for removed channels."""

    @classmethod
    def of(cls, op: str, args: Sequence[object], zeros: Sequence[bool]) -> Producer:
        """Describe an operator call, given which of its operands are zero for removed channels."""
        return cls(op, op.startswith("aten::convolution") and args[_GROUPS] != 1, stays_zero(op, zeros, args))

    @property
    def gate(self) -> GateKind | None:
        """The gate that a BatchNorm behind this operator can have; none behind a depthwise or grouped convolution."""
        if self.grouped:
            return None
        return "write" if self.op.startswith(_DENSE) else "read"


@dataclass(frozen=True, slots=True)
class Boundary:
    """One BatchNorm call in the trace, and the gate it could have."""

    site: str
    kind: GateKind
    ids: Ids
    """Channel ids of the stream, as far as the BatchNorm shares it; shape (C,)."""


def can_be_gated(module: nn.Module | None, kind: GateKind) -> bool:
    """Tell whether a gate may take the place of a module: behind it nothing but the normalisation may have happened."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.weight is None or module.bias is None:
        return False
    return kind == "read" or type(module).forward in (nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward)


def worth_a_gate(
    boundaries: Sequence[Boundary], unit_of: Ids, frozen: Sequence[Refusal | None], modules: Mapping[str, nn.Module]
) -> dict[str, GateKind]:
    """Choose the BatchNorms a gate sets free: those coupled with others, or with something that must stay.

    A BatchNorm that runs more than once belongs to several streams, and stays as it is.
    """
    calls = Counter(boundary.site for boundary in boundaries)
    able = [b for b in boundaries if calls[b.site] == 1 and can_be_gated(modules.get(b.site), b.kind)]
    crowd = np.zeros(len(frozen), dtype=np.int64)
    for boundary in able:
        crowd[np.unique(unit_of[boundary.ids])] += 1
    stuck = np.array([why is not None for why in frozen])
    stuck[NO_CHANNEL] = False
    return {b.site: b.kind for b in able if ((crowd > 1) | stuck)[unit_of[b.ids]].any()}
