"""The charts of runs: functions from the data of a run to a figure, or to None if there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch

from bnprune.config.metrics import METRICS, Metric, metric_of
from bnprune.recovery.sweep import Point
from bnprune.reporting.figures import GREY, SHADES, Axis, Cell, Chart, HeatMap, Histogram, Legend, Mark, Series, Widths
from bnprune.reporting.number_format import percent
from bnprune.reporting.run_data import Curve, Gammas, RunData, Stage
from bnprune.runs.results import SweepPoint
from bnprune.runs.stages import kind_of

Points = tuple[tuple[float, float], ...]

_BINS = 40
_HIGHEST = 1e9
"""Largest loss that is drawn."""
_COLOURS = {"finetune": 0, "train": 1, "prune": 2, "baseline": 3}
_OTHER = 4


def colour_of(stage: str) -> int:
    """Return the colour of a stage, the same in every figure."""
    return _COLOURS.get(kind_of(stage), _OTHER)


# -- accuracy against cost -------------------------------------------------------------------------------------------


def accuracy_against_macs(run: RunData) -> Chart | None:
    """Test accuracy, or the main value of another task, of every stage over its MACs.

    Also the values on validation images of the ratios that `ratio: auto` tried.
    """
    stages = [stage for stage in run.stages if stage.figures.accuracy is not None]
    if not stages:
        return None
    most = max(stage.figures.macs for stage in stages)
    way = [stage for stage in stages if kind_of(stage.name) in ("train", "prune", "finetune")]
    tried = tuple((point.macs, point.accuracy) for stage in run.pruned for point in stage.figures.sweep or ())
    marks = [_marked(stage, most) for stage in stages]
    if tried:
        marks.insert(0, Series("ratios that were tried (validation)", tried, GREY, "small"))
    values = [accuracy for series in marks for _, accuracy in series.points]
    return Chart(
        f"{run.metric.title} against MACs",
        (Series("from stage to stage", tuple(_place(stage, most) for stage in way), GREY, "dashes"), *marks),
        Axis("MACs left", 0.0, 1.04, _whole_percent),
        _value_axis(values, run.metric),
        tuple((series.mark, series.label, series.colour) for series in marks),
    )


def accuracy_of_runs(runs: Sequence[RunData]) -> Chart | None:
    """The same for several runs: one colour each, a ring for the network before pruning."""
    most = max((stage.figures.macs for run in runs for stage in run.stages), default=0)
    series: list[Series] = []
    for number, run in enumerate(runs):
        pair = [
            stage for stage in (run.reference, run.final) if stage is not None and stage.figures.accuracy is not None
        ]
        series.append(Series(run.name, tuple(_place(stage, most) for stage in pair), number, "dashes"))
        for stage in {stage.name: stage for stage in pair}.values():
            mark: Mark = "ring" if stage is run.reference else "dot"
            label = f"{run.name}, {stage.title}: {run.metric.text(stage.figures.accuracy)}"
            series.append(Series(label, (_place(stage, most),), number, mark))
    values = [accuracy for one in series for _, accuracy in one.points]
    if not values:
        return None
    legend: list[Legend] = [("dot", run.name, number) for number, run in enumerate(runs)]
    metric = runs[0].metric
    return Chart(
        f"{metric.title} against MACs",
        tuple(series),
        Axis("MACs (100%: the largest network)", 0.0, 1.04, _whole_percent),
        _value_axis(values, metric),
        (*legend, ("ring", "before pruning", GREY)),
    )


def _place(stage: Stage, most: int) -> tuple[float, float]:
    return stage.figures.macs / max(most, 1), stage.figures.accuracy or 0.0


def _marked(stage: Stage, most: int) -> Series:
    share = percent(stage.figures.macs / max(most, 1), 1)
    value = metric_of(stage.figures.metric).text(stage.figures.accuracy)
    hint = f"{stage.title}: {value} at {share} of the MACs"
    mark: Mark = "ring" if kind_of(stage.name) in ("baseline", "prune") else "dot"
    return Series(stage.title, (_place(stage, most),), colour_of(stage.name), mark, (hint,))


def _percent(value: float) -> str:
    return percent(value, 1)


def _whole_percent(value: float) -> str:
    return f"{value:.0%}"


def _value_axis(values: Sequence[float], metric: Metric) -> Axis:
    """Return an axis of a metric.

    For a share, it spans at least four percentage points, so that noise does not look like a large change.
    """
    low, high = min(values), max(values)
    if not metric.share:
        margin = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
        return Axis(metric.label, low - margin, high + margin, metric.text)
    margin = max(0.12 * (high - low), (0.04 - (high - low)) / 2, 0.005)
    top = min(high + margin, 1.005)
    return Axis(metric.label, max(min(low - margin, top - 0.04), 0.0), top, _whole_percent)


# -- scale factors ---------------------------------------------------------------------------------------------------


def gamma_histograms(run: RunData) -> list[Histogram]:
    """Scale factors of each network of the run, all on the same axes."""
    shown = [gammas for gammas in run.gammas if not constant(gammas)]
    if not shown:
        return []
    high = max(float(gammas.values.max()) for gammas in shown)
    counted = [_counts(gammas, high) for gammas in shown]
    most = max(a + b for kept, gone in counted for a, b in zip(kept, gone, strict=True))
    x = Axis("|γ|", 0.0, high * 1.02, lambda value: f"{value:g}")
    y = Axis("channels (square-root scale)", 0.0, most * 1.1, lambda value: f"{value:.0f}", root=True)
    edges = tuple(high * position / _BINS for position in range(_BINS + 1))
    return [
        Histogram(f"|γ| {gammas.title}", edges, kept, gone, x, y, gammas.threshold if run.by_threshold else None)
        for gammas, (kept, gone) in zip(shown, counted, strict=True)
    ]


def constant(gammas: Gammas) -> bool:
    """Return True if all scale factors are equal, so that one number says as much as a histogram."""
    return bool((gammas.values == gammas.values[0]).all())


def _counts(gammas: Gammas, high: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    removed = torch.zeros_like(gammas.values, dtype=torch.bool) if gammas.removed is None else gammas.removed
    kept, gone = (torch.histc(gammas.values[mask], _BINS, 0.0, high).int().tolist() for mask in (~removed, removed))
    return tuple(kept), tuple(gone)


_QUANTILES: tuple[tuple[str, Mark, int], ...] = (
    ("minimum", "dashes", GREY),
    ("first quartile", "line", GREY),
    ("median", "line", 1),
    ("third quartile", "line", GREY),
    ("maximum", "dashes", GREY),
)


def gamma_over_time(run: RunData) -> Chart | None:
    """Quantiles of |γ| over the epochs of sparse training."""
    curve = next((curve for curve in run.curves if len(curve.quantiles) > 1), None)
    if curve is None:
        return None
    columns = zip(*curve.quantiles, strict=True)
    epochs = curve.epochs[-len(curve.quantiles) :]
    high = max(max(quantiles) for quantiles in curve.quantiles)
    return Chart(
        "Scale factors while training",
        tuple(
            Series(name, tuple(zip(epochs, column, strict=True)), colour, mark)
            for (name, mark, colour), column in zip(_QUANTILES, columns, strict=True)
        ),
        _epoch_axis([curve]),
        Axis("|γ|", 0.0, high * 1.05 or 1.0, lambda value: f"{value:g}"),
        (("line", "median |γ|", 1), ("line", "quartiles", GREY), ("dashes", "minimum, maximum", GREY)),
    )


# -- training --------------------------------------------------------------------------------------------------------


def accuracy_curves(run: RunData) -> Chart | None:
    """Validation accuracy, or the main value of another task, over the epochs of every training."""

    def values_of(curve: Curve) -> tuple[float | None, ...]:
        return curve.validation_value if metric_of(curve.metric) == run.metric else (None,) * len(curve.epochs)

    title = f"Validation {run.metric.label}"
    return _curves(run, title, values_of, run.metric.text_on_axis, limit=run.metric.most)


def loss_curves(run: RunData) -> Chart | None:
    """Training loss over the epochs of every training."""
    return _curves(run, "Training loss", lambda curve: curve.train_loss, lambda value: f"{value:g}", limit=_HIGHEST)


def last_trainings(runs: Sequence[RunData]) -> Chart | None:
    """Validation accuracy over the epochs of the last training of several runs."""
    metric = runs[0].metric
    ended = [(run.name, run.curves[-1], n) for n, run in enumerate(runs) if run.curves]
    lasts = [entry for entry in ended if metric_of(entry[1].metric) == metric]
    lines = [_line(name, number, curve, curve.validation_value) for name, curve, number in lasts]
    title, curves = f"Validation {metric.label}", [curve for _, curve, _ in lasts]
    return _trained(title, lines, curves, metric.text_on_axis, metric.most)


def _curves(
    run: RunData,
    title: str,
    values_of: Callable[[Curve], tuple[float | None, ...]],
    write: Callable[[float], str],
    limit: float,
) -> Chart | None:
    lines = [_line(curve.title, colour_of(curve.stage), curve, values_of(curve)) for curve in run.curves]
    return _trained(title, lines, run.curves, write, limit)


def _line(label: str, colour: int, curve: Curve, values: Sequence[float | None]) -> Series:
    points = tuple((e, min(v, _HIGHEST)) for e, v in zip(curve.epochs, values, strict=True) if v is not None)
    return Series(label, points, colour, "line" if len(points) > 1 else "dot")


def _trained(
    title: str, lines: Sequence[Series], curves: Sequence[Curve], write: Callable[[float], str], limit: float
) -> Chart | None:
    """Return values over epochs; None if there is a single epoch."""
    series = tuple(line for line in lines if line.points)
    values = [value for one in series for _, value in one.points]
    if not values or max(len(one.points) for one in series) < 2:
        return None
    high = min(max(values) + 0.03 * (max(values) - min(values) or 1.0), limit * 1.005)
    low = max(min(values) - 0.02, 0.0) if limit <= 1 else min(0.0, *values)
    axis = Axis(title, low, high, write)
    legend: tuple[Legend, ...] = tuple((one.mark, one.label, one.colour) for one in series)
    return Chart(title, series, _epoch_axis(curves), axis, legend)


def _epoch_axis(curves: Sequence[Curve]) -> Axis:
    last = max((max(curve.epochs) for curve in curves if curve.epochs), default=1)
    return Axis("epoch", 1.0, max(float(last), 2.0), lambda value: f"{value:g}", whole=True)


# -- sweeps ----------------------------------------------------------------------------------------------------------


def sweep_chart(
    points: Sequence[Point | SweepPoint],
    best: Point | SweepPoint | None,
    tolerance: float | None = None,
    metric: Metric = METRICS["top1"],
    *,
    label: str = "recommended",
    near: bool = False,
) -> Chart:
    """Validation accuracy over the MACs left, right after pruning and after recovery, with error bars.

    Args:
        points: The network before pruning, then each ratio that was tried.
        best: The point that is recommended, if any.
        tolerance: The loss that is allowed; draws a line.
        metric: The main value of the task.
        label: The name of `best`.
        near: Show only accuracies near the line, where the decision falls.
    """
    recovered, plain = _over_macs(points, "accuracy"), _over_macs(points, "plain")
    bars = _error_bars(points[1:])
    series = [
        Series("without recovery", plain, GREY, "dashes"),
        Series("without recovery", plain, GREY, "small"),
        Series("95% confidence", bars, 0, "bar"),
        Series("recovered", recovered, 0),
        Series("recovered", recovered, 0, "dot"),
    ]
    legend: list[Legend] = [("dot", "recovered", 0), ("small", "without recovery", GREY)]
    if bars:
        legend.append(("bar", "95% confidence", 0))
    if tolerance is not None:
        allowed = points[0].accuracy - tolerance
        series.insert(0, Series("allowed loss", ((0.0, allowed), (1.04, allowed)), 1, "level"))
        legend.append(("level", "allowed loss", 1))
    if best is not None:
        series.append(Series(label, ((min(best.macs, 1.0), best.accuracy),), 1, "ring"))
        legend.append(("ring", label, 1))
    shown = [accuracy for _, accuracy in (*recovered, *plain, *bars)]
    axis = _near(points, tolerance, metric) if near and tolerance is not None else _value_axis(shown, metric)
    return Chart(
        f"{metric.title} against MACs",
        tuple(series),
        Axis("MACs left", 0.0, 1.04, _whole_percent),
        replace(axis, label=f"validation {metric.label}"),
        tuple(legend),
    )


def _over_macs(points: Sequence[Point | SweepPoint], key: Literal["accuracy", "plain"]) -> Points:
    return tuple((min(point.macs, 1.0), getattr(point, key)) for point in points)


def _error_bars(points: Sequence[Point | SweepPoint]) -> Points:
    ends = [(min(point.macs, 1.0), end) for point in points for end in (point.lower, point.upper) if end is not None]
    return tuple(ends)


def _near(points: Sequence[Point | SweepPoint], tolerance: float, metric: Metric) -> Axis:
    """Return an axis around the line of the allowed loss: as far below it as accuracies go above it, or twice that.

    Its length is set by the tolerance and by the error bars of the points that are not below the line for certain.
    """
    start, allowed = points[0].accuracy, points[0].accuracy - tolerance
    ends = [(point.lower, point.upper) for point in points[1:] if point.lower is not None and point.upper is not None]
    open_ends = [(low, high) for low, high in ends if high >= allowed]
    high = max([start, *(high for _, high in open_ends)])
    low = min([allowed - tolerance, *(low for low, _ in open_ends), *([high - 0.02] if metric.share else [])])
    margin = 0.08 * (high - low) or 1.0
    limit = 1.005 if metric.share and start <= 1 else math.inf
    write = metric.text if not metric.share else _whole_percent if high - low > 0.08 else _percent
    return Axis(metric.label, low - margin, min(high + margin, limit), write)


# -- sensitivity -----------------------------------------------------------------------------------------------------

_LOSSES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Losses between the shades of a heat map: of a share; of another metric, as a share of its value before the cuts."""


