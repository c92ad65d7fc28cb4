"""Targets in milliseconds: a search for the slowest network within the limit, by measuring a few networks.

Without a latency profile, the share of the MACs is what the search varies. With one, it is the latency that the profile
estimates, and channels go in the order of their loss per millisecond.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from bnprune.channels.pytrees import as_inputs
from bnprune.config.suggested_numbers import rounded_down, rounded_up
from bnprune.errors import PruningError
from bnprune.notes import Note
from bnprune.pruning.candidates import Candidates, Mask
from bnprune.pruning.draft_plan import DraftPlan, ScoredNetwork, require_cut
from bnprune.pruning.latency import latencies
from bnprune.pruning.latency_model import LatencyModel
from bnprune.pruning.latency_order import by_gain
from bnprune.pruning.latency_profile import LatencyProfile
from bnprune.pruning.planner import plan_cut
from bnprune.pruning.select import by_cost
from bnprune.pruning.surgery import copy_weights

_MOST_TRIALS = 10
_CLOSE = 0.04
"""Distance below the limit, as a share of it, at which the search ends."""
_SMALLEST_CHANGE = 0.002
"""Shares of the MACs that differ by less give networks that measurements cannot tell apart."""
_SMALLEST_SHARE, _LARGEST_SHARE = 0.01, 0.99


_MOST_CORRECTIONS = 5
"""Networks that are measured in a search with a profile."""
_SHARES_DECIDED = ("uniform", "gamma-per-mac")
"""Criteria that decide how much each layer loses: their order stays."""


@dataclass(frozen=True)
class LatencyKnowledge:
    """A latency profile, and how to measure a network in its setting."""

    profile: LatencyProfile
    measure: Callable[[nn.Module], float] | None
    """Returns the milliseconds of a network with the batch size and backend of the profile; None if the profile is of
    another machine, so that latency can only be estimated."""


def plan_for_target(
    model: nn.Module, example_inputs: Any, scored: ScoredNetwork, known: LatencyKnowledge | None = None
) -> DraftPlan:
    """Return a draft that meets the target, of whatever kind.

    With a profile, the search cuts to the latency that is estimated, measures, and corrects the estimate by the ratio
    of the two.

    Without one, a latency is a function of the share of MACs that is left, unknown but increasing. The search measures
    the dense network, estimates the share for the limit from a line through two measurements, cuts (without proof),
    measures, and estimates again.

    Args:
        model: The network.
        example_inputs: As for `prune`.
        scored: Its trace and scores.
        known: The latencies of its layers, for a target in milliseconds.

    Raises:
        PruningError: The target cannot be reached; the message gives the closest value that can be reached.
    """
    if scored.request.latency_ms is None:
        return plan_cut(model, example_inputs, scored)
    started = time.perf_counter()
    limit = scored.request.latency_ms
    if known is None:
        best = _search(model, example_inputs, scored, limit)
    else:
        best = _ProfileSearch(model, example_inputs, scored, known).run(limit)
    scored = replace(scored, criterion_notes=best.scored.criterion_notes)
    return replace(best, scored=scored, seconds=time.perf_counter() - started)


def _search(model: nn.Module, example_inputs: Any, scored: ScoredNetwork, limit: float) -> DraftPlan:
    dense = _milliseconds(copy.deepcopy(model), example_inputs)
    _require_slower(dense, limit)
    measured = [(1.0, dense)]
    best: DraftPlan | None = None
    for _ in range(_MOST_TRIALS):
        share = _next_share(measured, limit)
        if any(abs(share - known) < _SMALLEST_CHANGE for known, _ in measured):
            break
        trial = _measured_draft(model, example_inputs, scored, share)
        if trial is None:
            measured.append((share, 0.0))  # no network has so few MACs: counts as too fast, to search above it
            continue
        assert trial.latency_ms is not None
        measured.append((share, trial.latency_ms))
        is_within = trial.latency_ms <= limit
        if is_within and (best is None or best.latency_ms is None or trial.latency_ms > best.latency_ms):
            best = trial
        if limit * (1 - _CLOSE) <= trial.latency_ms <= limit:
            break
    if best is None:
        raise _out_of_reach(limit, min(taken for _, taken in measured if taken), dense)
    return best


def _require_slower(dense: float, limit: float) -> None:
    if dense <= limit:
        raise PruningError(
            f"latency_ms {limit:g}: the network already runs in {rounded_down(dense)} ms here. Ask for less."
        )


def _out_of_reach(limit: float, nearest: float, dense: float) -> PruningError:
    return PruningError(
        f"latency_ms {limit:g} cannot be reached: the fastest network found takes {rounded_up(nearest)} ms (dense "
        f"{dense:.3g} ms). Ask for that or more, or loosen min_channels, cap, round_to or exclude."
    )


def _next_share(measured: list[tuple[float, float]], limit: float) -> float:
    """Return the share of MACs at which a line through the two nearest (share, milliseconds) meets the limit.

    One measurement is above the limit and one below, so that the estimate lies between them (regula falsi), whatever
    the noise. As long as none is below, time is assumed to be proportional to MACs, and the result is multiplied by
    0.8, because layers take some time whatever their width. Example for a limit of 6 ms:

        measured (1.0, 10 ms)      next 0.8 · 1.0 · 6 / 10 = 0.48
        measured (0.48, 5 ms)      next, for 5.88 ms between 5 and 10 ms: 0.48 + 0.52 · 0.88 / 5 = 0.57
    """
    above = min((point for point in measured if point[1] > limit), key=lambda point: point[1])
    below = max((point for point in measured if point[1] <= limit), key=lambda point: point[1], default=None)
    if below is None:
        share = 0.8 * above[0] * limit / above[1]
    else:
        aim = limit * (1 - _CLOSE / 2)
        share = float(np.interp(aim, [below[1], above[1]], [below[0], above[0]]))
    return min(max(share, _SMALLEST_SHARE), _LARGEST_SHARE)


def _measured_draft(model: nn.Module, example_inputs: Any, scored: ScoredNetwork, share: float) -> DraftPlan | None:
    """Plan a share of the MACs and measure the slim network; None if that share cannot be reached."""
    asked = scored.request
    request = replace(asked.aimed("macs", share), criterion=asked.ranked_by, cap=asked.cap or 1.0)  # as for a latency
    try:
        draft = plan_cut(model, example_inputs, replace(scored, request=request))
        require_cut(draft)
    except PruningError:
        return None
    slim = copy_weights(draft.meta_slim, draft.plan, model)
    return replace(draft, latency_ms=_milliseconds(slim, example_inputs))


def _milliseconds(model: nn.Module, example_inputs: Any) -> float:
    """Return the time of a forward pass: the lowest of three medians, each over half a second or at least 10 passes.

    Other programs on the machine only add to it, for a while.
    """
    inputs = as_inputs(example_inputs)
    (once,) = latencies([model], inputs, runs=3)
    runs = int(min(max(0.5 / max(once, 1e-4), 10), 100))
    return 1000 * min(latencies([model], inputs, runs=runs, warmup=1)[0] for _ in range(3))


class _ProfileSearch:
    """A search that cuts to an estimated latency, measures, and corrects the estimate."""

    def __init__(self, model: nn.Module, example_inputs: Any, scored: ScoredNetwork, known: LatencyKnowledge) -> None:
        self._model, self._inputs, self._scored, self._known = model, example_inputs, scored, known
        self._orders: dict[bytes, Candidates] = {}

    def run(self, limit: float) -> DraftPlan:
        """Return the slowest draft found within the limit, in milliseconds."""
        dense = self._milliseconds(self._model, self._known.profile.total_ms)
        _require_slower(dense, limit)
        aim = limit * self._known.profile.total_ms / dense
        best, nearest, estimates = None, dense, set[float]()
        for _ in range(_MOST_CORRECTIONS):
            trial, estimate = self._draft(aim)
            if estimate in estimates:
                break
            estimates.add(estimate)
            assert trial.latency_ms is not None
            taken = trial.latency_ms
            nearest = min(nearest, taken)
            if taken <= limit and (best is None or taken > (best.latency_ms or 0)):
                best = trial
            if limit * (1 - _CLOSE) <= taken <= limit:
                break
            aim = estimate * limit * (1 - _CLOSE / 2) / taken
        if best is None:
            raise _out_of_reach(limit, nearest, dense)
        return best

    def _draft(self, aim: float) -> tuple[DraftPlan, float]:
        """Plan a cut to an estimated latency; return the draft, with the time it takes, and the estimate."""
        draft = plan_cut(self._model, self._inputs, self._scored, lambda s, c: self._select(s, c, aim))
        require_cut(draft)
        estimate = self._latency(draft.scored).ms(draft.removed)
        slim = copy_weights(draft.meta_slim, draft.plan, self._model) if self._known.measure else draft.meta_slim
        taken = self._milliseconds(slim, estimate)
        return replace(draft, latency_ms=taken, latency_notes=self._notes()), estimate

    def _select(self, scored: ScoredNetwork, candidates: Candidates, aim: float) -> Mask:
        latency = self._latency(scored)
        key = candidates.order.tobytes()
        if key not in self._orders:
            keeps_order = scored.request.ranked_by in _SHARES_DECIDED
            ordered = candidates if keeps_order else by_gain(scored.graph, scored.scores, candidates, latency)
            self._orders[key] = ordered
        return by_cost(scored.graph, self._orders[key], cost=latency.ms, target=aim)

    def _latency(self, scored: ScoredNetwork) -> LatencyModel:
        return LatencyModel(scored.graph, self._known.profile)

    def _milliseconds(self, model: nn.Module, estimate: float) -> float:
        return estimate if self._known.measure is None else self._known.measure(model)

    def _notes(self) -> tuple[Note, ...]:
        if self._known.measure is not None:
            return ()
        where = self._known.profile.machine.get("processor", "another machine")
        text = f"latency_ms is estimated by the latency profile ({where}), not measured: that is another machine"
        return (Note("latency.estimated", "note", text),)
