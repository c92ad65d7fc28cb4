"""Boundaries: BatchNorms that may give up channels of their own, while the stream they read or write keeps them.

Several layers that add to (ResNet) or read from (DenseNet, PreResNet) one stream of channels are coupled: all of them
lose the same channels. A gate lifts that (UPSCALE, Apple, ICML 2023; Liu et al., ICCV 2017, section 3, prune
PreResNet and DenseNet with what is a read gate here):

* a *write* gate stands behind a BatchNorm that a convolution or linear layer of its own feeds. It widens the
  BatchNorm's output to the stream, with β in place of the channels that are gone: what a channel with γ = 0 wrote;
* a *read* gate stands before a BatchNorm that reads a stream. It picks the channels that the BatchNorm kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bnprune.channels.union_find import Ids
from bnprune.channels.zero_ops import stays_zero

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
    def gate(self) -> GateKind:
        """The gate that a BatchNorm behind this operator can have."""
        return "write" if self.op.startswith(_DENSE) else "read"


@dataclass(frozen=True, slots=True)
class GateSite:
    """One BatchNorm call in the trace, and the gate it could have."""

    site: str
    kind: GateKind
    ids: Ids
    """Channel ids of the stream, as far as the BatchNorm shares it; shape (C,)."""
    grouped: bool
    """Whether a depthwise or grouped convolution feeds it, whose inputs go when its outputs go."""


Operators = Mapping[str, Sequence[str]]
"""Operators that each module calls in a forward pass, with its children."""


_HARMLESS = re.compile(r"aten::(empty\.|\w*batch_norm)")
"""What PyTorch calls for a normalisation."""


def useful_gates(
    gate_sites: Sequence[GateSite],
    unit_of: Ids,
    stuck: NDArray[np.bool_],
    modules: Mapping[str, nn.Module],
    operators: Operators,
) -> dict[str, GateKind]:
    """Choose the BatchNorms a gate sets free: those coupled with others, or with something that must stay (`stuck`)."""
    able = [b for b in _able(gate_sites, modules, operators) if not b.grouped]
    crowd = np.zeros(len(stuck), dtype=np.int64)
    for gate_site in able:
        crowd[np.unique(unit_of[gate_site.ids])] += 1
    return {b.site: b.kind for b in able if ((crowd > 1) | stuck)[unit_of[b.ids]].any()}


def separating_gates(
    gate_sites: Sequence[GateSite],
    unit_of: Ids,
    stuck: NDArray[np.bool_],
    modules: Mapping[str, nn.Module],
    operators: Operators,
) -> dict[str, GateKind]:
    """Choose the BatchNorms where a gate takes a stream apart that must stay somewhere (`stuck`).

    A grouped convolution ties the stream it reads to the one it writes, along the whole network perhaps.
    """
    able = [b for b in _able(gate_sites, modules, operators) if b.grouped]
    return {b.site: b.kind for b in able if stuck[unit_of[b.ids]].any()}


def _able(gate_sites: Sequence[GateSite], modules: Mapping[str, nn.Module], operators: Operators) -> Iterator[GateSite]:
    """Yield those a gate can stand at. A BatchNorm that runs more than once belongs to several streams."""
    calls = Counter(gate_site.site for gate_site in gate_sites)
    for gate_site in gate_sites:
        module = modules.get(gate_site.site)
        whole = isinstance(module, nn.modules.batchnorm._BatchNorm) and None not in (module.weight, module.bias)
        # behind a write gate nothing but the normalisation may have happened
        plain = gate_site.kind == "read" or all(_HARMLESS.match(op) for op in operators[gate_site.site])
        if calls[gate_site.site] == 1 and whole and plain:
            yield gate_site