def sensitivity_map(
    groups: Sequence[tuple[str, Mapping[float, float]]],
    shares: Sequence[float],
    start: float,
    metric: Metric = METRICS["top1"],
) -> HeatMap:
    """Accuracy after each group of layers is cut alone, by share of its channels removed; coloured by the loss.

    Args:
        groups: (name, accuracy by share) of each group.
        shares: All shares.
        start: Accuracy before the cuts.
        metric: The main value of the task, if it is not accuracy.
    """
    unit = 1.0 if metric.share else abs(start) or 1.0
    bounds = [f"{100 * loss:g}" for loss in _LOSSES]
    between = [f"{low} to {high}%" for low, high in pairwise(bounds)]
    labels = [f"below {bounds[0]}%", *between, f"{bounds[-1]}% or more"]
    return HeatMap(
        f"{metric.title} after one group of layers is cut ({metric.text(start, 1)} before)",
        tuple(
            (name, tuple(_cell(name, found.get(share), start, unit, metric) for share in shares))
            for name, found in groups
        ),
        tuple(f"{share:.0%}" for share in shares),
        Axis("channels removed", 0.0, 1.0, str, ticked=False),
        Axis(f"loss of {metric.label}:", 0.0, 1.0, str, ticked=False),
        tuple(("box", label, colour) for label, colour in zip(labels, SHADES, strict=True)),
    )


def _cell(name: str, value: float | None, start: float, unit: float, metric: Metric) -> Cell | None:
    if value is None:
        return None
    shade = SHADES[sum(start - value >= loss * unit for loss in _LOSSES)]
    shown = f"{100 * value:.1f}" if metric.share else metric.text(value)
    return Cell(shown, shade, f"{name}: {metric.text(value)}")


# -- layers ----------------------------------------------------------------------------------------------------------


def layer_widths(run: RunData) -> Widths | None:
    """Channels of every layer, before and after pruning."""
    layers = tuple((layer.name, layer.before, layer.after) for layer in run.layers)
    return Widths("Channels of every layer, before and after", layers) if layers else None
