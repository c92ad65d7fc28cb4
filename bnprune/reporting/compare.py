"""Several runs side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from bnprune.reporting import charts, sections
from bnprune.reporting.number_format import MISSING, count, factor, milliseconds, percent, points
from bnprune.reporting.run_data import RunData, Stage

_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("Test accuracy", "accuracy", percent),
    ("MACs", "macs", count),
    ("Parameters", "params", count),
    ("Latency", "latency_ms", milliseconds),
)


def comparison(stories: Sequence[RunData]) -> str:
    """Return the part of the page about all runs together."""
    names = " · ".join(escape(run_data.name) for run_data in stories)
    cards = [
        sections.card("Test accuracy against MACs", charts.accuracy_of_runs(stories)),
        sections.card("Validation accuracy in the last training", charts.last_trainings(stories)),
    ]
    return (
        f'<header><p class="eyebrow">bnprune, {len(stories)} runs</p><h1>{names}</h1></header>'
        + sections.section("Side by side", _table(stories), "Each run's last network; below it, what it was cut from.")
        + sections.section("Accuracy", sections.grid(cards))
        + sections.section("What differs in their recipes", _differences(stories))
    )


def _table(stories: Sequence[RunData]) -> str:
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title, _, _ in _COLUMNS)
    rows = "".join(_row(number, run_data) for number, run_data in enumerate(stories))
    return (
        f'<div class="scroll card"><table class="stages"><thead><tr><th scope="col">Run</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(number: int, run_data: RunData) -> str:
    final, reference = run_data.final, run_data.reference
    head = f'<th scope="row"><i class="dot c{number % 6}"></i>{escape(run_data.name)}'
    if final is None:
        return f'<tr>{head}</th><td colspan="{len(_COLUMNS)}">no stage is finished yet</td></tr>'
    cells = "".join(_cell(run_data, final, reference, title, key, write) for title, key, write in _COLUMNS)
    return f"<tr>{head}<small>{escape(final.title)}</small></th>{cells}</tr>"


def _cell(
    run_data: RunData, final: Stage, reference: Stage | None, title: str, key: str, write: Callable[[float], str]
) -> str:
    value, was = getattr(final, key), getattr(reference, key, None)
    change = ""
    if value is not None and was is not None and reference is not final:
        said = points(value - was) if key == "accuracy" else factor(was, value)
        change = f"<small>{escape(said)} from {escape(write(was))}</small>"
    datum = sections.datum(sections.at(run_data, final, key), value, write)
    return f'<td data-label="{escape(title)}">{datum}{change}</td>'


def _differences(stories: Sequence[RunData]) -> str:
    """The keys in which the recipes differ, with each run's value."""
    flat = [_flat(run_data.config) for run_data in stories]
    keys = dict.fromkeys(key for config in flat for key in config)
    differing = [key for key in keys if len({config.get(key, MISSING) for config in flat}) > 1]
    if not differing:
        return '<p class="note">Nothing: the recipes are the same.</p>'
    head = "".join(f'<th scope="col">{escape(run_data.name)}</th>' for run_data in stories)
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(key)}</code></th>'
        + "".join(
            f'<td data-label="{escape(run_data.name)}">{escape(config.get(key, MISSING))}</td>'
            for run_data, config in zip(stories, flat, strict=True)
        )
        + "</tr>"
        for key in differing
    )
    return (
        f'<div class="scroll card"><table class="stages"><thead><tr><th scope="col">Key</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, bool) else str(value)
    return found
