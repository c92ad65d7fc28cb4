"""Steps: which channels may go, and the order in which they go, in portions that every constraint allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from bnprune.channels.graph import ChannelGraph, Layer
from bnprune.channels.union_find import NO_CHANNEL, Ids, Refusal
from bnprune.errors import ConfigError
from bnprune.pruning.scores import Scores

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a selection must respect."""

    min_channels: int = 1
    """Channels every layer keeps at least; its best ones."""
    cap: float = 1.0
    """Largest share of a layer's channels that goes (Liu et al., ICCV 2017, prune at most half of a layer per pass)."""
    round_to: int = 1
    """Widths that are a multiple of this stay multiples of it."""
    exclude: tuple[str, ...] = ()
    """Name patterns of layers whose width stays: a module's name, a parent's, or a glob ("layer4.*")."""
    layer_ratios: tuple[tuple[str, float], ...] = ()
    """(pattern, share of the channels that goes) for layers with a ratio of their own."""


@dataclass(frozen=True)
class Candidates:
    """The units a selection may choose from, in which order, and why the others stay."""

    prunable: Mask
    """Units that count as prunable: those that have a score and are neither frozen nor excluded, shape (units,)."""
    order: Ids
    """Prunable units that nothing protects, those that go first in front."""
    ends: Ids
    """How many units of `order` are gone after each step, ascending; shape (steps,)."""
    step_of: Ids
    """The step in which each unit goes, -1 for those that stay; shape (units,)."""
    least: int
    """Steps that are taken whatever the target: those of layers with a ratio of their own."""
    unfilled: tuple[str, ...]
    """Layers that lose nothing because too few of their channels go together to make a portion of `round_to`."""
    kept: Mapping[int, Refusal]
    """Reasons for units kept beyond those the graph itself freezes."""


def candidates(
    graph: ChannelGraph, scores: Scores, constraints: Constraints, kept: Mapping[int, Refusal]
) -> Candidates:
    """Apply exclusions, floors, caps, ratios of single layers and multiples.

    Raises:
        ConfigError: A pattern matches no layer.
    """
    excluded = {**_excluded(graph, constraints.exclude), **kept}
    prunable = graph.free & np.isfinite(scores)
    prunable[[NO_CHANNEL, *excluded]] = False
    order = ranking(graph, np.where(prunable, scores, np.inf))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    protected, first = _by_layer(graph, rank, prunable, constraints)
    rank[first] -= len(rank)
    free = order[(prunable & ~protected)[order]]
    order, ends = _portions(graph, free[np.argsort(rank[free])], constraints.round_to)
    least = _count_leading(first[order], ends)
    step_of = np.full(graph.unit_count, -1, dtype=np.int64)
    step_of[order] = np.arange(len(ends)).repeat(np.diff(ends, prepend=0))
    return Candidates(prunable, order, ends, step_of, least, _unfilled(graph, free, order), excluded)


def ranking(graph: ChannelGraph, scores: Scores) -> Ids:
    """Return all units, the least important first.

    Scores are compared across the whole network, with no normalisation per layer: the global ranking of the paper.
    Ties are broken by the relative position of a channel in its layer, so that a network whose scores are all equal
    loses the same share of every layer; ties of those by position in the network.
    """
    position = np.full(graph.unit_count, np.inf)
    for units in graph.gamma_units.values():
        np.minimum.at(position, units, (np.arange(len(units)) + 0.5) / len(units))
    return np.lexsort((position, scores))


def _by_layer(graph: ChannelGraph, rank: Ids, prunable: Mask, constraints: Constraints) -> tuple[Mask, Mask]:
    """Return which units every layer keeps, and which go in any case; shapes (units,)."""
    protected, first = (np.zeros(graph.unit_count, dtype=np.bool_) for _ in range(2))
    wanted = own_ratios(graph, constraints.layer_ratios)
    _, portion = _interchangeable(graph, constraints.round_to)
    for layer in graph.layers:
        units = graph.units(layer.ids)
        floor = max(constraints.min_channels, math.ceil(len(units) * (1 - constraints.cap) - 1e-9))
        floor = min(floor, len(units))
        protected[units[np.argpartition(rank[units], -floor)[-floor:]]] = True
        if layer.name in wanted:
            mine = units[prunable[units]]
            mine = mine[np.argsort(rank[mine])]
            times = np.unique(units, return_counts=True)[1].max()  # channels per unit
            each = int(portion[mine].max(initial=1)) * (int(times) if constraints.round_to > 1 else 1)
            count = each * round(wanted[layer.name] * len(units) / each)
            first[mine[:count]] = True
            protected[mine[count:]] = True
    return protected, first & ~protected


