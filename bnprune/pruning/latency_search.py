"""Targets in milliseconds: a search for the slowest network within the limit, by measuring a few networks."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from bnprune.channels.pytrees import as_inputs
from bnprune.errors import PruningError
from bnprune.pruning.draft_plan import DraftPlan, ScoredNetwork, require_cut
from bnprune.pruning.latency import latencies
from bnprune.pruning.planner import plan_cut
from bnprune.pruning.surgery import copy_weights

_MOST_TRIALS = 10
_CLOSE = 0.04
"""Distance below the limit, as a share of it, at which the search ends."""
_SMALLEST_CHANGE = 0.002
"""Shares of the MACs that differ by less give networks that measurements cannot tell apart."""
_SMALLEST_SHARE, _LARGEST_SHARE = 0.01, 0.99


def plan_for_target(model: nn.Module, example_inputs: Any, scored: ScoredNetwork) -> DraftPlan:
    """Return a draft that meets the target, of whatever kind.

    A latency is a function of the share of MACs that is left, unknown but increasing. The search measures the dense
    network, estimates the share for the limit from a line through two measurements, cuts (without proof), measures, and
    estimates again.

    Raises:
        PruningError: The target cannot be reached; the message gives the closest value that can be reached.
    """
    if scored.request.latency_ms is None:
        return plan_cut(model, example_inputs, scored)
    started = time.perf_counter()
    best = _search(model, example_inputs, scored, scored.request.latency_ms)
    scored = replace(scored, criterion_notes=best.scored.criterion_notes)
    return replace(best, scored=scored, seconds=time.perf_counter() - started)


def _search(model: nn.Module, example_inputs: Any, scored: ScoredNetwork, limit: float) -> DraftPlan:
    dense = _milliseconds(copy.deepcopy(model), example_inputs)
    if dense <= limit:
        raise PruningError(f"latency_ms {limit:g}: the network already runs in {dense:.3g} ms here. Ask for less.")
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
        fastest = min(milliseconds for _, milliseconds in measured if milliseconds)
        raise PruningError(
            f"latency_ms {limit:g} cannot be reached: the fastest network found takes {fastest:.3g} ms (dense "
            f"{dense:.3g} ms). Ask for more, or loosen min_channels, cap, round_to or exclude."
        )
    return best


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
    request = scored.request.aimed("macs", share)
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
