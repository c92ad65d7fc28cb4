"""γ̂: the standard deviation of each channel that layers without a BatchNorm write, the analogue of |γ|.

The output of a BatchNorm has the standard deviation |γ|, and so |γ| ranks its channels. A layer without a BatchNorm may
write the same channels, for example into a residual stream::

    conv1 ── BatchNorm (γ) ── + ── conv3       removing channel c removes γ[c] and what conv2 writes
    conv2 ────────────────────┘

Then the rank of a channel depends on γ̂ of conv2, too. It does not if only BatchNorms read what the layer writes: they
cancel its scale, and their own γ decide (a convolution before a BatchNorm, a pre-activation network). Neither does it
for a layer whose output is multiplied by one that a BatchNorm ranks and that is zero without it (squeeze-excitation).

The deviation is taken where the output is added to others or read by a layer, so that it includes factors on the way
(`x + 0.17 * branch`). It is estimated from the weights (`channel_moments`), or follows from measured deviations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from bnprune.channels.graph import ChannelGraph, LayerDeviation, Operand, Record
from bnprune.channels.labels import Labels
from bnprune.channels.union_find import NO_CHANNEL
from bnprune.pruning.candidates import Mask
from bnprune.pruning.channel_moments import Moments, base_name, of_elementwise, of_layer, of_norm, standard

Tensors = Mapping[str, torch.Tensor]
Measured = Mapping[str, torch.Tensor]
"""Measured standard deviation of the outputs of layers, each of shape (channels,), by name of the layer."""

_LAYERS = ("convolution", "linear")
_NORMS = ("native_group_norm", "native_layer_norm")


def with_deviations(graph: ChannelGraph, tensors: Tensors, measured: Measured | None = None) -> ChannelGraph:
    """Return the graph with `deviations`: γ̂ of every layer without a BatchNorm that writes ranked channels.

    Args:
        graph: The trace.
        tensors: Parameters and buffers of the network by name.
        measured: Standard deviations of layers' outputs; those of other layers are estimated.
    """
    records = graph.traces["eval"].records
    read_elsewhere = _read_elsewhere(graph)
    ranked = _ranked(graph)
    if not any(ranked[graph.units(_ids(records[position]).numpy())].any() for position in read_elsewhere):
        return graph
    for estimate in (False, True):
        writes = _Writes(graph, tensors, measured or {}, read_elsewhere, estimate)
        for record in records:
            writes.follow(record)
        deviations = writes.deviations()
        if not deviations:  # no write counts, whatever the estimates are
            return graph
    return replace(graph, deviations=deviations)


def _ranked(graph: ChannelGraph) -> Mask:
    """Return True for units that may be removed and that a BatchNorm ranks, by itself or through a gate."""
    ranked = graph.gamma_count > 0
    ranked[graph.implied[0]] = True
    ranked[NO_CHANNEL] = False
    return ranked & graph.free


def _read_elsewhere(graph: ChannelGraph) -> set[int]:
    """Return the positions of the layers that something else than a BatchNorm reads."""
    records = graph.traces["eval"].records
    read = {operand.source for record in records if record.kind != "batch_norm" for operand in record.operands}
    return {position for position, record in enumerate(records) if record.kind in _LAYERS and position in read}


@dataclass(frozen=True, slots=True)
class _Signal:
    """The properties of a tensor that the estimate needs."""

    labels: Labels
    """Its labels; of all outputs, if an operator has several."""
    moments: Moments
    layers: tuple[str, ...] = ()
    """Layers without a BatchNorm of which it is the output, before it is added to anything."""
    writes: frozenset[int] = frozenset()
    """Earlier outputs of such layers that were added to it."""
    zero: bool = True
    """True if removed channels are zero in it."""
    is_parameter: bool = False
    is_gamma: bool = False
    """True for the scale factors of a BatchNorm written as arithmetic (torchvision's FrozenBatchNorm2d)."""


@dataclass(frozen=True, slots=True)
class _Write:
    layers: tuple[str, ...]
    moments: Moments


@dataclass(slots=True)
class _Writes:
    """Follows the outputs of layers without a BatchNorm through a trace, record by record."""

    graph: ChannelGraph
    tensors: Tensors
    measured: Measured
    read_elsewhere: set[int]
    """Records of layers that something else than a BatchNorm reads; the outputs of others need no estimate."""
    estimate: bool = True
    """False to find only which writes count; their moments are then standard ones."""
    signals: list[_Signal | None] = field(default_factory=list)
    """One per record."""
    writes: list[_Write] = field(default_factory=list)
    counted: set[int] = field(default_factory=set)
    """Writes that something else than a BatchNorm reads."""

    def deviations(self) -> tuple[LayerDeviation, ...]:
        """Return γ̂ of every layer with writes that count."""
        ranked = _ranked(self.graph)
        largest: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]] = defaultdict(
            lambda: np.full(self.graph.unit_count, -1.0)
        )
        for write in (self.writes[number] for number in sorted(self.counted)):
            for layer in write.layers:
                units = self.graph.units(write.moments.ids.numpy())
                np.maximum.at(largest[layer], units, write.moments.variance.sqrt().numpy())
        deviations = []
        for layer, values in largest.items():
            units = np.flatnonzero((values >= 0) & ranked)
            if units.size:
                deviations.append(LayerDeviation(layer, units, values[units]))
        return tuple(deviations)

    def follow(self, record: Record) -> None:
        """Process the next operator call."""
        weight = self._weight(record) if record.kind in _LAYERS else None
        if record.kind == "convolution" or weight is not None:
            signal: _Signal | None = self._layer(record, weight)
        elif record.kind == "batch_norm" and self._gamma(record) is not None:
            signal = self._batch_norm(record)
        else:
            signal = self._other(record)
        self.signals.append(signal)

    # -- operators ---------------------------------------------------------------------------------------------------

    def _layer(self, record: Record, weight: str | None) -> _Signal:
        """Follow a convolution or linear layer.

        A depthwise convolution works on each channel alone, so that a BatchNorm after it cancels the scale of what it
        reads, too.
        """
        inputs = [s for s in map(self._activation, record.operands) if s is not None]
        ids = _ids(record)
        passing = self._read_others(inputs, ids)
        moments = self._output_of_layer(record, ids, weight, inputs[0].moments if inputs else None)
        measured = self.measured.get(record.site)
        if measured is not None and measured.shape == ids.shape:
            moments = moments._replace(variance=measured.detach().double().cpu().square())
        writes = frozenset[int]().union(*(self._added(signal).writes for signal in passing))
        return _Signal(_labels(record), moments, (record.site,), writes)

    def _output_of_layer(self, record: Record, ids: torch.Tensor, weight: str | None, x: Moments | None) -> Moments:
        """Estimate the output of a layer; its weight is turned so that the outputs come first."""
        is_read = self.estimate and len(self.signals) in self.read_elsewhere
        if weight is None or not is_read or not self.graph.free[self.graph.units(ids.numpy())].any():
            return standard(ids)
        axes = [self.graph.axes.get((weight, dim)) for dim in (0, 1)]
        values = self.tensors[weight]
        if axes[1] is not None and np.array_equal(axes[1], ids.numpy()):
            values = values.transpose(0, 1)
        if len(values) != len(ids):  # a grouped transposed convolution
            return standard(ids)
        names = (self._name(operand) for operand in record.operands)
        bias = next((name for name in names if name and len(self.graph.shapes[name]) == 1), None)
        return of_layer(ids, x, values, None if bias is None else self.tensors[bias])

    def _batch_norm(self, record: Record) -> _Signal:
        ids, gamma = _ids(record), self._gamma(record)
        if not self.estimate:
            return _Signal(_labels(record), standard(ids))
        has_shift = len(record.operands) % 2 == 1  # input, scale, shift, and perhaps two statistics
        shift = self._name(record.operands[2]) if has_shift else None
        scale, offset = (self._values(name, len(ids)) for name in (gamma, shift))
        return _Signal(_labels(record), of_norm(ids, scale, offset))

    def _other(self, record: Record) -> _Signal | None:
        """Follow an operator that is no layer: it passes channels on, or reads them."""
        inputs = [signal for signal in map(self._signal, record.operands) if signal is not None]
        active = [signal for signal in inputs if not signal.is_parameter]
        labels, ids = _labels(record), _ids(record)
        passing = self._read_others(active, ids)
        if not ids.numel():
            return None
        if not active:
            gamma = any(signal.is_gamma for signal in inputs)
            moments = self._moments(record, inputs, ids)
            return _Signal(labels, moments, is_parameter=bool(inputs), is_gamma=gamma)
        op = base_name(record.op)
        if len(passing) > 1 and op != "mul":
            passing = [self._added(signal) for signal in passing]
        layers = _sources(passing, op)
        writes = frozenset[int]().union(*(signal.writes for signal in passing))
        if op == "mul" and any(signal.is_gamma for signal in inputs):
            layers, writes = (), frozenset()
        others = [signal for signal in inputs if signal.is_parameter]
        return _Signal(labels, self._moments(record, [*passing, *others], ids), layers, writes, record.zero)

    # -- moments -----------------------------------------------------------------------------------------------------

    def _moments(self, record: Record, inputs: Sequence[_Signal], ids: torch.Tensor) -> Moments:
        op = base_name(record.op)
        if not self.estimate or record.kind == "batch_norm":  # an InstanceNorm, or one without scale factors
            return standard(ids)
        if op in _NORMS:
            names = [self._name(operand) for operand in record.operands[1:3]]
            scale, shift = (self._values(name, len(ids)) for name in (*names, None, None)[:2])
            return of_norm(ids, scale, shift)
        arguments = [signal.moments for signal in inputs]
        moments = of_elementwise(op, record.numbers, arguments) if arguments else None
        if moments is not None and len(moments.ids) == len(ids):
            return moments._replace(ids=ids)
        return self._picked(arguments, ids)

    def _picked(self, sources: Sequence[Moments], ids: torch.Tensor) -> Moments:
        """Return the moments of channels that an operator has moved, by their ids; standard ones for unknown ids."""
        if not self.estimate:
            return standard(ids)
        if len(sources) == 1 and len(sources[0].ids) == len(ids) and torch.equal(sources[0].ids, ids):
            return sources[0]
        blank = standard(ids[:1])
        known = torch.cat([source.ids for source in (*sources, blank)])
        place = torch.full((len(self.graph.unit_of),), -1)
        place[known.flip(0)] = torch.arange(len(known)).flip(0)
        places = place[ids]
        mean = torch.cat([source.mean for source in (*sources, blank)])[places]
        variance = torch.cat([source.variance for source in (*sources, blank)])[places]
        return Moments(ids, mean, variance)

    # -- reading and adding ------------------------------------------------------------------------------------------

    def _read_others(self, signals: Sequence[_Signal], ids: torch.Tensor) -> list[_Signal]:
        """Return those of an operator's inputs whose channels are in its output; the writes of the others count."""
        passing = []
        for signal in signals:
            if self._passes(signal, ids):
                passing.append(signal)
            else:
                self._read(signal)
        return passing

    def _passes(self, signal: _Signal, ids: torch.Tensor) -> bool:
        """Return True if some of a tensor's channels are in the output of an operator."""
        if ids is signal.moments.ids:
            return True
        present = np.zeros(self.graph.unit_count, dtype=np.bool_)
        present[self.graph.units(ids.numpy())] = True
        present[NO_CHANNEL] = False
        return bool(present[self.graph.units(signal.moments.ids.numpy())].any())

    def _added(self, signal: _Signal) -> _Signal:
        """Record what layers without a BatchNorm add to a stream."""
        if not signal.layers:
            return signal
        self.writes.append(_Write(signal.layers, signal.moments))
        return replace(signal, layers=(), writes=signal.writes | {len(self.writes) - 1})

    def _read(self, signal: _Signal) -> None:
        """Count the writes of a tensor that something else than a BatchNorm reads."""
        self.counted |= self._added(signal).writes

    # -- operands ----------------------------------------------------------------------------------------------------

    def _activation(self, operand: Operand) -> _Signal | None:
        if isinstance(operand.source, str):
            return None
        signal = self._signal(operand)
        return None if signal is None or signal.is_parameter else signal

    def _signal(self, operand: Operand) -> _Signal | None:
        """Return the properties of an operand; None for tensors without channels."""
        if not operand.labels:
            return None
        ids = _flat(operand.labels)
        if isinstance(operand.source, str):
            values = self._values(operand.source, len(ids)) if self.estimate else None
            moments = standard(ids) if values is None else Moments(ids, values, torch.zeros_like(values))
            return _Signal(operand.labels, moments, is_parameter=True, is_gamma=operand.source in self.graph.gammas)
        signal = None if operand.source is None else self.signals[operand.source]
        if signal is None:
            return _Signal(operand.labels, standard(ids))
        if signal.labels is operand.labels:
            return signal
        return replace(signal, labels=operand.labels, moments=self._picked([signal.moments], ids))

    def _values(self, name: str | None, width: int) -> torch.Tensor | None:
        """Return a parameter or buffer with one number per channel, float64; None if it has another width."""
        if name is None or self.tensors[name].numel() != width:
            return None
        return self.tensors[name].detach().double().cpu().flatten()

    def _gamma(self, record: Record) -> str | None:
        """Return the scale factors of a BatchNorm call; None if it has none that rank channels (InstanceNorm)."""
        name = self._name(record.operands[1]) if len(record.operands) > 1 else None
        return name if name in self.graph.gammas else None

    def _weight(self, record: Record) -> str | None:
        """Return the name of a layer's weight; None if it is computed, or if two activations are multiplied."""
        names = (self._name(operand) for operand in record.operands)
        return next((name for name in names if name and len(self.graph.shapes[name]) > 1), None)

    def _name(self, operand: Operand) -> str | None:
        """Return the name of a parameter or buffer, also through a transposition or another view of it."""
        source, records = operand.source, self.graph.traces["eval"].records
        while isinstance(source, int):
            record = records[source]
            source = record.operands[0].source if len(record.operands) == 1 else None
        return source if source in self.tensors else None


def _sources(passing: Sequence[_Signal], op: str) -> tuple[str, ...]:
    """Return the layers without a BatchNorm of which an operator's output is.

    A product is ranked by a factor that is zero for removed channels and has a BatchNorm.
    """
    if op == "mul" and any(signal.zero and not signal.layers for signal in passing):
        return ()
    return tuple(dict.fromkeys(layer for signal in passing for layer in signal.layers))


def _labels(record: Record) -> Labels:
    if len(record.outputs) == 1:
        return record.outputs[0][1]
    return tuple(label for _, labels in record.outputs for label in labels)


def _ids(record: Record) -> torch.Tensor:
    """Return the channel ids of an operator's outputs, shape (n,)."""
    return _flat(_labels(record))


def _flat(labels: Iterable[torch.Tensor]) -> torch.Tensor:
    flat = [label.reshape(-1) for label in labels]
    return flat[0] if len(flat) == 1 else torch.cat(flat) if flat else torch.zeros(0, dtype=torch.int64)
