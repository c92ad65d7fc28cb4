"""Candidates: the channels that may be removed, in the order of removal, in steps that every constraint allows.

A selection takes the first k steps, for some k: see `bnprune.pruning.select`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from bnprune.channels.graph import ChannelGraph, Layer
from bnprune.channels.op_context import Count
from bnprune.channels.union_find import NO_CHANNEL, Ids, Refusal
from bnprune.errors import ConfigError
from bnprune.pruning.scores import Scores

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Constraints:
    """Limits that every selection respects."""

    min_channels: int = 1
    """Channels that every layer keeps at least; those with the highest scores."""
    cap: float = 1.0
    """Largest share of a layer's channels to remove (Liu et al., ICCV 2017, prune at most half of a layer per pass)."""
    round_to: int = 1
    """Widths that are a multiple of this stay multiples of it."""
    exclude: tuple[str, ...] = ()
    """Layers not to prune: name of a module, name of a parent, or a glob ("layer4.*")."""
    include: tuple[str, ...] = ()
    """If given, the only layers to prune, with those that share their channels; patterns as in `exclude`."""
    layer_ratios: tuple[tuple[str, float], ...] = ()
    """(pattern, share of the channels to remove) for layers with a ratio of their own."""


@dataclass(frozen=True)
class Candidates:
    """The units that a selection may remove, in order, and why the others stay.

    Example: `order` = [7, 2, 5, 4] and `step_ends` = [1, 3, 4] mean: step 0 removes unit 7, step 1 the units 2 and 5
    together, step 2 unit 4. `step_of_unit` is then 0 for unit 7, 1 for the units 2 and 5, 2 for unit 4, and -1 for all
    others.
    """

    prunable: Mask
    """True for units that have a score and are neither frozen nor excluded, shape (units,)."""
    order: Ids
    """Prunable units that no constraint protects, in the order of removal."""
    step_ends: Ids
    """Units of `order` that are removed after each step, ascending; shape (steps,)."""
    step_of_unit: Ids
    """The step that removes each unit, -1 for units that stay; shape (units,)."""
    forced_steps: int
    """Number of first steps that are taken for every target: those that `layer_ratios` require."""
    unfilled: tuple[str, ...]
    """Layers that lose nothing, because they have fewer removable channels than a portion for `round_to`."""
    kept: Mapping[int, Refusal]
    """Reasons for units that stay although the graph does not freeze them."""


def find_candidates(
    graph: ChannelGraph,
    scores: Scores,
    constraints: Constraints,
    kept: Mapping[int, Refusal],
    sizes: Sequence[Count] = (),
    least_widths: Mapping[str, int] | None = None,
) -> Candidates:
    """Rank the units of a network and apply the constraints.

    Args:
        graph: The trace.
        scores: Importance of each unit, shape (units,); infinite for units that cannot be ranked.
        constraints: Limits to respect.
        kept: Units that must stay for other reasons, such as the result of a dry run.
        sizes: Attributes that hold widths, such as the size of a part in `split`. None becomes zero: the channel with
            the highest score stays.
        least_widths: Channels that layers keep at least, by name of the layer, beside what the constraints say.

    Raises:
        ConfigError: A pattern matches no layer.
    """
    excluded = {**_excluded(graph, constraints.exclude, constraints.include), **kept}
    prunable = graph.free & np.isfinite(scores)
    prunable[[NO_CHANNEL, *excluded]] = False
    order = ranking(graph, np.where(prunable, scores, np.inf))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    protected, forced = _by_layer(graph, rank, prunable, constraints, least_widths or {})
    for size in sizes:
        units = graph.units(size.ids)
        protected[units[np.argmax(rank[units])]] = True
    forced &= ~protected
    rank[forced] -= len(rank)  # in front of all others, in their own order
    free = order[(prunable & ~protected)[order]]
    order, ends = _portions(graph, free[np.argsort(rank[free])], constraints.round_to)
    forced_steps = _count_leading(forced[order], ends)
    step_of_unit = np.full(graph.unit_count, -1, dtype=np.int64)
    step_of_unit[order] = np.arange(len(ends)).repeat(np.diff(ends, prepend=0))
    return Candidates(prunable, order, ends, step_of_unit, forced_steps, _unfilled(graph, free, order), excluded)


