"""The cost model: parameters and MACs that a selection leaves, without building the network."""

from __future__ import annotations

import math

import numpy as np
from torch import nn

from bnprune.channels.graph import ChannelGraph
from bnprune.channels.union_find import Ids
from bnprune.pruning.candidates import Mask


class CostModel:
    """Parameters and multiply-accumulates as functions of the removed units.

    MACs are the sum of factor x kept inputs x kept outputs over convolutions and matrix products (`Trace.work`). The
    MACs of other operators (attention) are taken as constant. The dry run counts the slim network exactly.
    """

    def __init__(self, graph: ChannelGraph, model: nn.Module) -> None:
        self._graph = graph
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        owned = [name for name in graph.shapes if name in parameters]
        self._axes = {
            name: [graph.axes.get((name, dim), size) for dim, size in enumerate(graph.shapes[name])] for name in owned
        }
        eval_pass = graph.traces["eval"]
        self._work = [(work.factor, work.inputs, work.outputs) for work in eval_pass.work]
        nothing = np.zeros(graph.unit_count, dtype=np.bool_)
        self._constant = 0
        self._constant = eval_pass.macs - self.macs(nothing)

    def macs(self, removed: Mask) -> int:
        """Return the MACs without these units."""
        kept = _KeptCounts(self._graph, removed)
        return self._constant + sum(factor * kept(inputs) * kept(outputs) for factor, inputs, outputs in self._work)

    def params(self, removed: Mask) -> int:
        """Return the elements of all parameters without these units."""
        kept = _KeptCounts(self._graph, removed)
        return sum(math.prod(kept(axis) for axis in axes) for axes in self._axes.values())


class _KeptCounts:
    """Counts the kept channels among channel ids; a plain size stays as it is."""

    def __init__(self, graph: ChannelGraph, removed: Mask) -> None:
        self._stays = ~removed[graph.unit_of]
        self._known: dict[int, int] = {}

    def __call__(self, axis: Ids | int) -> int:
        if isinstance(axis, int):
            return axis
        if id(axis) not in self._known:  # the ids live as long as the graph
            self._known[id(axis)] = int(np.count_nonzero(self._stays[axis]))
        return self._known[id(axis)]
