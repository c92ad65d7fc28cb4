"""The probe: a selection that does not depend on the request, to find the channels that must stay for every request.

A dry run finds code that depends on a width only if that width changes. If only the requested selection were tried, a
small ratio that removes nothing from a stream would find nothing there, and a larger ratio would freeze the stream: the
ratios would then refer to different sets of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np

from bnprune.channels.graph import ChannelGraph
from bnprune.channels.op_context import Count
from bnprune.channels.union_find import Ids
from bnprune.pruning.candidates import Mask

_SHARE = 0.3
"""Share of a layer's channels that stays, roughly."""
_WIDTHS = 3
"""Number of widths that layers of equal width get in turn, for code that compares them: q, k and v of an attention."""
_TILT = 0.2
"""Share of the channels by which the start of a layer keeps more than its end: code that takes half of the width is
right only if both halves keep equally many."""
_GOLDEN_RATIO = (5**0.5 - 1) / 2


def probe(graph: ChannelGraph, prunable: Mask, sizes: Sequence[Count] = ()) -> Mask:
    """Select more than half of the channels of every layer, so that each keeps an unusual width; shapes (units,).

    Scores are ignored. Of 16 channels, 5 may stay, and neither half of them becomes empty: problems with
    single channels and empty parts depend on the selection, and must freeze nothing in advance.

    Args:
        graph: The trace.
        prunable: True for units that may be removed, shape (units,).
        sizes: Attributes that hold widths; none becomes zero.
    """
    removed, seen = prunable.copy(), ~prunable
    turns = cycle(range(_WIDTHS))
    for layer in graph.layers:
        units = graph.units(layer.ids)
        first = np.unique(units, return_index=True)[1]
        own = units[np.sort(first)]
        own = own[~seen[own]]
        if own.size:
            seen[own] = True
            removed[_staying(own, next(turns))] = False
    for ids in (*(layer.ids for layer in graph.layers), *(size.ids for size in sizes)):
        units = graph.units(ids)
        if removed[units].all():
            removed[units[0]] = False
    return _without_orphans(graph, removed)


def _staying(units: Ids, turn: int) -> Ids:
    """Return an odd number of a layer's units, another one in each turn, with small gaps between them.

    Of 8 units, 3, 5 or 7 stay; of 64, it is 19, 21 or 23.

    The multiples of the golden ratio, modulo 1, are spread evenly over [0, 1): among any 5 neighbours, one is small.
    """
    index = np.arange(len(units))
    order = np.argsort(index * _GOLDEN_RATIO % 1 + _TILT * index / len(units))
    fewest = int(_SHARE * len(units)) | 1
    counts = list(range(fewest, len(units), 2))[:_WIDTHS] or [1]
    return units[order[: counts[turn % len(counts)]]]


def _without_orphans(graph: ChannelGraph, removed: Mask) -> Mask:
    """Keep the channels of a stream that a BatchNorm with a gate still reads or writes."""
    stream, own = graph.implied
    while (needed := stream[removed[stream] & ~removed[own]]).size:
        removed[needed] = False
    return removed
