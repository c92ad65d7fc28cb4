"""Selection: which units go, given scores, a target and constraints. Pure arithmetic on the channel graph."""

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


def by_ratio(graph: ChannelGraph, chosen: Candidates, ratio: float) -> Mask:
    """Remove units in order until `ratio` of the prunable BatchNorm channels are gone.

    Where the last step would overshoot, the nearer side of the target is taken.

    Returns:
        Whether each unit goes, shape (units,).
    """
    target = ratio * int(graph.gamma_count[chosen.prunable].sum())

    def gone(steps: int) -> int:
        return int(graph.gamma_count[after(graph, chosen, steps)].sum())

    steps = range(chosen.least, len(chosen.ends) + 1)
    place = min(bisect_left(steps, target, key=gone), len(steps) - 1)
    if place and target - gone(steps[place - 1]) < gone(steps[place]) - target:
        place -= 1
    last = bisect_right(steps, gone(steps[place]), key=gone) - 1  # what has no BatchNorm of its own comes free
    return after(graph, chosen, steps[last])


def by_cost(graph: ChannelGraph, chosen: Candidates, cost: Callable[[Mask], float], target: float) -> Mask:
    """Take the fewest steps after which the cost is at or below a target, or all where none is.

    Steps far larger than what is missing are then left out one at a time where later, smaller ones do: a block of
    coupled channels may cost several percent.

    Args:
        graph: The trace.
        chosen: The units to choose from.
        cost: The cost of the network without the units of a mask.
        target: What it may cost.
    """
    steps = bisect_left(
        range(chosen.least, len(chosen.ends)), True, key=lambda k: cost(after(graph, chosen, k)) <= target
    )
    steps += chosen.least
    removed = after(graph, chosen, steps)
    return _refined(graph, chosen, cost, target, steps, removed) if steps > chosen.least else removed


_ENOUGH = 0.01
"""Undershoot of a cost target, as a share of it, that is not worth a search."""
_TRIES = 64


def _refined(
    graph: ChannelGraph, chosen: Candidates, cost: Callable[[Mask], float], target: float, steps: int, removed: Mask
) -> Mask:
    """Replace the last step by one or several of the next ones, if that comes nearer to the target from below."""
    best, found = removed, cost(removed)
    trial = after(graph, chosen, steps - 1)
    for step in range(steps, min(steps + _TRIES, len(chosen.ends))):
        if target * (1 - _ENOUGH) <= found <= target:
            break
        further = trial.copy()
        further[chosen.order[chosen.ends[step - 1] : chosen.ends[step]]] = True
        further = _without_orphans(graph, chosen, further)
        reached = cost(further)
        if reached > target:
            trial = further
        elif reached > found or found > target:
            best, found = further, reached
    return best


def after(graph: ChannelGraph, chosen: Candidates, steps: int) -> Mask:
    """Return whether each unit is gone after so many steps, shape (units,)."""
    removed = np.zeros(graph.unit_count, dtype=np.bool_)
    removed[chosen.order[: chosen.ends[steps - 1] if steps else 0]] = True
    return _without_orphans(graph, chosen, removed)


def _without_orphans(graph: ChannelGraph, chosen: Candidates, removed: Mask) -> Mask:
    """Keep channels of a stream that a gated BatchNorm still writes or reads, and with them their whole step."""
    stream, own = graph.implied
    while (needed := stream[removed[stream] & ~removed[own]]).size:
        removed[np.isin(chosen.step_of, chosen.step_of[needed])] = False
    return removed


def shortfall(
    graph: ChannelGraph, chosen: Candidates, removed: Mask, ratio: float, constraints: Constraints
) -> list[Refusal]:
    """Return which BatchNorms' constraints keep a selection from its ratio; nothing where it is reached."""
    missing = ratio * int(graph.gamma_count[chosen.prunable].sum()) - int(graph.gamma_count[removed].sum())
    if missing < 0.5 or (after(graph, chosen, len(chosen.ends)) & ~removed).any():
        return []
    stays = chosen.prunable & ~removed
    floor = constraints.min_channels
    reason = "every layer keeps one channel" if floor == 1 else f"every layer keeps {floor} channels if it has them"
    fix = "ask for less" if floor == 1 else "lower min_channels, or ask for less"
    if constraints.cap < 1 or constraints.round_to > 1 or constraints.layer_ratios:
        reason, fix = "what cap, round_to and layer_ratios allow is gone", "loosen them, or ask for less"
    return [
        Refusal(layer.name, reason, fix)
        for layer in graph.layers
        if layer.kind == "norm" and stays[graph.units(layer.ids)].any()
    ]


def require_prunable(graph: ChannelGraph, chosen: Candidates, advice: Sequence[str] = ()) -> None:
    """Say why nothing can be pruned, if so, and what would help.

    Raises:
        PruningError: There is no BatchNorm, or all of its channels must stay.
    """
    if chosen.order.size:
        return
    if chosen.prunable.any():
        raise PruningError("nothing can be pruned: no layer has more channels than it must keep (min_channels).")
    if not graph.gammas:
        raise PruningError(
            "the network has no BatchNorm with scale factors (γ), so channels cannot be ranked. "
            "Use a network with BatchNorm1d, 2d or 3d layers (affine=True)."
        )
    reasons = refusals(graph, np.zeros(graph.unit_count), chosen.kept)
    shown = [f"  {refusal}" for refusal, _ in reasons[:8]]
    if len(reasons) > len(shown):
        shown.append(f"  and {len(reasons) - len(shown)} more")
    listed = "\n".join(shown) or "  every layer has a single channel"
    raise PruningError(
        f"nothing can be pruned: every BatchNorm channel must stay.\n{listed}" + "".join(f"\n{a}" for a in advice)
    )


NO_GAMMA = "has no BatchNorm scale factor to rank its channels by"
_NO_FILTER = "no convolution or linear layer writes its channels, and the criterion ranks filters", "rank by gamma"


def refusals(
    graph: ChannelGraph, scores: Scores, kept: Mapping[int, Refusal]
) -> list[tuple[Refusal, NDArray[np.int64]]]:
    """Return the reasons why channels stay, each with its units, most BatchNorm channels first.

    Only units a user could have wanted to prune are reported: those with scale factors, and layers without any.
    """
    by_reason: dict[Refusal, list[int]] = {}
    for unit in np.flatnonzero(graph.gamma_count).tolist():
        why = graph.frozen[unit] or kept.get(unit)
        if why is not None and unit != NO_CHANNEL:
            by_reason.setdefault(why, []).append(unit)
    unscored = graph.free & ~np.isfinite(scores)
    for layer in graph.layers:
        units = graph.units(layer.ids)
        loose = units[unscored[units]]
        if loose.size:
            no_gamma = not graph.gamma_count[loose].any()
            why = Refusal(layer.name, NO_GAMMA, "") if no_gamma else Refusal(layer.name, *_NO_FILTER)
            by_reason.setdefault(why, []).extend(np.unique(loose).tolist())
    ranked = sorted(by_reason.items(), key=lambda item: -int(graph.gamma_count[item[1]].sum()))
    return [(why, np.array(units)) for why, units in ranked]
