"""Selection: the units to remove for a target, given the candidates. Pure arithmetic on the channel graph."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bnprune.channels.graph import ChannelGraph
from bnprune.channels.union_find import NO_CHANNEL, Refusal
from bnprune.errors import PruningError
from bnprune.pruning.candidates import Candidates, Constraints, Mask
from bnprune.pruning.scores import Scores


def by_ratio(graph: ChannelGraph, candidates: Candidates, ratio: float) -> Mask:
    """Remove units in order until `ratio` of the prunable BatchNorm channels are removed.

    If no number of steps gives the ratio exactly, the nearer of the two neighbours is taken.

    Returns:
        True for units to remove, shape (units,).
    """
    target = ratio * int(graph.gamma_count[candidates.prunable].sum())

    def count(steps: int) -> int:
        return int(graph.gamma_count[after(graph, candidates, steps)].sum())

    steps = range(candidates.forced_steps, len(candidates.step_ends) + 1)
    place = min(bisect_left(steps, target, key=count), len(steps) - 1)
    if place and target - count(steps[place - 1]) < count(steps[place]) - target:
        place -= 1
    # Steps that remove no BatchNorm channel (layers without one) do not change the ratio: take all of them.
    last = bisect_right(steps, count(steps[place]), key=count) - 1
    return after(graph, candidates, steps[last])


def by_cost(graph: ChannelGraph, candidates: Candidates, cost: Callable[[Mask], float], target: float) -> Mask:
    """Take the fewest steps after which the cost is at or below a target, or all steps if none is.

    The last step may be far larger than needed, because a block of coupled channels can cost several percent. It is
    then replaced by later, smaller steps, if that gets closer to the target from below.

    Args:
        graph: The trace.
        candidates: The units to choose from.
        cost: Returns the cost of the network without the units of a mask.
        target: The highest cost allowed.

    Returns:
        True for units to remove, shape (units,).
    """
    steps = bisect_left(
        range(candidates.forced_steps, len(candidates.step_ends)),
        True,
        key=lambda k: cost(after(graph, candidates, k)) <= target,
    )
    steps += candidates.forced_steps
    removed = after(graph, candidates, steps)
    return _refined(graph, candidates, cost, target, steps, removed) if steps > candidates.forced_steps else removed


_CLOSE = 0.01
"""Undershoot of a cost target, as a share of it, at which the search ends."""
_MOST_TRIES = 64
"""Later steps that are tried in place of the last one."""


def _refined(
    graph: ChannelGraph, candidates: Candidates, cost: Callable[[Mask], float], target: float, steps: int, removed: Mask
) -> Mask:
    """Replace the last step by one or several of the next ones, if that gets closer to the target from below."""
    best, best_cost = removed, cost(removed)
    trial = after(graph, candidates, steps - 1)
    for step in range(steps, min(steps + _MOST_TRIES, len(candidates.step_ends))):
        if target * (1 - _CLOSE) <= best_cost <= target:
            break
        further = trial.copy()
        further[candidates.order[candidates.step_ends[step - 1] : candidates.step_ends[step]]] = True
        further = _without_orphans(graph, candidates, further)
        reached = cost(further)
        if reached > target:
            trial = further
        elif reached > best_cost or best_cost > target:
            best, best_cost = further, reached
    return best


def after(graph: ChannelGraph, candidates: Candidates, steps: int) -> Mask:
    """Return True for units that the first `steps` steps remove, shape (units,)."""
    removed = np.zeros(graph.unit_count, dtype=np.bool_)
    removed[candidates.order[: candidates.step_ends[steps - 1] if steps else 0]] = True
    return _without_orphans(graph, candidates, removed)


def _without_orphans(graph: ChannelGraph, candidates: Candidates, removed: Mask) -> Mask:
    """Keep the channels of a stream that a BatchNorm with a gate still reads or writes, and the rest of their steps.

    In `graph.implied`, `stream[i]` may be removed only if `own[i]`, the same channel of a BatchNorm with a gate, is,
    too. Keeping a whole step can make another channel needed, hence the loop.
    """
    stream, own = graph.implied
    while (needed := stream[removed[stream] & ~removed[own]]).size:
        removed[np.isin(candidates.step_of_unit, candidates.step_of_unit[needed])] = False
    return removed


def shortfall(
    graph: ChannelGraph, candidates: Candidates, removed: Mask, ratio: float, constraints: Constraints
) -> list[Refusal]:
    """Return a refusal per BatchNorm whose constraints prevent the ratio; none if the ratio is reached."""
    missing = ratio * int(graph.gamma_count[candidates.prunable].sum()) - int(graph.gamma_count[removed].sum())
    if missing < 0.5 or (after(graph, candidates, len(candidates.step_ends)) & ~removed).any():
        return []
    stays = candidates.prunable & ~removed
    floor = constraints.min_channels
    reason = "every layer keeps one channel" if floor == 1 else f"every layer keeps {floor} channels if it has them"
    fix = "ask for less" if floor == 1 else "lower min_channels, or ask for less"
    if constraints.cap < 1 or constraints.round_to > 1 or constraints.layer_ratios:
        reason, fix = "cap, round_to and layer_ratios forbid to remove more", "loosen them, or ask for less"
    return [
        Refusal(layer.name, reason, fix)
        for layer in graph.layers
        if layer.kind == "norm" and stays[graph.units(layer.ids)].any()
    ]


def require_prunable(graph: ChannelGraph, candidates: Candidates, advice: Sequence[str] = ()) -> None:
    """Refuse a network in which nothing can be pruned; the message gives the reasons and advice.

    Raises:
        PruningError: There is no BatchNorm, or all of its channels must stay.
    """
    if candidates.order.size:
        return
    if candidates.prunable.any():
        raise PruningError("nothing can be pruned: no layer has more channels than it must keep (min_channels).")
    if not graph.gammas:
        raise PruningError(
            "the network has no BatchNorm with scale factors (γ), so channels cannot be ranked. "
            "Use a network with BatchNorm1d, 2d or 3d layers (affine=True)."
        )
    reasons = refusals(graph, np.zeros(graph.unit_count), candidates.kept)
    shown = [f"  {refusal}" for refusal, _ in reasons[:8]]
    if len(reasons) > len(shown):
        shown.append(f"  and {len(reasons) - len(shown)} more")
    listed = "\n".join(shown) or "  every layer has a single channel"
    raise PruningError(
        f"nothing can be pruned: every BatchNorm channel must stay.\n{listed}" + "".join(f"\n{a}" for a in advice)
    )


NO_GAMMA = "has no BatchNorm scale factor to rank its channels by"
_NOT_RANKED = "the criterion cannot rank its channels, by the layers that write or read them", "rank by gamma"


def refusals(
    graph: ChannelGraph, scores: Scores, kept: Mapping[int, Refusal]
) -> list[tuple[Refusal, NDArray[np.int64]]]:
    """Return the reasons why channels stay, each with its units; the reason for most BatchNorm channels comes first.

    Only units with scale factors, and layers without any, are reported: the other units cannot be ranked anyway.
    """
    by_reason: dict[Refusal, list[int]] = {}
    for unit in np.flatnonzero(graph.gamma_count).tolist():
        why = graph.frozen[unit] or kept.get(unit)
        if why is not None and unit != NO_CHANNEL:
            by_reason.setdefault(why, []).append(unit)
    unscored = graph.free & ~np.isfinite(scores)
    for layer in graph.layers:
        units = graph.units(layer.ids)
        ranked_by_nothing = units[unscored[units]]
        if ranked_by_nothing.size:
            no_gamma = not graph.gamma_count[ranked_by_nothing].any()
            why = Refusal(layer.name, NO_GAMMA, "") if no_gamma else Refusal(layer.name, *_NOT_RANKED)
            by_reason.setdefault(why, []).extend(np.unique(ranked_by_nothing).tolist())
    ranked = sorted(by_reason.items(), key=lambda item: -int(graph.gamma_count[item[1]].sum()))
    return [(why, np.array(units)) for why, units in ranked]
