"""The probe: a selection that does not depend on the request, to find the channels that must stay for every request.

A dry run finds code that depends on a width only if that width changes. If the dry run of the requested selection were
the only one, a small ratio that leaves a stream alone would find nothing there, and a larger one would freeze it: 0.5
would then be half of another set than 0.3.
"""

from __future__ import annotations

from itertools import cycle

import numpy as np

from bnprune.channels.graph import ChannelGraph
from bnprune.pruning.candidates import Mask

_WIDTHS = (3, 5, 7)
"""Widths that a probe leaves, in turn. They are odd, for code that halves a width, and they differ, for code that
compares two widths. A width of 1 is not among them: `squeeze()` drops such a dimension, and a stream that is never cut
that far would be frozen for it."""


def probe(graph: ChannelGraph, prunable: Mask) -> Mask:
    """Select nearly all channels of every layer; shapes (units,).

    Which ones does not depend on scores. Layers with the same channels keep the same ones.
    """
    rank = np.random.default_rng(0).permutation(graph.unit_count)
    rank[~prunable] = graph.unit_count
    removed = prunable.copy()
    widths: dict[bytes, int] = {}
    following = cycle(_WIDTHS)
    for layer in graph.layers:
        units = graph.units(layer.ids)
        same = np.unique(units).tobytes()
        if same not in widths:
            widths[same] = next(following)
        left = max(1, min(widths[same], len(units) - 1))
        removed[units[np.argpartition(rank[units], -left)[-left:]]] = False
    return _without_orphans(graph, removed)


def _without_orphans(graph: ChannelGraph, removed: Mask) -> Mask:
    """Keep the channels of a stream that a BatchNorm with a gate still reads or writes."""
    stream, own = graph.implied
    while (needed := stream[removed[stream] & ~removed[own]]).size:
        removed[needed] = False
    return removed
