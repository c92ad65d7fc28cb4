"""Several runs side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from bnprune.reporting import charts, sections
from bnprune.reporting.number_format import MISSING, count, factor, milliseconds
from bnprune.reporting.run_data import RunData, Stage

_COLUMNS: tuple[sections.Column, ...] = (
    ("MACs", "macs", count),
    ("Parameters", "params", count),
    ("Latency", "latency_ms", milliseconds),
)


def comparison(runs: Sequence[RunData]) -> str:
    """Return the part of the page about all runs together."""
    names, metric = " · ".join(escape(run.name) for run in runs), runs[0].metric
    cards = [
        sections.card(f"Test {metric.label} against MACs", charts.accuracy_of_runs(runs)),
        sections.card(f"Validation {metric.label} in the last training", charts.last_trainings(runs)),
    ]
    return (
        f'<header><p class="page-kind">bnprune, {len(runs)} runs</p><h1>{names}</h1></header>'
        f'<p class="headline">{headline(runs)}</p>'
        + sections.section(
            "Side by side",
            _table(runs),
            "The last network of each run; below each number, that of the network it was pruned from.",
        )
        + sections.section(metric.title, sections.grid(cards))
        + sections.section("What differs in their recipes", _differences(runs))
    )


def headline(runs: Sequence[RunData]) -> str:
    """Say which run ends with the most accurate network, and which with the fewest MACs."""
    metric = runs[0].metric
    alike = [run for run in runs if run.metric == metric]
    ends = [(run, run.final) for run in alike if run.final is not None and run.final.figures.accuracy is not None]
    if len(ends) < 2:
        return f"Fewer than two of these runs have a network whose {escape(metric.label)} on test images is known."
    best = max(ends, key=lambda end: (end[1].figures.accuracy or 0.0, -end[1].figures.macs))
    least = min(ends, key=lambda end: (end[1].figures.macs, -(end[1].figures.accuracy or 0.0)))
    if best == least:
        return f"{_ended(*best)}: the highest test {escape(metric.label)} and the fewest MACs of these runs."
    macs = best[1].figures.macs / max(least[1].figures.macs, 1)
    lost = metric.difference((least[1].figures.accuracy or 0.0) - (best[1].figures.accuracy or 0.0))
    return (
        f"{_ended(*best)}: the highest test {escape(metric.label)}. {_ended(*least)}: the fewest MACs, {macs:.1f} "
        f"times fewer, at {lost}."
    )


def _ended(run: RunData, final: Stage) -> str:
    value, macs = escape(run.metric.text(final.figures.accuracy)), count(final.figures.macs)
    return f"<b>{escape(run.name)}</b> ends at {value} with {macs} MACs"


def _table(runs: Sequence[RunData]) -> str:
    metric = runs[0].metric
    columns = ((f"Test {metric.label}", "accuracy", metric.text), *_COLUMNS)
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title, _, _ in columns)
    rows = "".join(_row(number, run, columns) for number, run in enumerate(runs))
    return (
        f'<div class="scroll card"><table class="stages"><thead><tr><th scope="col">Run</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(number: int, run: RunData, columns: Sequence[sections.Column]) -> str:
    final, reference = run.final, run.reference
    head = f'<th scope="row"><i class="dot c{number % 6}"></i>{escape(run.name)}'
    if final is None:
        return f'<tr>{head}</th><td colspan="{len(columns)}">no stage is finished yet</td></tr>'
    cells = "".join(_cell(run, final, reference, title, key, write) for title, key, write in columns)
    return f"<tr>{head}<small>{escape(final.title)}</small></th>{cells}</tr>"


def _cell(
    run: RunData, final: Stage, reference: Stage | None, title: str, key: str, write: Callable[[float], str]
) -> str:
    value, was = getattr(final.figures, key), getattr(reference.figures, key) if reference else None
    change = ""
    if value is not None and was is not None and reference is not final:
        difference = run.metric.difference(value - was) if key == "accuracy" else factor(was, value)
        change = f"<small>{escape(difference)} from {escape(write(was))}</small>"
    number = sections.number(sections.at(run, final, key), value, write)
    return f'<td data-label="{escape(title)}">{number}{change}</td>'


def _differences(runs: Sequence[RunData]) -> str:
    """Return the keys in which the recipes differ, with the value of each run."""
    flat = [_flat(run.config) for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config)
    differing = [key for key in keys if len({config.get(key, MISSING) for config in flat}) > 1]
    if not differing:
        return '<p class="note">The recipes are the same.</p>'
    head = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(key)}</code></th>'
        + "".join(
            f'<td data-label="{escape(run.name)}">{escape(config.get(key, MISSING))}</td>'
            for run, config in zip(runs, flat, strict=True)
        )
        + "</tr>"
        for key in differing
    )
    return (
        f'<div class="scroll card"><table class="stages"><thead><tr><th scope="col">Key</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, bool) else str(value)
    return flat
