"""Sections of the page about one run: from a story to markup. Every text that comes from a run is escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from bnprune.reporting import charts
from bnprune.reporting.figures import Figure
from bnprune.reporting.number_format import MISSING, count, duration, factor, megabytes, milliseconds, percent, points
from bnprune.reporting.run_data import Cutting, RunData, Stage
from bnprune.reporting.svg import inline

_FEW_LAYERS = 24


def datum(at: str, value: float | None, write: Callable[[float], str]) -> str:
    """Return a figure with its exact value and where it stands in result.json: RUN/stages/STAGE/KEY."""
    if value is None:
        return f'<span class="missing">{MISSING}</span>'
    return f'<data data-at="{escape(at)}" value="{escape(json.dumps(value))}">{escape(write(value))}</data>'


def section(title: str, body: str, lead: str = "", identity: str = "") -> str:
    """Return a titled section; nothing where the body is empty."""
    if not body:
        return ""
    led = f'<p class="lead">{lead}</p>' if lead else ""
    named = f' id="{escape(identity)}"' if identity else ""
    return f"<section{named}><h2>{escape(title)}</h2>{led}{body}</section>"


def card(title: str, figure: Figure | None, note: str = "") -> str:
    """Return a figure in a box; nothing where there is none."""
    if figure is None:
        return ""
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<figure class="card"><figcaption>{escape(title)}</figcaption>{inline(figure)}{said}</figure>'


def at(run_data: RunData, stage: Stage, key: str) -> str:
    """Return where a figure of a stage stands."""
    return f"{run_data.name}/stages/{stage.name}/{key}"


# -- at a glance -----------------------------------------------------------------------------------------------------


def headline(run_data: RunData) -> str:
    """Say in a sentence or two what came of the run."""
    final, reference = run_data.final, run_data.reference
    if final is None:
        return "No stage of this run is finished yet."
    if not run_data.cuts:
        return "Nothing was cut yet."
    if reference is None or final.accuracy is None or reference.accuracy is None:
        return f"There is nothing to compare the {escape(final.title)} network with."
    macs, params = (1 - getattr(final, key) / max(getattr(reference, key), 1) for key in ("macs", "params"))
    change = final.accuracy - reference.accuracy
    return (
        f"{macs:.0%} of the MACs and {params:.0%} of the parameters are gone. The {escape(final.title)} network "
        f"classifies <b>{percent(final.accuracy)}</b> of the test images correctly, the {escape(reference.title)} one "
        f"{percent(reference.accuracy)} ({points(change)})."
    )


def tiles(run_data: RunData) -> str:
    """The slim network in five figures, each beside what it was."""
    return (
        ""
        if run_data.final is None
        else f'<div class="tiles">{"".join(_tile(run_data, *tile) for tile in _TILES)}</div>'
    )


_TILES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("Test accuracy", "accuracy", percent),
    ("MACs", "macs", count),
    ("Parameters", "params", count),
    ("Latency, batch 1", "latency_ms", milliseconds),
    ("File", "file_bytes", megabytes),
)


def _tile(run_data: RunData, name: str, key: str, write: Callable[[float], str]) -> str:
    final, reference = run_data.final, run_data.reference
    assert final is not None
    value, was = getattr(final, key), getattr(reference, key, None)
    compared = ""
    if value is not None and was is not None and reference is not final:
        change = points(value - was) if key == "accuracy" else factor(was, value)
        compared = f"<small><b>{escape(change)}</b> from {escape(write(was))}</small>"
    figure = datum(at(run_data, final, key), value, write)
    return f'<div class="tile"><span>{escape(name)}</span><strong>{figure}</strong>{compared}</div>'


def proof(run_data: RunData) -> str:
    """What was proven."""
    errors = [cut.error for cut in run_data.cuts if cut.error is not None]
    if not errors:
        return ""
    return (
        '<p class="proof"><span>✓</span> The cut is proven: in float64 the slim network equals the original with the '
        f"removed channels set to zero, to a relative error of {max(errors):.1e}.</p>"
    )


# -- stages ----------------------------------------------------------------------------------------------------------

_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("Test accuracy", "accuracy", percent),
    ("Validation", "validation_accuracy", percent),
    ("MACs", "macs", count),
    ("Parameters", "params", count),
    ("BN channels", "channels", lambda value: f"{value:.0f}"),
    ("Latency", "latency_ms", milliseconds),
    ("File", "file_bytes", megabytes),
    ("Took", "seconds", duration),
)
_BARS = {"macs", "params", "channels", "latency_ms", "file_bytes"}


def stage_table(run_data: RunData) -> str:
    """Every stage's figures, with bars for what should shrink."""
    if not run_data.stages:
        return ""
    largest = {key: max((_value(stage, key) or 0 for stage in run_data.stages), default=0) for _, key, _ in _COLUMNS}
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title, _, _ in _COLUMNS)
    rows = "".join(
        f'<tr><th scope="row"><i class="dot c{charts.colour_of(stage.name)}"></i>{escape(stage.title)}</th>'
        + "".join(_cell(run_data, stage, title, key, write, largest[key]) for title, key, write in _COLUMNS)
        + "</tr>"
        for stage in run_data.stages
    )
    skipped = "".join(
        f'<p class="note">{escape(s.title)}: {escape(s.skipped)}</p>' for s in run_data.stages if s.skipped
    )
    return (
        f'<div class="scroll card"><table class="stages"><thead><tr><th scope="col">Network</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{skipped}"
    )


