"""Scores: the importance of each unit. Units with low scores are removed first.

A criterion is a function of the channel graph and the network's tensors that returns one score per unit, `inf` for
units that it cannot rank. `config.tables.CRITERIA` lists them by name. All criteria rank the same units, those with a
BatchNorm scale factor, so that they can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bnprune.channels.graph import ChannelGraph
from bnprune.channels.union_find import Ids
from bnprune.config import prune_options, tables
from bnprune.errors import ConfigError, PruningError
from bnprune.pruning.calibration import Calibration

Scores = NDArray[np.float64]
Reduce = prune_options.Reduce
Tensors = Mapping[str, torch.Tensor]
Criterion = Callable[[ChannelGraph, Tensors, Reduce], Scores]
Statistics = Mapping[tuple[str, int], torch.Tensor]
"""A number per channel along a dimension of a tensor, by name and dimension, as in `ChannelGraph.axes`; float64."""


def gamma(graph: ChannelGraph, tensors: Tensors, reduce: Reduce = "max") -> Scores:
    """Score a unit by the |γ| of the BatchNorm channels in it (Liu et al., ICCV 2017, section 3).

    With "max", a channel of a residual stream counts as important if one of the layers that write it needs it. Layers
    that write it without a BatchNorm count with γ̂ (`bnprune.pruning.output_deviation`): what layers add to a stream is
    independent, so that variances add up, and the score is sqrt(|γ|² + Σ γ̂²).
    """
    values = [(units, gamma_values(tensors[name])) for name, units in graph.gamma_units.items()]
    scores, written = reduce_by_unit(graph, values, reduce), _written(graph, tensors)
    ranked_alone = np.isinf(scores) & (written > 0)  # a stream whose BatchNorms all have gates
    return np.hypot(np.where(ranked_alone, 0, scores), written)


def _written(graph: ChannelGraph, tensors: Tensors) -> Scores:
    """Return sqrt(Σ γ̂²) over the layers without a BatchNorm that write each unit, shape (units,).

    The scale of a whole stream has no meaning: the BatchNorms after its readers cancel it. So a stream that is larger
    than the γ of the network (root mean square) is scaled down to them; otherwise none of it would ever be removed.
    """
    variance, factor = np.zeros(graph.unit_count), np.ones(graph.unit_count)
    for written in graph.deviations:
        variance[written.units] += written.values**2
    squares = np.concatenate([np.zeros(1), *(gamma_values(tensors[name]) ** 2 for name in graph.gamma_units)])
    usual = squares.sum() / max(len(squares) - 1, 1) or 1.0
    for written in graph.deviations:
        units = written.units
        factor[units] = np.minimum(factor[units], usual / max(variance[units].mean(), usual, 1e-300))
    return np.sqrt(variance * factor)


def gamma_per_mac(graph: ChannelGraph, tensors: Tensors, reduce: Reduce = "max") -> Scores:
    """Score a unit by |γ| over the square root of the MACs it costs.

    That is the ranking of γ² per MAC.
    """
    return gamma(graph, tensors, reduce) / np.sqrt(np.maximum(unit_macs(graph), 1))


def unit_macs(graph: ChannelGraph) -> Scores:
    """Return the MACs that are saved by removing each unit alone, shape (units,)."""
    cost = np.zeros(graph.unit_count)
    for work in graph.traces["eval"].work:
        sides = (work.inputs, work.outputs), (work.outputs, work.inputs)
        for axis, other in sides:
            if not isinstance(axis, int):
                width = other if isinstance(other, int) else len(other)
                np.add.at(cost, graph.units(axis), float(work.factor) * width)
    return cost


def uniform(graph: ChannelGraph, tensors: Tensors, reduce: Reduce = "max") -> Scores:
    """Score a unit by the rank of its |γ|, or γ̂, within its layer: every layer loses the same share (uniform width)."""
    values = []
    norms = [(units, gamma_values(tensors[name])) for name, units in graph.gamma_units.items()]
    for units, numbers in (*norms, *((written.units, written.values) for written in graph.deviations)):
        place = np.empty(len(numbers))
        place[np.argsort(numbers, kind="stable")] = (np.arange(len(numbers)) + 0.5) / len(numbers)
        values.append((units, place))
    return reduce_by_unit(graph, values, reduce)


def random(graph: ChannelGraph, tensors: Tensors, reduce: Reduce = "max") -> Scores:
    """Score units at random, the same way every time: the baseline that any criterion must beat."""
    drawn = np.random.default_rng(0).random(graph.unit_count)
    return np.where(graph.gamma_count > 0, drawn, np.inf)


def l1(graph: ChannelGraph, tensors: Tensors, reduce: Reduce = "max") -> Scores:
    """Score a unit by the mean |w| of the filters in it (Li et al., "Pruning Filters", ICLR 2017)."""
    return _filters(graph, tensors, reduce, lambda filters: filters.abs().mean(1))


def l2(graph: ChannelGraph, tensors: Tensors, reduce: Reduce = "max") -> Scores:
    """Score a unit by the root mean square of the filters in it."""
    return _filters(graph, tensors, reduce, lambda filters: filters.square().mean(1).sqrt())


def _filters(
    graph: ChannelGraph, tensors: Tensors, reduce: Reduce, measure: Callable[[torch.Tensor], torch.Tensor]
) -> Scores:
    """Score by the weights that write a unit's channels: dimension 0 or, in transposed convolutions, 1."""
    values = []
    for layer in graph.layers:
        name = f"{layer.name}.weight".removeprefix(".")
        if layer.kind == "norm" or name not in tensors:
            continue
        weight = tensors[name].detach().double().cpu()
        if not weight.isfinite().all():
            raise PruningError(
                f"{name}: not all weights are finite. Training has diverged: prune an earlier checkpoint."
            )
        for dim in (0, 1):
            written = graph.axes.get((name, dim))
            if written is not None and np.array_equal(graph.units(written), graph.units(layer.ids)):
                values.append((graph.units(written), measure(weight.transpose(0, dim).flatten(1)).numpy()))
                break
    scores = reduce_by_unit(graph, values, reduce)
    return np.where(graph.gamma_count > 0, scores, np.inf)


