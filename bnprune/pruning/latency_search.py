"""Budgets in milliseconds: search for the plan whose network is as slow as allowed, by measuring a few of them."""

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

_TRIALS = 10
_CLOSE = 0.04
"""Shortfall below the budget, as a share of it, that is not worth another trial."""
_LEAST, _MOST = 0.01, 0.99


def plan_for_target(model: nn.Module, example_inputs: Any, found: ScoredNetwork) -> DraftPlan:
    """Find a draft that does what was asked, whatever the kind of target.

    Milliseconds are solved over MACs: measure the dense network, guess the share of MACs that fits the budget from a
    line through what has been measured so far, cut (without proof), measure, and guess again. The network that comes
    nearest from below is measured once more.

    Raises:
        PruningError: The target cannot be reached; the message says how near one can get.
    """
    if found.request.latency_ms is None:
        return plan_cut(model, example_inputs, found)
    started = time.perf_counter()
    best = _within(model, example_inputs, found, found.request.latency_ms)
    return replace(best, scored=found, seconds=time.perf_counter() - started)


def _within(model: nn.Module, example_inputs: Any, found: ScoredNetwork, budget: float) -> DraftPlan:
    dense = _milliseconds(copy.deepcopy(model), example_inputs)
    if dense <= budget:
        raise PruningError(f"latency_ms {budget:g}: the network already runs in {dense:.3g} ms here. Ask for less.")
    measured = [(1.0, dense)]
    best: DraftPlan | None = None
    for _ in range(_TRIALS):
        share = _guess(measured, budget)
        if any(abs(share - known) < 0.002 for known, _ in measured):
            break
        trial = _at(model, example_inputs, found, share)
        if trial is None:
            measured.append((share, 0.0))  # too little: look above
            continue
        assert trial.latency_ms is not None
        measured.append((share, trial.latency_ms))
        fits = trial.latency_ms <= budget
        if fits and (best is None or best.latency_ms is None or trial.latency_ms > best.latency_ms):
            best = trial
        if budget * (1 - _CLOSE) <= trial.latency_ms <= budget:
            break
    if best is None:
        nearest = min(taken for _, taken in measured if taken)
        raise PruningError(
            f"latency_ms {budget:g} cannot be reached: the fastest network found takes {nearest:.3g} ms (dense "
            f"{dense:.3g} ms). Ask for more, or loosen min_channels, cap, round_to or exclude."
        )
    return best


def _guess(measured: list[tuple[float, float]], budget: float) -> float:
    """Return the share of MACs at which a line through the two nearest measurements meets the budget."""
    above = min((point for point in measured if point[1] > budget), key=lambda point: point[1])
    below = max((point for point in measured if point[1] <= budget), key=lambda point: point[1], default=None)
    if below is None:  # layers take time whatever their width: aim low, to have the budget between two measurements
        return min(max(0.8 * above[0] * budget / above[1], _LEAST), _MOST)
    aim = budget * (1 - _CLOSE / 2)
    share = float(np.interp(aim, [below[1], above[1]], [below[0], above[0]]))
    return min(max(share, _LEAST), _MOST)


def _at(model: nn.Module, example_inputs: Any, found: ScoredNetwork, share: float) -> DraftPlan | None:
    """Draft a share of the MACs and measure it; None where that little cannot be had."""
    request = found.request.aimed("macs", share)
    try:
        draft = plan_cut(model, example_inputs, replace(found, request=request))
        require_cut(draft)
    except PruningError:
        return None
    slim = copy_weights(draft.meta_slim, draft.plan, model)
    return replace(draft, latency_ms=_milliseconds(slim, example_inputs))


def _milliseconds(model: nn.Module, example_inputs: Any) -> float:
    """Return the time of a forward pass: the lowest of three medians, each over half a second or at least 10 passes.

    What else runs on the machine only adds to it, and comes and goes.
    """
    inputs = as_inputs(example_inputs)
    (once,) = latencies([model], inputs, runs=3)
    runs = int(min(max(0.5 / max(once, 1e-4), 10), 100))
    return 1000 * min(latencies([model], inputs, runs=runs, warmup=1)[0] for _ in range(3))
