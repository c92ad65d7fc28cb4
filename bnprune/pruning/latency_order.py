"""The order of removal by gain per millisecond: a greedy solution of the knapsack of channels and latency.

The idea is that of HALP (Shen et al., "Structural Pruning via Latency-Saliency Knapsack", NeurIPS 2022): channels with
equal effects on the widths form a group, inside of which they go in the order of their scores; a portion is as large as
a step of the layer's latency; and the portion that loses least per millisecond saved goes first. HALP solves the
knapsack by dynamic programming over latencies of the dense network. Here the widths that are left after each removal
give the next latencies, because the time of a layer is a function of both of its widths.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from dataclasses import replace

import numpy as np

from bnprune.channels.graph import ChannelGraph
from bnprune.channels.union_find import Ids
from bnprune.pruning.candidates import Candidates, interchangeable
from bnprune.pruning.latency_model import LatencyModel
from bnprune.pruning.scores import Scores


def by_gain(graph: ChannelGraph, scores: Scores, candidates: Candidates, latency: LatencyModel) -> Candidates:
    """Return the candidates in the order of loss per millisecond saved; steps that are taken for every target stay.

    The loss of a unit is its squared score (γ² is the variance that a BatchNorm channel adds to what reads it) times
    the number of its BatchNorm channels, because its saving adds up over all of its layers as well. Without that
    factor, channels of residual streams, which go in many layers at once, would lose least per millisecond, and whole
    streams would go first.

    Of each group, several steps are taken together if fewer would save less for what they lose: as many as fill a step
    of latency or, since a narrower layer can be slower (in another kernel), as many as lead past such widths. Steps
    that save nothing, however many are taken, are left out. The order depends on no target.

    Args:
        graph: The trace.
        scores: Importance of each unit, shape (units,).
        candidates: The units to choose from, and the steps that the constraints allow.
        latency: The latency model.
    """
    greedy = _Greedy(graph, scores, candidates, latency)
    forced = candidates.step_ends[: candidates.forced_steps]
    taken = [candidates.order[: forced[-1] if forced.size else 0], *greedy.run()]
    order = np.concatenate(taken).astype(np.int64)
    ends = np.concatenate([forced, len(taken[0]) + np.cumsum([len(units) for units in taken[1:]], dtype=np.int64)])
    step_of_unit = np.full(graph.unit_count, -1, dtype=np.int64)
    step_of_unit[order] = np.arange(len(ends)).repeat(np.diff(ends, prepend=0))
    return replace(candidates, order=order, step_ends=ends, step_of_unit=step_of_unit)


class _Greedy:
    """Takes portions of steps from the front of groups.

    As a rule, savings shrink while a network becomes narrower, so that a loss per millisecond computed earlier is a
    lower bound: only the group at the front of the queue is computed again before it is taken (lazy evaluation).
    """

    def __init__(self, graph: ChannelGraph, scores: Scores, candidates: Candidates, latency: LatencyModel) -> None:
        self._latency = latency
        steps = np.split(candidates.order, candidates.step_ends[:-1]) if candidates.order.size else []
        loss = np.square(np.maximum(scores, 0.0)) * np.maximum(graph.gamma_count, 1)
        self._groups: dict[int, list[tuple[Ids, float]]] = defaultdict(list)
        kind, _ = interchangeable(graph, 1)
        for units in reversed(steps[candidates.forced_steps :]):  # so that the next step is at the end of the list
            self._groups[int(kind[units[0]])].append((units, float(loss[units].sum())))
        self._widths = latency.widths_after(np.concatenate([*steps[: candidates.forced_steps], np.zeros(0, np.int64)]))

    def run(self) -> list[Ids]:
        """Return the units of each portion, in the order in which portions go."""
        taken = []
        queue = [(self._best(group)[0], group) for group in self._groups]
        heapq.heapify(queue)
        while queue:
            _, group = heapq.heappop(queue)
            cost, count = self._best(group)
            if cost == math.inf:
                continue
            if queue and cost > queue[0][0]:
                heapq.heappush(queue, (cost, group))
                continue
            taken.append(self._take(group, count))
            if self._groups[group]:
                heapq.heappush(queue, (self._best(group)[0], group))
        return taken

    def _best(self, group: int) -> tuple[float, int]:
        """Return the smallest loss per millisecond of the next steps, and how many steps it takes."""
        waiting = self._groups[group]
        portion = math.ceil(self._latency.longest_step / len(waiting[-1][0]))
        best, best_count = math.inf, 0
        units, loss, taken = np.zeros(0, np.int64), 0.0, 0
        for count in _counts(portion, len(waiting)):
            steps = waiting[len(waiting) - count : len(waiting) - taken]
            units = np.concatenate([units, *(step for step, _ in steps)])
            loss, taken = loss + sum(of_step for _, of_step in steps), count
            saved = self._latency.saved(self._widths, self._latency.change(units), units)
            if saved > 0 and loss / saved < best:
                best, best_count = loss / saved, count
        return best, best_count

    def _take(self, group: int, count: int) -> Ids:
        units = np.concatenate([self._groups[group].pop()[0] for _ in range(count)])
        for index, (fewer_in, fewer_out) in self._latency.change(units).items():
            inputs, outputs = self._widths[index]
            self._widths[index] = inputs - fewer_in, outputs - fewer_out
        return units


def _counts(portion: int, most: int) -> list[int]:
    """Return the numbers of steps to try: all that fill a step of latency, then twice as many each time, and all."""
    few = range(1, min(portion, most) + 1)
    doubled = (portion << exponent for exponent in range(1, most.bit_length()))
    return [*few, *(count for count in doubled if count < most), *([most] if most > portion else [])]
