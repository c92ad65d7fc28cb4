"""Selection: which units go, given scores, a target and constraints. Pure arithmetic on the channel graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from bnprune.channels.graph import ChannelGraph
from bnprune.channels.ids import NO_CHANNEL, Refusal
from bnprune.errors import ConfigError, PruningError
from bnprune.pruning.score import Scores

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a selection must respect."""

    min_channels: int = 1
    """Channels every layer keeps at least; its best ones."""
    exclude: tuple[str, ...] = ()
    """Name patterns of layers whose width stays: a module's name, a parent's, or a glob ("layer4.*")."""


@dataclass(frozen=True)
class Candidates:
    """The units a selection may choose from, and why the others stay."""

    prunable: Mask
    """Units that count as prunable: those that have a score and are neither frozen nor excluded, shape (units,)."""
    order: NDArray[np.int64]
    """Prunable units that no floor protects, those that go first in front."""
    kept: Mapping[int, Refusal]
    """Reasons for units kept beyond those the graph itself freezes."""


def candidates(
    graph: ChannelGraph, scores: Scores, constraints: Constraints, kept: Mapping[int, Refusal]
) -> Candidates:
    """Apply exclusions and floors.

    Raises:
        ConfigError: A pattern matches no layer.
    """
    excluded = {**_excluded(graph, constraints.exclude), **kept}
    prunable = graph.free & np.isfinite(scores)
    prunable[[NO_CHANNEL, *excluded]] = False
    order = ranking(graph, np.where(prunable, scores, np.inf))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    protected = np.zeros(graph.unit_count, dtype=np.bool_)
    for layer in graph.layers:
        units = graph.units(layer.ids)
        floor = min(constraints.min_channels, len(units))
        protected[units[np.argpartition(rank[units], -floor)[-floor:]]] = True
    return Candidates(prunable, order[(prunable & ~protected)[order]], excluded)


def ranking(graph: ChannelGraph, scores: Scores) -> NDArray[np.int64]:
    """Return all units, the least important first.

    Scores are compared across the whole network, with no normalisation per layer: the global ranking of the paper.
    Ties are broken by the relative position of a channel in its layer, so that a network whose scores are all equal
    loses the same share of every layer; ties of those by position in the network.
    """
    position = np.full(graph.unit_count, np.inf)
    for units in graph.gamma_units.values():
        np.minimum.at(position, units, (np.arange(len(units)) + 0.5) / len(units))
    return np.lexsort((position, scores))


def by_ratio(graph: ChannelGraph, chosen: Candidates, ratio: float) -> Mask:
    """Remove units in order until `ratio` of the prunable BatchNorm channels are gone.

    Where the last unit would overshoot, the nearer side of the target is taken.

    Returns:
        Whether each unit goes, shape (units,).
    """
    order = chosen.order
    removed_counts = np.concatenate([[0], np.cumsum(graph.gamma_count[order])])
    target = ratio * int(graph.gamma_count[chosen.prunable].sum())
    missed = np.abs(removed_counts - target)
    nearest = int(np.flatnonzero(missed == missed.min())[-1])  # the last: what has no BatchNorm of its own comes free
    removed = np.zeros(graph.unit_count, dtype=np.bool_)
    removed[order[:nearest]] = True
    return _without_orphans(graph, removed)


def _without_orphans(graph: ChannelGraph, removed: Mask) -> Mask:
    """Keep channels of a stream that a gated BatchNorm still writes or reads."""
    stream, own = graph.implied
    while (needed := stream[removed[stream] & ~removed[own]]).size:
        removed[needed] = False
    return removed


def _excluded(graph: ChannelGraph, patterns: Sequence[str]) -> dict[int, Refusal]:
    excluded: dict[int, Refusal] = {}
    names = [layer.name for layer in graph.layers]
    for pattern in patterns:
        hit = [layer for layer in graph.layers if matches(layer.name, pattern)]
        if not hit:
            near = get_close_matches(pattern.strip("*."), [*names, *{n.rpartition(".")[0] for n in names}], n=1)
            hint = f" Did you mean '{near[0]}'?" if near else " `bnprune inspect` lists the layers."
            raise ConfigError(f"exclude: no layer matches '{pattern}'.{hint}")
        for layer in hit:
            for unit in np.unique(graph.units(layer.ids)).tolist():
                excluded.setdefault(unit, Refusal(layer.name, f"is excluded by '{pattern}'", ""))
    return excluded


def matches(name: str, pattern: str) -> bool:
    """Tell whether a layer's name is the pattern, lies below the module it names, or fits it as a glob."""
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def shortfall(graph: ChannelGraph, chosen: Candidates, removed: Mask, ratio: float, floor: int) -> list[Refusal]:
    """Return which BatchNorms' floors keep a selection from reaching its ratio; nothing where it is reached."""
    missing = ratio * int(graph.gamma_count[chosen.prunable].sum()) - int(graph.gamma_count[removed].sum())
    if missing < 0.5 or not removed[chosen.order].all():
        return []
    stays = chosen.prunable & ~removed
    reason = "every layer keeps one channel" if floor == 1 else f"every layer keeps {floor} channels if it has them"
    return [
        Refusal(layer.name, reason, "ask for less" if floor == 1 else "lower min_channels, or ask for less")
        for layer in graph.layers
        if layer.kind == "norm" and stays[graph.units(layer.ids)].any()
    ]


def require_prunable(graph: ChannelGraph, chosen: Candidates) -> None:
    """Say why nothing can be pruned, if so.

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
    raise PruningError(f"nothing can be pruned: every BatchNorm channel must stay.\n{listed}")


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
            why = Refusal(layer.name, "has no BatchNorm scale factor to rank its channels by", "")
            by_reason.setdefault(why, []).extend(np.unique(loose).tolist())
    ranked = sorted(by_reason.items(), key=lambda item: -int(graph.gamma_count[item[1]].sum()))
    return [(why, np.array(units)) for why, units in ranked]