def ranking(graph: ChannelGraph, scores: Scores) -> Ids:
    """Return all units, the least important first.

    Scores are compared across the whole network, without normalisation per layer: the global threshold of Liu et al.,
    ICCV 2017, section 3.3. Equal scores are ordered by the relative position of the channel in its layer, then by
    position in the network. So a network whose scores are all equal (γ = 1 before training) loses the same share of
    every layer: of layers with 2 and 4 channels, at 1/4, 3/4 and 1/8, 3/8, 5/8, 7/8, half of the channels are the first
    of one and the first two of the other.
    """
    position = np.full(graph.unit_count, np.inf)
    for units in graph.gamma_units.values():
        np.minimum.at(position, units, (np.arange(len(units)) + 0.5) / len(units))
    return np.lexsort((position, scores))


def _by_layer(
    graph: ChannelGraph, rank: Ids, prunable: Mask, constraints: Constraints, least_widths: Mapping[str, int]
) -> tuple[Mask, Mask]:
    """Return the units that some layer must keep, and the units that are removed for every target; shapes (units,).

    A unit is protected as soon as one of its layers needs it, since its channels are removed in all layers or in none.
    """
    protected, forced = (np.zeros(graph.unit_count, dtype=np.bool_) for _ in range(2))
    ratios = own_ratios(graph, constraints.layer_ratios)
    portion = interchangeable(graph, constraints.round_to)[1] if ratios else np.ones(graph.unit_count, dtype=np.int64)
    for layer in graph.layers:
        units = graph.units(layer.ids)
        floor = max(constraints.min_channels, math.ceil(len(units) * (1 - constraints.cap) - 1e-9))
        floor = min(max(floor, least_widths.get(layer.name, 0)), len(units))
        protected[units[np.argpartition(rank[units], -floor)[-floor:]]] = True
        if layer.name in ratios:
            removable = units[prunable[units]]
            removable = removable[np.argsort(rank[removable])]
            per_unit = np.unique(units, return_counts=True)[1].max()  # channels of this layer
            each = int(portion[removable].max(initial=1)) * (int(per_unit) if constraints.round_to > 1 else 1)
            count = each * round(ratios[layer.name] * len(units) / each)
            forced[removable[:count]] = True
            protected[removable[count:]] = True
    return protected, forced & ~protected


