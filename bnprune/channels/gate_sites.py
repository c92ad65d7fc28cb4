"""Gate sites: BatchNorms that may lose channels of their own, while the stream they read or write keeps them.

Several layers that add to (ResNet) or read from (DenseNet, PreResNet) one stream of channels are coupled: all of them
lose the same channels. A gate removes that coupling (UPSCALE, Apple, ICML 2023; Liu et al., ICCV 2017, section 3, prune
PreResNet and DenseNet with what is a read gate here):

* a *write* gate follows a BatchNorm whose input comes from a convolution or linear layer. It widens the BatchNorm's
  output to the width of the stream, with β for the removed channels: the output of a channel with γ = 0;
* a *read* gate precedes a BatchNorm that reads a stream. It selects the channels that the BatchNorm kept::

    write:  conv (C -> 3) -> BatchNorm(3) -> gate (3 -> 8) -> + stream (8)
    read:   stream (8) -> gate (8 -> 3) -> BatchNorm(3) -> conv (3 -> C)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bnprune.channels.torch_internals import BatchNorm
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
    constant: bool
    """True if all its values are constants, as in `x.new_zeros(...)`."""
    record: int
    """Position of the call in the trace."""

    @classmethod
    def of(
        cls, spec: OpSpec, args: Sequence[object], zeros: Sequence[bool], constants: Sequence[bool], record: int
    ) -> Producer:
        """Describe an operator call.

        Args:
            spec: The operator.
            args: Its positional arguments.
            zeros: True for each operand that is zero for removed channels.
            constants: True for each operand that is constant.
            record: Position of the call in the trace.
        """
        return cls(
            gate="write" if spec.kind in ("convolution", "linear") else "read",
            grouped=spec.kind == "convolution" and args[_GROUPS] != 1,
            zero=spec.gives_zero(zeros, args),
            constant=spec.kind in ("allocation", "constant") or (bool(constants) and all(constants)),
            record=record,
        )


@dataclass(frozen=True, slots=True)
class GateSite:
    """One BatchNorm call in the trace, and the gate that it could have."""

    site: str
    kind: GateKind
    ids: Ids
    """Channel ids of its input, shape (C,)."""
    grouped: bool
    """True if its input comes from a depthwise or grouped convolution, which couples its inputs with its outputs."""


Operators = Mapping[str, Sequence["OpKind | None"]]
"""Kinds of the operators that each module calls in a forward pass, with its children."""


def useful_gates(
    gate_sites: Sequence[GateSite],
    unit_of: Ids,
    must_stay: NDArray[np.bool_],
    modules: Mapping[str, nn.Module],
    operators: Operators,
) -> dict[str, GateKind]:
    """Choose the BatchNorms that a gate decouples from others, or from units that must stay.

    Args:
        gate_sites: BatchNorm calls of the trace.
        unit_of: Unit of each channel id, shape (ids,).
        must_stay: True for units that cannot be removed, shape (units,).
        modules: Modules of the network by name.
        operators: Kinds of the operators that each BatchNorm calls.
    """
    eligible = [site for site in _eligible(gate_sites, modules, operators) if not site.grouped]
    norms_in_unit = np.zeros(len(must_stay), dtype=np.int64)
    for gate_site in eligible:
        norms_in_unit[np.unique(unit_of[gate_site.ids])] += 1
    decouples = (norms_in_unit > 1) | must_stay
    return {site.site: site.kind for site in eligible if decouples[unit_of[site.ids]].any()}


def separating_gates(
    gate_sites: Sequence[GateSite],
    unit_of: Ids,
    must_stay: NDArray[np.bool_],
    modules: Mapping[str, nn.Module],
    operators: Operators,
) -> dict[str, GateKind]:
    """Choose the BatchNorms after grouped convolutions whose stream has units that must stay.

    A grouped convolution couples the stream it reads with the one it writes, possibly along the whole network; a gate
    after it separates the two. The arguments are those of `useful_gates`.
    """
    eligible = [site for site in _eligible(gate_sites, modules, operators) if site.grouped]
    return {site.site: site.kind for site in eligible if must_stay[unit_of[site.ids]].any()}


def _eligible(
    gate_sites: Sequence[GateSite], modules: Mapping[str, nn.Module], operators: Operators
) -> Iterator[GateSite]:
    """Yield the calls whose BatchNorm can have a gate. One that runs more than once belongs to several streams."""
    calls = Counter(gate_site.site for gate_site in gate_sites)
    for gate_site in gate_sites:
        module = modules.get(gate_site.site)
        is_affine = isinstance(module, BatchNorm) and None not in (module.weight, module.bias)
        # with a write gate, the module may only normalise: an activation in a subclass would change the constants
        kinds = operators[gate_site.site]
        only_normalises = gate_site.kind == "read" or all(kind in ("batch_norm", "allocation") for kind in kinds)
        if calls[gate_site.site] == 1 and is_affine and only_normalises:
            yield gate_site