def own_ratios(graph: ChannelGraph, ratios: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return the ratio of each layer that has one of its own.

    Of several patterns that fit a layer, the last counts; of layers whose channels go together, the smallest ratio.
    """
    return {layer.name: ratio for pattern, ratio in ratios for layer in _matching(graph, pattern, "layer_ratios")}


def _count_leading(first: Mask, ends: Ids) -> int:
    """Count the steps in front that take nothing but units which go in any case."""
    leading = int(first.cumprod().sum())
    return int((ends <= leading).sum())


def _portions(graph: ChannelGraph, order: Ids, multiple: int) -> tuple[Ids, Ids]:
    """Group units that go one after the other into steps that take multiples; return them and where each step ends.

    Units that count the same in every layer are interchangeable, and go in portions of as many as it takes. A portion
    stands where its middle unit stood, which rounds to the nearest multiple; what does not fill one stays.
    """
    if multiple == 1:
        return order, np.arange(1, len(order) + 1)
    kind, size = _interchangeable(graph, multiple)
    place = np.empty(len(order), dtype=np.int64)
    portion = np.full(len(order), -1, dtype=np.int64)
    start = 0
    alike = np.argsort(kind[order], kind="stable")
    borders = np.flatnonzero(np.diff(kind[order][alike])) + 1
    for members in np.split(alike, borders) if len(order) else ():
        each = int(size[order[members[0]]])
        whole = len(members) - len(members) % each
        portion[members[:whole]] = start + np.arange(whole) // each
        place[members[:whole]] = members[:whole].reshape(-1, each)[:, each // 2].repeat(each)
        start += whole // each
    taken = np.flatnonzero(portion >= 0)
    taken = taken[np.lexsort((taken, portion[taken], place[taken]))]
    ends = np.flatnonzero(np.diff(portion[taken], append=-1)) + 1
    return order[taken], ends


def _unfilled(graph: ChannelGraph, free: Ids, order: Ids) -> tuple[str, ...]:
    """Name the BatchNorms of which something might go, and nothing does."""
    if len(free) == len(order):
        return ()
    may, does = (np.zeros(graph.unit_count, dtype=np.bool_) for _ in range(2))
    may[free], does[order] = True, True
    norms = [(layer.name, graph.units(layer.ids)) for layer in graph.layers if layer.kind == "norm"]
    return tuple(name for name, units in norms if may[units].any() and not does[units].any())


def _interchangeable(graph: ChannelGraph, multiple: int) -> tuple[NDArray[np.uint64], Ids]:
    """Return the kind of each unit (how often it counts in which layer), and how many of a kind go together."""
    kind = np.zeros(graph.unit_count, dtype=np.uint64)
    size = np.ones(graph.unit_count, dtype=np.int64)
    if multiple == 1:
        return kind, size
    salts = np.random.default_rng(0).integers(1, 2**62, len(graph.layers), dtype=np.uint64)
    for layer, salt in zip(graph.layers, salts, strict=True):
        if len(layer.ids) % multiple == 0:
            units, counts = np.unique(graph.units(layer.ids), return_counts=True)
            kind[units] += counts.astype(np.uint64) * salt
            size[units] = np.lcm(size[units], multiple // np.gcd(multiple, counts))
    return kind, size


def excluded_layers(graph: ChannelGraph, patterns: Sequence[str]) -> set[str]:
    """Return the names of the layers whose width stays by request."""
    return {layer.name for pattern in patterns for layer in _matching(graph, pattern, "exclude")}


def _excluded(graph: ChannelGraph, patterns: Sequence[str]) -> dict[int, Refusal]:
    excluded: dict[int, Refusal] = {}
    for pattern in patterns:
        for layer in _matching(graph, pattern, "exclude"):
            for unit in np.unique(graph.units(layer.ids)).tolist():
                excluded.setdefault(unit, Refusal(layer.name, f"is excluded by '{pattern}'", ""))
    return excluded


def _matching(graph: ChannelGraph, pattern: str, key: str) -> list[Layer]:
    hit = [layer for layer in graph.layers if matches(layer.name, pattern)]
    if not hit:
        names = [layer.name for layer in graph.layers]
        near = get_close_matches(pattern.strip("*."), [*names, *{n.rpartition(".")[0] for n in names}], n=1)
        hint = f" Did you mean '{near[0]}'?" if near else " `bnprune inspect` lists the layers."
        raise ConfigError(f"{key}: no layer matches '{pattern}'.{hint}")
    return hit


def matches(name: str, pattern: str) -> bool:
    """Tell whether a layer's name is the pattern, lies below the module it names, or fits it as a glob."""
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)