def gamma_values(tensor: torch.Tensor) -> NDArray[np.float64]:
    """Return |γ| of one BatchNorm, shape (C,)."""
    values: NDArray[np.float64] = tensor.detach().abs().double().cpu().numpy()
    return values


def require_finite(graph: ChannelGraph, tensors: Tensors) -> None:
    """Refuse a network whose training has diverged, whatever the criterion.

    Raises:
        PruningError: A scale factor is NaN or infinite.
    """
    for name in graph.gamma_units:
        bad = ~tensors[name].detach().isfinite()
        if bad.any():
            raise PruningError(
                f"{name}: {int(bad.sum())} of {bad.numel()} scale factors are not finite. Training has diverged: "
                "prune an earlier checkpoint."
            )


def reduce_by_unit(graph: ChannelGraph, values: Iterable[tuple[Ids, NDArray[np.float64]]], reduce: Reduce) -> Scores:
    """Combine (units, values) pairs of the same shape into one score per unit; `inf` for units without a value."""
    totals, counts = np.zeros(graph.unit_count), np.zeros(graph.unit_count)
    for units, numbers in values:
        (np.maximum if reduce == "max" else np.add).at(totals, units, numbers)
        np.add.at(counts, units, 1)
    if reduce == "mean":
        totals = totals / np.maximum(counts, 1)
    return np.where(counts > 0, totals, np.inf)


def with_streams(graph: ChannelGraph, scores: Scores) -> Scores:
    """Score the channels of gated streams: the highest score of the BatchNorm channels that are removed with them.

    So a channel of the stream is removed only if no gated BatchNorm writes or reads it any more.
    """
    stream, own = graph.implied
    scores = scores.copy()
    unscored = np.unique(stream[np.isinf(scores[stream])])
    scores[unscored] = -np.inf
    must_stay = np.where(graph.free, scores, np.inf)
    np.maximum.at(scores, stream, must_stay[own])
    return scores


# -- criteria by name --------------------------------------------------------------------------------------------------


def uses_data(criterion: str) -> bool:
    """Return True if a criterion uses calibration data, required or not."""
    entry = CRITERIA[criterion]
    return isinstance(entry, tables.Criterion) and bool(entry.measure)


def needs_data(criterion: str) -> bool:
    """Return True if a criterion cannot rank without calibration data."""
    entry = CRITERIA[criterion]
    return isinstance(entry, tables.Criterion) and bool(entry.measure) and not entry.optional


def measure_statistics(model: nn.Module, criterion: str, calibration: Calibration | None) -> Statistics | None:
    """Measure the statistics by which a criterion ranks; None if it uses none, or there is no data and it needs none.

    Raises:
        ConfigError: It needs calibration data, and there is none, or not with labels if it needs them.
    """
    entry = CRITERIA[criterion]
    if not isinstance(entry, tables.Criterion) or not entry.measure:
        return None
    if calibration is not None:
        measured: Statistics = entry.measured(model, calibration)
        return measured
    if not entry.optional:
        raise ConfigError(
            f"criterion: '{criterion}' ranks channels by data, and no calibration data is given. Give some",
            remedy={"calibrate": "DIR"},
        )
    return None


def score_units(
    criterion: str, graph: ChannelGraph, tensors: Tensors, reduce: Reduce, statistics: Statistics | None
) -> Scores:
    """Return the scores of a criterion, given the statistics that it measures."""
    arguments = (graph, tensors, reduce, statistics) if uses_data(criterion) else (graph, tensors, reduce)
    scores: Scores = CRITERIA[criterion](*arguments)
    return scores


CRITERIA = tables.CRITERIA
"""The criteria by name. To add one of your own: `CRITERIA["mine"] = function`."""
