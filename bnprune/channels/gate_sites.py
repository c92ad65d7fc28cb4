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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bnprune.channels.union_find import Ids

if TYPE_CHECKING:
    from bnprune.channels.ops.spec import OpKind, OpSpec

GateKind = Literal["read", "write"]
Gates = Mapping[str, GateKind]
"""Kind of gate at each gated BatchNorm, by module name."""

_GROUPS = 8
"""Position of `groups` among the arguments of aten::convolution."""


@dataclass(frozen=True, slots=True)
class Producer:
    """The operator call that made a tensor."""

    gate: GateKind
    """The gate that a BatchNorm that reads this tensor can have."""
    grouped: bool
    """True for a depthwise or grouped convolution."""
    zero: bool
    """True if removed channels are zero in it."""

    @classmethod
    def of(cls, spec: OpSpec, args: Sequence[object], zeros: Sequence[bool]) -> Producer:
        """Describe an operator call, given which of its operands are zero for removed channels."""
        return cls(
            gate="write" if spec.kind in ("convolution", "linear") else "read",
            grouped=spec.kind == "convolution" and args[_GROUPS] != 1,
            zero=spec.gives_zero(zeros, args),
        )


@dataclass(frozen=True, slots=True)
class GateSite:
    """One BatchNorm call in the trace, and the gate it could have."""

    site: str
    kind: GateKind
    ids: Ids
    """Channel ids of the stream, as far as the BatchNorm shares it; shape (C,)."""
    grouped: bool
    """Whether a depthwise or grouped convolution feeds it, whose inputs go when its outputs go."""


Operators = Mapping[str, Sequence["OpKind | None"]]
"""Kinds of the operators that each module calls in a forward pass, with its children."""


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
        plain = gate_site.kind == "read" or all(op in ("batch_norm", "allocation") for op in operators[gate_site.site])
        if calls[gate_site.site] == 1 and whole and plain:
            yield gate_site
