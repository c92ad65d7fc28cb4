"""Scores: how important each unit is. The lower, the sooner it goes.

A criterion is a function of the channel graph and the network's tensors that returns one score per unit, `inf` for
units it has no opinion on. To add one, write the function and put it into `CRITERIA`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from bnprune.channels.graph import ChannelGraph
from bnprune.errors import PruningError

Scores = NDArray[np.float64]
Reduce = Literal["max", "mean", "sum"]
Criterion = Callable[[ChannelGraph, Mapping[str, torch.Tensor], Reduce], Scores]


def gamma(graph: ChannelGraph, tensors: Mapping[str, torch.Tensor], reduce: Reduce = "max") -> Scores:
    """Score a unit by the |γ| of the BatchNorm channels in it (Liu et al., ICCV 2017, section 3).

    `max` never removes a channel of a residual stream that one live layer writes.
    """
    values = {name: _gamma_values(name, tensors[name]) for name in graph.gamma_units}
    return reduce_by_unit(graph, values, reduce)


def _gamma_values(name: str, tensor: torch.Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = tensor.detach().abs().double().cpu().numpy()
    bad = ~np.isfinite(values)
    if bad.any():
        raise PruningError(
            f"{name}: {int(bad.sum())} of {values.size} scale factors are not finite. Training has diverged: "
            "prune an earlier checkpoint."
        )
    return values


def reduce_by_unit(graph: ChannelGraph, values: Mapping[str, NDArray[np.float64]], reduce: Reduce) -> Scores:
    """Combine values per BatchNorm channel, by name of the scale factor tensor, into one score per unit."""
    totals = np.zeros(graph.unit_count)
    for name, units in graph.gamma_units.items():
        if reduce == "max":
            np.maximum.at(totals, units, values[name])
        else:
            np.add.at(totals, units, values[name])
    counts = graph.gamma_count
    if reduce == "mean":
        totals = totals / np.maximum(counts, 1)
    return np.where(counts > 0, totals, np.inf)


def with_streams(graph: ChannelGraph, scores: Scores) -> Scores:
    """Score the channels of gated streams: as high as the best of the BatchNorm channels that go with them.

    So a channel leaves the stream when no gated BatchNorm writes or reads it any more.
    """
    stream, own = graph.implied
    scores = scores.copy()
    silent = np.unique(stream[np.isinf(scores[stream])])
    scores[silent] = -np.inf
    must_stay = np.where(graph.free, scores, np.inf)
    np.maximum.at(scores, stream, must_stay[own])
    return scores


CRITERIA: dict[str, Criterion] = {"gamma": gamma}