def _value(stage: Stage, key: str) -> float | None:
    value: float | None = getattr(stage, "validation" if key == "validation_accuracy" else key)
    return value


def _cell(run_data: RunData, stage: Stage, title: str, key: str, write: Callable[[float], str], largest: float) -> str:
    value = _value(stage, key)
    bar = ""
    if key in _BARS and value is not None and largest:
        bar = _bar(value, largest)
    return f'<td data-label="{escape(title)}">{datum(at(run_data, stage, key), value, write)}{bar}</td>'


# -- figures ---------------------------------------------------------------------------------------------------------


def training(run_data: RunData) -> str:
    """Accuracy against MACs, and the curves."""
    cards = [
        card(
            "Accuracy against MACs",
            charts.accuracy_against_macs(run_data),
            "Test images, each used once, at the end of a stage.",
        ),
        card("Validation accuracy", charts.accuracy_curves(run_data)),
        card("Training loss", charts.loss_curves(run_data)),
        card("Scale factors while training", charts.gamma_over_time(run_data)),
    ]
    return grid(cards)


def gammas(run_data: RunData) -> str:
    """Histograms of |γ|."""
    figures = charts.gamma_histograms(run_data)
    cards = [card(figure.title, figure) for figure in figures]
    flat = [gammas for gammas in run_data.gammas if charts.constant(gammas)]
    said = "".join(
        f'<p class="note">{escape(g.title.capitalize())}, every |γ| was {float(g.values[0]):g}.</p>' for g in flat
    )
    keys = '<ul class="legend"><li><i class="box stay"></i>kept</li><li><i class="box gone"></i>removed</li></ul>'
    return (keys + grid(cards) if cards else "") + said


def grid(cards: Sequence[str]) -> str:
    """Return cards side by side where there is room."""
    body = "".join(cards)
    return f'<div class="grid">{body}</div>' if body else ""


# -- layers ----------------------------------------------------------------------------------------------------------


def layers(run_data: RunData) -> str:
    """How many channels every layer kept: the network's shape, then a list."""
    figure = charts.layer_widths(run_data)
    if figure is None:
        return ""
    rows = "".join(
        f'<li><span class="name">{escape(name)}</span>{_bar(after, before)}'
        f'<span class="num">{before} → <b>{after}</b></span></li>'
        for name, before, after in figure.layers
    )
    opened = " open" if len(figure.layers) <= _FEW_LAYERS else ""
    keys = '<ul class="legend"><li><i class="box stay"></i>kept</li><li><i class="box whole"></i>removed</li></ul>'
    ends = '<p class="note ends"><span>input</span><span>output</span></p>'
    named = f"<summary>Layer by layer ({len(figure.layers)})</summary>"
    listed = f'<details{opened}>{named}<ul class="layers">{rows}</ul></details>'
    return f'<figure class="card">{keys}{inline(figure)}{ends}{listed}</figure>'


# -- the cut ---------------------------------------------------------------------------------------------------------

_ASKED: dict[str, Callable[[float], str]] = {
    "ratio": lambda value: f"{value:.1%} of the prunable channels removed",
    "macs": lambda value: f"{value:.1%} of the MACs kept",
    "params": lambda value: f"{value:.1%} of the parameters kept",
    "latency_ms": lambda value: f"{value:.3g} ms per forward pass",
}