def own_ratios(graph: ChannelGraph, ratios: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return the ratio of each layer that has one of its own.

    If several patterns match a layer, the last one counts. If the channels of several layers are removed together, the
    smallest of their ratios counts.
    """
    return {layer.name: ratio for pattern, ratio in ratios for layer in _matching(graph, pattern, "layer_ratios")}


def _count_leading(forced: Mask, ends: Ids) -> int:
    """Count the first steps that only remove units which are removed for every target."""
    leading = int(forced.cumprod().sum())
    return int((ends <= leading).sum())


def _portions(graph: ChannelGraph, order: Ids, multiple: int) -> tuple[Ids, Ids]:
    """Group units into steps that remove a multiple of channels from every layer.

    Interchangeable units (see `interchangeable`) are removed in portions of a fixed size. A portion takes the place of
    its middle unit in the order, so that widths round to the nearest multiple. Units that do not fill a portion stay.

    Example for portions of 2, with units a of one kind and b of another:

        order   a1  b1  a2  a3  b2            place of the middle unit: a2, b2
        steps   [a1 a2]  [b1 b2]              a3 stays, because nothing fills its portion

    Returns:
        The units in the new order, and the number of units after each step.
    """
    if multiple == 1:
        return order, np.arange(1, len(order) + 1)
    kind, size = interchangeable(graph, multiple)
    place = np.empty(len(order), dtype=np.int64)
    portion = np.full(len(order), -1, dtype=np.int64)
    start = 0
    by_kind = np.argsort(kind[order], kind="stable")
    borders = np.flatnonzero(np.diff(kind[order][by_kind])) + 1
    for members in np.split(by_kind, borders) if len(order) else ():
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
    """Return the names of BatchNorms with removable channels that do not fill a portion."""
    if len(free) == len(order):
        return ()
    removable, ordered = (np.zeros(graph.unit_count, dtype=np.bool_) for _ in range(2))
    removable[free], ordered[order] = True, True
    norms = [(layer.name, graph.units(layer.ids)) for layer in graph.layers if layer.kind == "norm"]
    return tuple(name for name, units in norms if removable[units].any() and not ordered[units].any())


def interchangeable(graph: ChannelGraph, multiple: int) -> tuple[NDArray[np.uint64], Ids]:
    """Return the kind of each unit, and how many units of that kind are removed together; shapes (units,).

    Two units are interchangeable if they have equally many channels in every layer: removing one or the other leaves
    the same widths. So the kind of a unit is the vector of its channel counts, one number per layer, of which only
    equality matters. It is represented by a hash: the sum of count x salt over the layers, modulo 2^64, where the salt
    of a layer is a fixed random number. Equal vectors have equal hashes. Different vectors have different ones, except
    with a probability of about 2^-62 per pair; then a width would not be rounded. Layers whose width is no multiple
    of `multiple` do not count.

    Example: unit 0 has one channel in conv1 and one in bn1, unit 1 the same, unit 2 two in a concatenation and one in
    bn2. The units 0 and 1 have the hash salt(conv1) + salt(bn1). For `round_to` 8 they are removed in portions of 8,
    and units like 2 in portions of lcm(8 / gcd(8, 2), 8 / gcd(8, 1)) = 8.
    """
    kind = np.zeros(graph.unit_count, dtype=np.uint64)
    size = np.ones(graph.unit_count, dtype=np.int64)
    salts = np.random.default_rng(0).integers(1, 2**62, len(graph.layers), dtype=np.uint64)
    for layer, salt in zip(graph.layers, salts, strict=True):
        if len(layer.ids) % multiple == 0:
            units, counts = np.unique(graph.units(layer.ids), return_counts=True)
            kind[units] += counts.astype(np.uint64) * salt
            size[units] = np.lcm(size[units], multiple // np.gcd(multiple, counts))
    return kind, size


def excluded_layers(graph: ChannelGraph, exclude: Sequence[str], include: Sequence[str]) -> set[str]:
    """Return the names of the layers of which no channel may be removed because of `exclude` or `include`."""
    excluded = [*_excluded(graph, exclude, include)]
    return {layer.name for layer in graph.layers if np.isin(graph.units(layer.ids), excluded).all()}


def _excluded(graph: ChannelGraph, exclude: Sequence[str], include: Sequence[str]) -> dict[int, Refusal]:
    """Return the units that `exclude` and `include` keep.

    One layer to exclude keeps a unit; one layer to include suffices that it may go. Otherwise, a convolution could not
    be included without naming the BatchNorm after it.
    """
    excluded: dict[int, Refusal] = {}
    included = {
        unit
        for pattern in include
        for layer in _matching(graph, pattern, "include")
        for unit in np.unique(graph.units(layer.ids)).tolist()
    }
    if include:
        for layer in graph.layers:
            for unit in set(np.unique(graph.units(layer.ids)).tolist()) - included:
                excluded.setdefault(unit, Refusal(layer.name, "is not among the layers to include", ""))
    for pattern in exclude:
        for layer in _matching(graph, pattern, "exclude"):
            for unit in np.unique(graph.units(layer.ids)).tolist():
                excluded.setdefault(unit, Refusal(layer.name, f"is excluded by '{pattern}'", ""))
    return excluded


def _matching(graph: ChannelGraph, pattern: str, key: str) -> list[Layer]:
    require_match([layer.name for layer in graph.layers], pattern, key)
    return [layer for layer in graph.layers if matches(layer.name, pattern)]


def require_match(names: Sequence[str], pattern: str, key: str) -> None:
    """Refuse a pattern that no layer's name matches.

    Raises:
        ConfigError: No name matches; with the nearest name.
    """
    if any(matches(name, pattern) for name in names):
        return
    near = get_close_matches(pattern.strip("*."), [*names, *{n.rpartition(".")[0] for n in names}], n=1)
    hint = f" Did you mean '{near[0]}'?" if near else " `bnprune inspect` lists the layers."
    raise ConfigError(f"{key}: no layer matches '{pattern}'.{hint}")


def matches(name: str, pattern: str) -> bool:
    """Return True if a layer's name is the pattern, is below the module it names, or matches it as a glob."""
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)
