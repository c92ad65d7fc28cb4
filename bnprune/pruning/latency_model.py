"""The latency model: milliseconds that a selection leaves, estimated from a latency profile."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

import numpy as np

from bnprune.channels.graph import ChannelGraph, Record
from bnprune.channels.op_context import Work
from bnprune.channels.union_find import NO_CHANNEL, Ids
from bnprune.errors import PruningError
from bnprune.pruning.candidates import Mask
from bnprune.pruning.latency_profile import LatencyProfile, LatencyTable
from bnprune.pruning.scores import Scores

Change = dict[int, tuple[int, int]]
"""Channels that layer calls lose: index of the call -> (inputs, outputs)."""
_NO_COST = ("view", "split", "slice", "allocation", "constant")
"""Kinds of operators that compute nothing."""
_IN_TABLES = ("convolution", "linear")


class LatencyModel:
    """Latency as a function of the removed units.

    It is the sum of the latencies of the layers, read from the tables of the profile at the widths that are kept, and
    of the rest of the network (normalisation, activations, additions, pooling). The time of each operator of the rest
    is proportional to the channels that it writes::

        latency = sum of table(inputs kept, outputs kept) + sum of ms x channels kept / channels

    Widths count up to the next multiple at which the latency of a layer really changes: with steps of 8, a
    layer of 57 channels takes as long as one of 64.
    """

    def __init__(self, graph: ChannelGraph, profile: LatencyProfile) -> None:
        self._graph = graph
        work = [work for work in graph.traces["eval"].work if work.layer]
        self._calls = _matched(work, profile)
        self._rest_share = _rest_shares(graph, profile.rest)
        self._known: dict[tuple[int, int, int], float] = {}
        self._tables = [table.interpolation() for table in profile.tables]
        layers = sum(self._layer(index, *pair) for index, pair in enumerate(self.dense_widths))
        self._rest = max(profile.total_ms - layers, 0.0)
        self._of_unit = self._changes_of_units()

    @property
    def longest_step(self) -> int:
        """The most channels that have to go together before latency changes."""
        return max(max(table.steps.inputs, table.steps.outputs) for _, table in self._placed())

    @property
    def dense_widths(self) -> list[tuple[int, int]]:
        """Input and output width of each layer call of the dense network."""
        return [(table.inputs[-1], table.outputs[-1]) for _, table in self._placed()]

    def ms(self, removed: Mask) -> float:
        """Return the estimated milliseconds of the network without these units; shape (units,)."""
        return self.ms_at(self.widths_after(np.flatnonzero(removed)), float(self._rest_share[removed].sum()))

    def ms_at(self, widths: list[tuple[int, int]], rest_removed: float) -> float:
        """Return the milliseconds for given widths of all layer calls, and a removed share of the rest."""
        return sum(self._layer(index, *pair) for index, pair in enumerate(widths)) + self._rest * (1 - rest_removed)

    def widths_after(self, units: Iterable[int]) -> list[tuple[int, int]]:
        """Return the widths of all layer calls without these units."""
        widths = self.dense_widths
        for index, (fewer_in, fewer_out) in self.change(units).items():
            inputs, outputs = widths[index]
            widths[index] = inputs - fewer_in, outputs - fewer_out
        return widths

    def change(self, units: Iterable[int]) -> Change:
        """Return the channels that every layer call loses with these units."""
        lost: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        for unit in units:
            for index, side, count in self._of_unit.get(int(unit), ()):
                lost[index][side] += count
        return {index: (sides[0], sides[1]) for index, sides in lost.items()}

    def saved(self, widths: list[tuple[int, int]], change: Change, units: Ids) -> float:
        """Return the milliseconds that removing units saves in a network that has these widths already."""
        saved = self._rest * float(self._rest_share[units].sum())
        for index, (fewer_in, fewer_out) in change.items():
            inputs, outputs = widths[index]
            saved += self._layer(index, inputs, outputs) - self._layer(index, inputs - fewer_in, outputs - fewer_out)
        return saved

    def _layer(self, index: int, inputs: int, outputs: int) -> float:
        number, table = self._calls[index][1:]
        inputs = _up(inputs, table.steps.inputs, table.inputs[-1])
        outputs = _up(outputs, table.steps.outputs, table.outputs[-1])
        key = number, inputs, outputs
        if key not in self._known:
            self._known[key] = self._tables[number](inputs, outputs)
        return self._known[key]

    def _placed(self) -> list[tuple[Work, LatencyTable]]:
        return [(work, table) for work, _, table in self._calls]

    def _changes_of_units(self) -> dict[int, list[tuple[int, int, int]]]:
        """Return (layer call, 0 for its inputs or 1 for its outputs, channels) of every unit."""
        found: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for index, (work, table) in enumerate(self._placed()):
            for side, axis in enumerate((work.inputs, work.outputs)):
                if isinstance(axis, int) or len((table.inputs, table.outputs)[side]) == 1:
                    continue
                units, counts = np.unique(self._graph.units(axis), return_counts=True)
                for unit, count in zip(units.tolist(), counts.tolist(), strict=True):
                    found[unit].append((index, side, count))
        return found


def _up(width: int, step: int, most: int) -> int:
    return min(-(-width // step) * step, most)


def _matched(work: list[Work], profile: LatencyProfile) -> list[tuple[Work, int, LatencyTable]]:
    """Return the layer calls of a trace that the profile has measured, with index and table.

    Calls of the same module are matched in order.

    Raises:
        PruningError: The profile has other widths, or calls that the trace has not.
    """
    calls: dict[str, deque[Work]] = defaultdict(deque)
    for call in work:
        calls[call.site].append(call)
    matched = []
    for layer in profile.layers:
        entry = calls[layer.name].popleft() if calls[layer.name] else None
        table = profile.tables[layer.table]
        if entry is None or _size(entry.inputs) != table.inputs[-1] or _size(entry.outputs) != table.outputs[-1]:
            raise PruningError(f"the latency profile does not fit the network: layer '{layer.name}' differs.")
        matched.append((entry, layer.table, table))
    return matched


def _size(axis: Ids | int) -> int:
    return axis if isinstance(axis, int) else len(axis)


def rest_of(graph: ChannelGraph) -> list[Record]:
    """Return the operator calls that compute something outside of the layers, in the order of the forward pass."""
    return [record for record in graph.traces["eval"].records if record.kind not in (*_NO_COST, *_IN_TABLES)]


def _rest_shares(graph: ChannelGraph, ms: Sequence[float]) -> Scores:
    """Return the share of the time of the rest that each unit takes, shape (units,).

    The time of an operator is divided evenly among the channels of its output. If operators were not measured, the
    elements that they write count instead.
    """
    records = rest_of(graph)
    elements = [float(sum(math.prod(shape) for shape, _ in record.outputs)) for record in records]
    weights = ms if len(ms) == len(records) else elements
    share = np.zeros(graph.unit_count)
    for record, weight in zip(records, weights, strict=True):
        label = next((labels[0] for _, labels in record.outputs if labels), None)
        if label is not None:
            units = graph.units(label.reshape(-1).numpy())
            np.add.at(share, units, weight / len(units))
    share[NO_CHANNEL] = 0
    return share / max(sum(weights), 1e-9)
