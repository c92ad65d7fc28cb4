"""The channel graph of a network: its units, the tensors they slice, and the reasons why some must stay."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bnprune.channels.control_flow import Decisions
from bnprune.channels.gate_sites import GateKind, GateSite
from bnprune.channels.labels import Labels
from bnprune.channels.op_context import Count, Work
from bnprune.channels.ops.spec import OpKind
from bnprune.channels.union_find import NO_CHANNEL, Ids, Refusal
from bnprune.notes import Note


class Operand(NamedTuple):
    """A tensor that enters an operator call."""

    source: int | str | None
    """Position of the record that made it; name of a parameter or buffer; None for inputs and constants."""
    labels: Labels


class Record(NamedTuple):
    """One operator call of the trace, to be compared with the same call in the slim network."""

    op: str
    site: str
    numbers: tuple[float, ...]
    """Numeric arguments of an elementwise operator; they must not depend on a width."""
    operands: tuple[Operand, ...]
    outputs: tuple[tuple[tuple[int, ...], Labels], ...]
    """Shape and labels of each output tensor."""
    listed: bool
    """True if the operator returns a list or tuple."""
    macs: int
    kind: OpKind | None
    zero: bool
    """True if removed channels are zero in the output."""

    @property
    def inputs(self) -> Labels:
        """Labels of all operands."""
        return tuple(label for operand in self.operands for label in operand.labels)


@dataclass(frozen=True, slots=True)
class Trace:
    """One traced forward pass."""

    records: tuple[Record, ...]
    decisions: Decisions
    """Its decisions; none on the meta device."""
    work: tuple[Work, ...]
    gate_sites: tuple[GateSite, ...]
    """BatchNorm calls that could have a gate."""
    macs_vary: bool
    """True if a layer ran after a decision, so that MACs may depend on data."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the pass."""
        return sum(record.macs for record in self.records)

    def differs_from(self, other: Trace) -> str | None:
        """Return the module of the first operator call that differs in operator or numbers; None if none does."""
        for first, second in itertools.zip_longest(self.records, other.records):
            if first is None or second is None or first[:3] != second[:3]:
                return str((first or second).site)
        return None

    def op_kinds_in(self, sites: Collection[str]) -> dict[str, list[OpKind | None]]:
        """Return the kinds of the operators that each of these modules calls, with its children."""
        kinds: dict[str, list[OpKind | None]] = {site: [] for site in sites}
        for record in self.records:
            site = record.site
            while site:
                if site in kinds:
                    kinds[site].append(record.kind)
                site = site.rpartition(".")[0]
        return kinds


class EarlierPass:
    """An earlier forward pass, to be compared with a later one operator call by operator call."""

    def __init__(self, trace: Trace) -> None:
        self.replay = trace.decisions.replay()
        self._records = iter(trace.records)

    def next_record(self, op: str, site: str, results: Sequence[torch.Tensor]) -> Record | None:
        """Return the record of the next call; None if that was another operator, module or shape."""
        record = next(self._records, None)
        if record is None or (record.op, record.site) != (op, site):
            return None
        return record if [shape for shape, _ in record.outputs] == [tuple(r.shape) for r in results] else None


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with a width of its own: a convolution, a linear layer or a BatchNorm."""

    name: str
    kind: str
    """"conv", "linear" or "norm"."""
    ids: Ids
    """Channel ids of its output, shape (width,); NO_CHANNEL for channels that can never be removed."""


@dataclass(frozen=True, slots=True)
class LayerDeviation:
    """Standard deviation of each channel that a layer without a BatchNorm writes (γ̂)."""

    layer: str
    units: Ids
    """Units of the channels, each once; shape (units written,)."""
    values: NDArray[np.float64]
    """Standard deviations, same shape. For several channels of one unit, the largest."""


@dataclass(frozen=True, slots=True)
class GatedNorm:
    """A BatchNorm that may lose channels which the stream keeps; it always loses those that the stream loses."""

    site: str
    """Name of its module."""
    kind: GateKind
    stream: Ids
    """Channel ids of the stream, shape (C,)."""
    own: Ids
    """Channel ids of the BatchNorm, shape (C,)."""


@dataclass(frozen=True)
class ChannelGraph:
    """The channels of a network, in units that are removed together, and the tensors that hold them.

    A unit is the smallest set of (tensor, dimension, index) slices that can be removed. Units are dense integers;
    unit 0 stands for everything that belongs to no channel.
    """

    unit_of: Ids
    """Unit of each channel id, shape (ids,)."""
    frozen: tuple[Refusal | None, ...]
    """Why each unit must stay; None for units that may be removed."""
    axes: dict[tuple[str, int], Ids]
    """Channel ids along a dimension of a named parameter or buffer."""
    gammas: dict[str, str]
    """Names of the tensors that hold BatchNorm scale factors -> name of their module."""
    layers: tuple[Layer, ...]
    counts: tuple[Count, ...]
    shapes: dict[str, tuple[int, ...]]
    """Shape of every parameter and buffer: the identity of the network."""
    aliases: dict[str, str]
    """Further names of tensors that appear more than once -> their first name."""
    traces: dict[str, Trace]
    """Forward passes by mode: "eval" and, if they differ, "train" and those of `FORCED_BRANCHES`."""
    real: bool
    """True if the trace needed real tensors (data-dependent control flow)."""
    notes: tuple[Note, ...] = field(default=())
    gates: tuple[GatedNorm, ...] = field(default=())
    """BatchNorms with a gate; none with coupling "shared"."""
    deviations: tuple[LayerDeviation, ...] = field(default=())
    """Layers without a BatchNorm that write channels which other layers share with a BatchNorm: estimated from the
    weights, or measured (`bnprune.pruning.output_deviation`). `trace` leaves this empty."""

    @property
    def unit_count(self) -> int:
        """Number of units, unit 0 included."""
        return len(self.frozen)

    @cached_property
    def free(self) -> NDArray[np.bool_]:
        """True for units that may be removed, shape (units,)."""
        return np.array([why is None for why in self.frozen], dtype=np.bool_)

    def units(self, ids: Ids) -> Ids:
        """Return the units of channel ids, same shape."""
        units: Ids = self.unit_of[ids]
        return units

    @cached_property
    def gamma_units(self) -> dict[str, Ids]:
        """Unit of each channel of each scale factor tensor, by tensor name; NO_CHANNEL for one-channel layers."""
        units_of = {}
        for name in self.gammas:
            ids = self.axes.get((name, 0))
            width = self.shapes[name][0]
            units_of[name] = self.units(ids) if ids is not None else np.full(width, NO_CHANNEL, dtype=np.int64)
        return units_of

    @cached_property
    def gamma_count(self) -> Ids:
        """Number of BatchNorm channels in each unit, shape (units,)."""
        count = np.zeros(self.unit_count, dtype=np.int64)
        for units in self.gamma_units.values():
            np.add.at(count, units, 1)
        return count

    @cached_property
    def implied(self) -> tuple[Ids, Ids]:
        """Pairs of units: if the first is removed, the second must be removed. Shapes (pairs,)."""
        empty = [np.zeros(0, dtype=np.int64)]
        first = np.concatenate([*(self.units(gate.stream) for gate in self.gates), *empty])
        second = np.concatenate([*(self.units(gate.own) for gate in self.gates), *empty])
        apart = first != second
        return first[apart], second[apart]
