"""Which figures a report has: from stories to data. None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from bnprune.reporting.figures import Axis, Chart, Histogram, Mark, Series, Widths
from bnprune.reporting.number_format import percent
from bnprune.reporting.run_data import Curve, Gammas, RunData, Stage
from bnprune.runs.stages import kind_of

_BINS = 40
_HIGHEST = 1e9
"""Of a loss that is drawn."""
_COLOURS = {"finetune": 0, "train": 1, "prune": 2, "baseline": 3}
_OTHER, _GREY = 4, -1


def colour_of(stage: str) -> int:
    """Return the colour of a stage, the same in every figure."""
    return _COLOURS.get(kind_of(stage), _OTHER)


# -- accuracy against cost -------------------------------------------------------------------------------------------


def accuracy_against_macs(run_data: RunData) -> Chart | None:
    """Test accuracy of every stage over its MACs, and validation accuracy of cuts that were tried."""
    stages = [stage for stage in run_data.stages if stage.accuracy is not None]
    if not stages:
        return None
    most = max(stage.macs for stage in stages)
    way = [stage for stage in stages if kind_of(stage.name) in ("train", "prune", "finetune")]
    tried = tuple((point.macs, point.accuracy) for cut in run_data.cuts for point in cut.sweep)
    marks = [_marked(stage, most) for stage in stages]
    if tried:
        marks.insert(0, Series("cuts that were tried (validation)", tried, _GREY, "small"))
    values = [accuracy for series in marks for _, accuracy in series.points]
    return Chart(
        "Accuracy against MACs",
        (Series("from stage to stage", tuple(_place(stage, most) for stage in way), _GREY, "dashes"), *marks),
        Axis("MACs left", 0.0, 1.04, _whole_percent),
        _accuracy_axis(values),
        tuple((series.mark, series.label, series.colour) for series in marks),
    )


def accuracy_of_runs(stories: Sequence[RunData]) -> Chart | None:
    """The same of several runs: one colour each, a ring for the network before the cut."""
    most = max((stage.macs for run_data in stories for stage in run_data.stages), default=0)
    series: list[Series] = []
    for number, run_data in enumerate(stories):
        pair = [
            stage for stage in (run_data.reference, run_data.final) if stage is not None and stage.accuracy is not None
        ]
        series.append(Series(run_data.name, tuple(_place(stage, most) for stage in pair), number, "dashes"))
        for stage in dict.fromkeys(pair):
            mark: Mark = "ring" if stage is run_data.reference else "dot"
            said = f"{run_data.name}, {stage.title}: {percent(stage.accuracy or 0)}"
            series.append(Series(said, (_place(stage, most),), number, mark))
    values = [accuracy for one in series for _, accuracy in one.points]
    if not values:
        return None
    runs: list[tuple[Mark, str, int]] = [("dot", run_data.name, number) for number, run_data in enumerate(stories)]
    return Chart(
        "Accuracy against MACs",
        tuple(series),
        Axis("MACs (100%: the largest network)", 0.0, 1.04, _whole_percent),
        _accuracy_axis(values),
        (*runs, ("ring", "before the cut", _GREY)),
    )


def _place(stage: Stage, most: int) -> tuple[float, float]:
    return stage.macs / max(most, 1), stage.accuracy or 0.0


def _marked(stage: Stage, most: int) -> Series:
    said = f"{stage.title}: {percent(stage.accuracy or 0)} at {percent(stage.macs / max(most, 1), 1)} of the MACs"
    mark: Mark = "ring" if kind_of(stage.name) in ("baseline", "prune") else "dot"
    return Series(stage.title, (_place(stage, most),), colour_of(stage.name), mark, (said,))


def _whole_percent(value: float) -> str:
    return f"{value:.0%}"


def _accuracy_axis(values: Sequence[float]) -> Axis:
    """At least four points from bottom to top: noise must not look like a cliff."""
    low, high = min(values), max(values)
    margin = max(0.12 * (high - low), (0.04 - (high - low)) / 2, 0.005)
    top = min(high + margin, 1.005)
    return Axis("accuracy", max(min(low - margin, top - 0.04), 0.0), top, _whole_percent)


# -- scale factors ---------------------------------------------------------------------------------------------------


def gamma_histograms(run_data: RunData) -> list[Histogram]:
    """The scale factors of each network they are known of, all on the same axes."""
    shown = [gammas for gammas in run_data.gammas if not constant(gammas)]
    if not shown:
        return []
    high = max(float(gammas.values.max()) for gammas in shown)
    counted = [_counts(gammas, high) for gammas in shown]
    most = max(a + b for kept, gone in counted for a, b in zip(kept, gone, strict=True))
    x = Axis("|γ|", 0.0, high * 1.02, lambda value: f"{value:g}")
    y = Axis("channels", 0.0, most * 1.1, lambda value: f"{value:.0f}", root=True)
    edges = tuple(high * position / _BINS for position in range(_BINS + 1))
    section = run_data.config.get("prune")
    by_gamma = isinstance(section, dict) and section.get("criterion", "gamma") == "gamma"
    return [
        Histogram(f"|γ| {gammas.title}", edges, kept, gone, x, y, gammas.threshold if by_gamma else None)
        for gammas, (kept, gone) in zip(shown, counted, strict=True)
    ]


def constant(gammas: Gammas) -> bool:
    """Tell whether all scale factors are the same: nothing to draw, one number to say."""
    return bool((gammas.values == gammas.values[0]).all())


def _counts(gammas: Gammas, high: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    removed = torch.zeros_like(gammas.values, dtype=torch.bool) if gammas.removed is None else gammas.removed
    kept, gone = (torch.histc(gammas.values[mask], _BINS, 0.0, high).int().tolist() for mask in (~removed, removed))
    return tuple(kept), tuple(gone)


_QUANTILES: tuple[tuple[str, Mark, int], ...] = (
    ("minimum", "dashes", _GREY),
    ("first quartile", "line", _GREY),
    ("median", "line", 1),
    ("third quartile", "line", _GREY),
    ("maximum", "dashes", _GREY),
)


def gamma_over_time(run_data: RunData) -> Chart | None:
    """Quantiles of |γ| over the epochs of sparse training."""
    curve = next((curve for curve in run_data.curves if len(curve.quantiles) > 1), None)
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
        (("line", "median |γ|", 1), ("line", "quartiles", _GREY), ("dashes", "minimum, maximum", _GREY)),
    )


# -- training --------------------------------------------------------------------------------------------------------


def accuracy_curves(run_data: RunData) -> Chart | None:
    """Validation accuracy over the epochs of every training."""
    return _curves(run_data, "Validation accuracy", lambda curve: curve.validation_top1, _whole_percent, limit=1.0)


def loss_curves(run_data: RunData) -> Chart | None:
    """Training loss over the epochs of every training."""
    return _curves(
        run_data, "Training loss", lambda curve: curve.train_loss, lambda value: f"{value:g}", limit=_HIGHEST
    )


def last_trainings(stories: Sequence[RunData]) -> Chart | None:
    """Validation accuracy over the last training of several runs."""
    lasts = [(run_data.name, run_data.curves[-1], n) for n, run_data in enumerate(stories) if run_data.curves]
    lines = [_line(name, number, curve, curve.validation_top1) for name, curve, number in lasts]
    return _trained("Validation accuracy", lines, [curve for _, curve, _ in lasts], _whole_percent, 1.0)


def _curves(
    run_data: RunData,
    title: str,
    values_of: Callable[[Curve], tuple[float | None, ...]],
    write: Callable[[float], str],
    limit: float,
) -> Chart | None:
    lines = [_line(curve.title, colour_of(curve.stage), curve, values_of(curve)) for curve in run_data.curves]
    return _trained(title, lines, run_data.curves, write, limit)


def _line(label: str, colour: int, curve: Curve, values: Sequence[float | None]) -> Series:
    points = tuple((e, min(v, _HIGHEST)) for e, v in zip(curve.epochs, values, strict=True) if v is not None)
    return Series(label, points, colour, "line" if len(points) > 1 else "dot")


def _trained(
    title: str, lines: Sequence[Series], curves: Sequence[Curve], write: Callable[[float], str], limit: float
) -> Chart | None:
    """Values over epochs; a single epoch is no curve."""
    series = tuple(line for line in lines if line.points)
    values = [value for one in series for _, value in one.points]
    if not values or max(len(one.points) for one in series) < 2:
        return None
    high = min(max(values) + 0.03 * (max(values) - min(values) or 1.0), limit * 1.005)
    axis = Axis(title, 0.0 if limit > 1 else max(min(values) - 0.02, 0.0), high, write)
    legend: tuple[tuple[Mark, str, int], ...] = tuple((one.mark, one.label, one.colour) for one in series)
    return Chart(title, series, _epoch_axis(curves), axis, legend)


def _epoch_axis(curves: Sequence[Curve]) -> Axis:
    last = max((max(curve.epochs) for curve in curves if curve.epochs), default=1)
    return Axis("epoch", 1.0, max(float(last), 2.0), lambda value: f"{value:g}", whole=True)


# -- layers ----------------------------------------------------------------------------------------------------------


def layer_widths(run_data: RunData) -> Widths | None:
    """The shape of the network before and after."""
    layers = tuple((layer.name, layer.before, layer.after) for layer in run_data.layers)
    return Widths("Channels of every layer, before and after", layers) if layers else None
