"""Least widths: how many channels every layer keeps, so that no layer becomes far narrower than the others.

Scores that are compared across layers can be far smaller in some layers than in others, although the network does not
need these less: the BatchNorm after a layer cancels its scale. So a ranking alone can strip a layer of almost all
channels, from which fine-tuning does not recover. Every layer therefore keeps a share (`tables.Criterion.least_width`)
of the width that it would have if all layers were pruned alike.

Channels that are dead already, whose γ a penalty has brought near zero, do not count: a layer may lose all of them.
Example: of the 64 channels of a layer, 24 are not dead; without dead channels, the network has 0.6 of its MACs, and 0.3
are asked for. Equal pruning would reduce all widths to √(0.3 / 0.6) = 0.71, so to 17 of 24 channels; with a share of
0.7, the layer keeps 12.

Validation accuracy of networks trained with an L1 penalty (CIFAR-10 at 16x16, ResNet-20 78.4% and half-width VGG-11
77.4%, 30% of γ at zero, one seed), cut to 0.3 of the MACs and recovered, without fine-tuning::

                  ResNet-20                    VGG-11
    share         0     0.3   0.5   0.7        0     0.3   0.5   0.7
    gamma         35.3  45.3  50.2  54.1       13.8  71.2  73.4  73.1
    l1            24.4  45.3  54.6  60.7       10.0  73.1  74.5  74.3
    activation    43.2  50.1  59.6  64.3       14.8  73.4  73.3  73.8

After 10 epochs of fine-tuning, gamma with the shares 0 and 0.7: 74.3 and 75.4 (ResNet-20), 44.8 and 77.1 (VGG-11).

Ordinary networks, without dead channels (two ResNet-20, CIFAR-10 at 16x16, accuracy after recalibration at 0.7, 0.5 and
0.3 of the MACs)::

    share        0                 0.3               0.5               0.7
    activation   66.5 54.9 29.8    66.5 56.4 35.8    67.0 55.0 36.3    66.6 53.0 31.9
    taylor       56.0 34.8 20.2    60.7 47.6 30.6    62.9 53.1 33.0    63.8 53.5 27.6
    l2           41.4 22.8 14.8    54.8 40.1 26.1    58.7 46.1 29.0    60.9 47.9 24.6
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bnprune.channels.graph import ChannelGraph, Layer
from bnprune.notes import Note
from bnprune.pruning.candidates import Mask
from bnprune.pruning.cost_model import CostModel
from bnprune.pruning.request import TargetKind

SMALL = 0.03
"""|γ| below this share of the root mean square counts as zero: its channel has 0.1% of the variance of others."""

LeastWidths = Mapping[str, int]
"""The number of channels that a layer keeps at least, by its name."""


def least_widths(
    graph: ChannelGraph,
    gammas: Mapping[str, NDArray[np.float64]],
    prunable: Mask,
    target: tuple[TargetKind, float],
    cost_model: CostModel,
    share: float,
) -> LeastWidths:
    """Return the least width of every layer with prunable channels.

    Args:
        graph: The trace.
        gammas: |γ| of each BatchNorm, by name of the tensor.
        prunable: True for units that may be removed, shape (units,).
        target: A ratio, or a share of the MACs or parameters.
        cost_model: Of the network.
        share: Share of the width under equal pruning that layers keep.
    """
    dead = prunable & _dead(graph, gammas)
    width = min(1.0, _equal_width(graph, prunable, dead, target, cost_model))
    found = {}
    for layer in graph.layers:
        units = graph.units(layer.ids)
        alive = int((~dead[units]).sum())
        if prunable[units].any() and alive:
            found[layer.name] = math.ceil(share * width * alive - 1e-9)
    return found


def _dead(graph: ChannelGraph, gammas: Mapping[str, NDArray[np.float64]]) -> Mask:
    """Return which units are dead, shape (units,): every scale factor in them is near zero."""
    largest = np.zeros(graph.unit_count)
    for name, units in graph.gamma_units.items():
        np.maximum.at(largest, units, gammas[name])
    for written in graph.deviations:  # layers without a BatchNorm that write the same stream
        np.maximum.at(largest, written.units, written.values)
    squares = np.concatenate([np.zeros(1), *(gammas[name] ** 2 for name in graph.gamma_units)])
    usual = math.sqrt(squares.sum() / max(len(squares) - 1, 1))
    return np.asarray((graph.gamma_count > 0) & (largest < SMALL * usual))


def _equal_width(
    graph: ChannelGraph, prunable: Mask, dead: Mask, target: tuple[TargetKind, float], cost_model: CostModel
) -> float:
    """Return the share of its live channels that every layer keeps if all layers are pruned alike."""
    kind, value = target
    if kind == "ratio":
        whole, alive = (int(graph.gamma_count[units].sum()) for units in (prunable, prunable & ~dead))
        return (1 - value) * whole / max(alive, 1)
    cost = cost_model.macs if kind == "macs" else cost_model.params
    return math.sqrt(value * cost(np.zeros_like(dead)) / max(cost(dead), 1))


def is_limited(graph: ChannelGraph, removed: Mask, widths: LeastWidths, multiple: int) -> bool:
    """Return True if a layer that was cut could not become narrower, because of its least width.

    Args:
        graph: The trace.
        removed: True for units that are removed, shape (units,).
        widths: The least widths.
        multiple: Number of channels that layers lose at a time, if their width is a multiple of it.
    """

    def at_limit(layer: Layer) -> bool:
        units = graph.units(layer.ids)
        step = multiple if len(units) % multiple == 0 else 1
        kept = int((~removed[units]).sum())
        return bool(removed[units].any()) and kept - step < widths[layer.name]

    return any(at_limit(layer) for layer in graph.layers if layer.name in widths)


def least_width_note(criterion: str, share: float) -> Note:
    """Return the note that least widths have limited the cut."""
    text = (
        f"criterion {criterion}: some layers would have become far narrower than others, so every layer keeps at least "
        f"{share:.0%} of the width that it would have if all were cut alike (channels whose scale factor is near zero "
        "do not count); a cap of 1 removes this limit"
    )
    return Note("least_width", "note", text)


def lifted_note(criterion: str) -> Note:
    """Return the note that the target cannot be reached with least widths."""
    text = (
        f"criterion {criterion}: some layers become far narrower than others, because the target cannot be reached "
        "otherwise"
    )
    return Note("least_width.lifted", "note", text)