def cuts(run_data: RunData) -> str:
    """What was asked of each cut, what came of it, and what was tried afterwards."""
    return grid([_cut(stage, stage.cutting) for stage in run_data.stages if stage.cutting is not None])


def _cut(stage: Stage, cut: Cutting) -> str:
    write = _ASKED.get(cut.kind, lambda value: f"{cut.kind} {value:g}")
    facts = [
        ("asked for", MISSING if cut.requested is None else write(cut.requested)),
        ("realised", MISSING if cut.realised is None else write(cut.realised)),
        *((title, f"{write(before)} → {write(after)}") for title, (before, after), write in _changes(cut)),
    ]
    return f'<div class="card"><h3>{escape(stage.title.capitalize())}</h3>{definitions(facts)}</div>{_recovery(cut)}'


def _changes(cut: Cutting) -> list[tuple[str, tuple[int, int], Callable[[float], str]]]:
    return [
        ("prunable channels", cut.channels, lambda value: f"{value:.0f}"),
        ("parameters", cut.params, count),
        ("MACs", cut.macs, count),
    ]


def _recovery(cut: Cutting) -> str:
    if not cut.tried:
        return ""
    best = max(cut.tried.values()) or 1.0
    rows = "".join(
        f'<li{" class=chosen" if name == cut.chosen else ""}><span class="name">{escape(name)}</span>'
        f'{_bar(top1, best)}<span class="num">{percent(top1)}</span></li>'
        for name, top1 in cut.tried.items()
    )
    return (
        f'<div class="card"><h3>Validation accuracy right after it</h3><ul class="layers one">{rows}</ul>'
        f'<p class="note">Kept: {escape(cut.chosen)}.</p></div>'
    )


def _bar(part: float, whole: float) -> str:
    return f'<span class="bar"><i style="width:{100 * part / (whole or 1):.1f}%"></i></span>'


def refusals(run_data: RunData) -> str:
    """Why channels had to stay, one entry per reason."""
    sites: dict[tuple[str, str], list[str]] = {}
    for cut in run_data.cuts:
        for refusal in cut.refusals:
            known = sites.setdefault((refusal.reason, refusal.fix), [])
            if refusal.site not in known:
                known.append(refusal.site)
    entries = "".join(
        f"<li><p>{escape(reason)}</p>{_sites(names)}{f'<p class=fix>{escape(fix)}</p>' if fix else ''}</li>"
        for (reason, fix), names in sites.items()
    )
    notes = dict.fromkeys(note for cut in run_data.cuts for note in cut.notes)
    said = "".join(f"<li><p>{escape(note)}</p></li>" for note in notes)
    return f'<ul class="reasons card">{entries}{said}</ul>' if entries or said else ""


def _sites(names: Sequence[str]) -> str:
    shown = "".join(f"<code>{escape(name)}</code> " for name in names[:6])
    if len(names) <= 6:
        return f'<p class="sites">{shown}</p>'
    rest = "".join(f"<code>{escape(name)}</code> " for name in names[6:])
    return f'<div class="sites">{shown}<details><summary>and {len(names) - 6} more</summary>{rest}</details></div>'


# -- what it was made with -------------------------------------------------------------------------------------------


def definitions(facts: Sequence[tuple[str, str]]) -> str:
    """Return names and values."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts) + "</dl>"


def provenance(run_data: RunData) -> str:
    """Configuration and environment."""
    environment = run_data.environment
    facts = [
        ("command", "bnprune " + " ".join(map(str, environment.get("argv") or ()))),
        ("started", str(environment.get("time", MISSING))),
        ("processor", str(environment.get("processor", MISSING))),
        ("threads", str(environment.get("threads", MISSING))),
        ("accelerators", ", ".join(map(str, environment.get("accelerators") or ())) or "none"),
        ("system", str(environment.get("platform", MISSING))),
        ("python", str(environment.get("python", MISSING))),
        *((name, str(version)) for name, version in _versions(environment)),
        ("git", str(environment.get("git") or MISSING)),
    ]
    told = definitions(facts) if environment else '<p class="note">env.json is not there.</p>'
    recipe = f"<pre>{escape(run_data.config_text)}</pre>"
    return grid([_folded("Configuration", recipe), _folded("Environment", told)])


def _folded(title: str, body: str) -> str:
    return f'<details class="card"><summary>{title}</summary>{body}</details>'


def _versions(environment: Any) -> list[tuple[str, Any]]:
    versions = environment.get("versions")
    return list(versions.items()) if isinstance(versions, dict) else []
