"""Sections of the page about one run: from a story to markup. Every text that comes from a run is escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from bnprune.report import charts
from bnprune.report.figures import Figure
from bnprune.report.numbers import MISSING, count, duration, factor, megabytes, milliseconds, percent, points
from bnprune.report.story import Cutting, Stage, Story
from bnprune.report.svg import draw

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
    return f'<figure class="card"><figcaption>{escape(title)}</figcaption>{draw(figure)}{said}</figure>'


def at(story: Story, stage: Stage, key: str) -> str:
    """Return where a figure of a stage stands."""
    return f"{story.name}/stages/{stage.name}/{key}"


# -- at a glance -----------------------------------------------------------------------------------------------------


def headline(story: Story) -> str:
    """Say in a sentence or two what came of the run."""
    final, reference = story.final, story.reference
    if final is None:
        return "No stage of this run is finished yet."
    if not story.cuts or reference is None or final.accuracy is None or reference.accuracy is None:
        return (
            f"{escape(final.title.capitalize())}: nothing to compare with yet."
            if story.cuts
            else "Nothing was cut yet."
        )
    gone = f"{1 - final.macs / reference.macs:.0%} of the MACs and {1 - final.params / reference.params:.0%} of the parameters"
    change = final.accuracy - reference.accuracy
    return (
        f"{gone} are gone. The {escape(final.title)} network classifies <b>{percent(final.accuracy)}</b> of the test "
        f"images correctly, the {escape(reference.title)} one {percent(reference.accuracy)} ({points(change)})."
    )


def tiles(story: Story) -> str:
    """The slim network in five figures, each beside what it was."""
    final, reference = story.final, story.reference
    if final is None:
        return ""
    before = reference if reference is not final else None
    shown = [
        ("Test accuracy", "accuracy", final.accuracy, percent),
        ("MACs", "macs", final.macs, count),
        ("Parameters", "params", final.params, count),
        ("Latency, batch 1", "latency_ms", final.latency_ms, milliseconds),
        ("File", "file_bytes", final.file_bytes, megabytes),
    ]
    return '<div class="tiles">' + "".join(_tile(story, final, before, *tile) for tile in shown) + "</div>"


def _tile(
    story: Story,
    final: Stage,
    before: Stage | None,
    name: str,
    key: str,
    value: float | None,
    write: Callable[[float], str],
) -> str:
    was = getattr(before, key) if before is not None else None
    compared = ""
    if value is not None and was is not None:
        change = points(value - was) if key == "accuracy" else factor(was, value)
        compared = f"<small><b>{escape(change)}</b> from {escape(write(was))}</small>"
    return f'<div class="tile"><span>{escape(name)}</span><strong>{datum(at(story, final, key), value, write)}</strong>{compared}</div>'


def proof(story: Story) -> str:
    """What was proven."""
    errors = [cut.error for cut in story.cuts if cut.error is not None]
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


def stage_table(story: Story) -> str:
    """Every stage's figures, with bars for what should shrink."""
    if not story.stages:
        return ""
    largest = {key: max((_value(stage, key) or 0 for stage in story.stages), default=0) for _, key, _ in _COLUMNS}
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title, _, _ in _COLUMNS)
    rows = "".join(
        f'<tr><th scope="row"><i class="dot c{charts.colour_of(stage.name)}"></i>{escape(stage.title)}</th>'
        + "".join(_cell(story, stage, key, write, largest[key]) for _, key, write in _COLUMNS)
        + "</tr>"
        for stage in story.stages
    )
    skipped = "".join(f'<p class="note">{escape(s.title)}: {escape(s.skipped)}</p>' for s in story.stages if s.skipped)
    return (
        f'<div class="scroll card"><table class="stages"><thead><tr><th scope="col">Network</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{skipped}"
    )


def _value(stage: Stage, key: str) -> float | None:
    value: float | None = getattr(stage, "validation" if key == "validation_accuracy" else key)
    return value


def _cell(story: Story, stage: Stage, key: str, write: Callable[[float], str], largest: float) -> str:
    value = _value(stage, key)
    bar = ""
    if key in _BARS and value is not None and largest:
        bar = f'<span class="bar"><i style="width:{100 * value / largest:.1f}%"></i></span>'
    return f"<td>{datum(at(story, stage, key), value, write)}{bar}</td>"


# -- figures ---------------------------------------------------------------------------------------------------------


def training(story: Story) -> str:
    """Accuracy against MACs, and the curves."""
    cards = [
        card(
            "Accuracy against MACs",
            charts.accuracy_against_macs(story),
            "Test images, each used once, at the end of a stage.",
        ),
        card("Validation accuracy", charts.accuracy_curves(story)),
        card("Training loss", charts.loss_curves(story)),
        card("Scale factors while training", charts.gamma_over_time(story)),
    ]
    return _grid(cards)


def gammas(story: Story) -> str:
    """Histograms of |γ|."""
    figures = charts.gamma_histograms(story)
    cards = [card(f"|γ| {figure.title}", figure) for figure in figures]
    flat = [gammas for gammas in story.gammas if charts.constant(gammas)]
    said = "".join(
        f'<p class="note">{escape(g.title.capitalize())}, every |γ| was {float(g.values[0]):g}.</p>' for g in flat
    )
    keys = '<ul class="legend"><li><i class="box stay"></i>kept</li><li><i class="box gone"></i>removed</li></ul>'
    return (keys + _grid(cards) if cards else "") + said


def _grid(cards: Sequence[str]) -> str:
    body = "".join(cards)
    return f'<div class="grid">{body}</div>' if body else ""


# -- layers ----------------------------------------------------------------------------------------------------------


def layers(story: Story) -> str:
    """How many channels every layer kept: the network's shape, then a list."""
    figure = charts.layer_widths(story)
    if figure is None:
        return ""
    rows = "".join(
        f'<li><span class="name">{escape(name)}</span><span class="bar"><i style="width:{100 * after / max(before, 1):.1f}%">'
        f'</i></span><span class="num">{before} → <b>{after}</b></span></li>'
        for name, before, after in figure.layers
    )
    opened = " open" if len(figure.layers) <= _FEW_LAYERS else ""
    keys = '<ul class="legend"><li><i class="box stay"></i>kept</li><li><i class="box whole"></i>removed</li></ul>'
    return (
        f'<figure class="card">{keys}{draw(figure)}<p class="note ends"><span>input</span><span>output</span></p>'
        f'<details{opened}><summary>Layer by layer ({len(figure.layers)})</summary><ul class="layers">{rows}</ul></details>'
        "</figure>"
    )


# -- the cut ---------------------------------------------------------------------------------------------------------

_ASKED: dict[str, Callable[[float], str]] = {
    "ratio": lambda value: f"{value:.1%} of the prunable channels removed",
    "macs": lambda value: f"{value:.1%} of the MACs kept",
    "params": lambda value: f"{value:.1%} of the parameters kept",
    "latency_ms": lambda value: f"{value:.3g} ms per forward pass",
}


def cuts(story: Story) -> str:
    """What was asked of each cut, what came of it, and what was tried afterwards."""
    return _grid([_cut(stage, stage.cutting) for stage in story.stages if stage.cutting is not None])


def _cut(stage: Stage, cut: Cutting) -> str:
    write = _ASKED.get(cut.kind, lambda value: f"{cut.kind} {value:g}")
    facts = [
        ("asked for", MISSING if cut.requested is None else write(cut.requested)),
        ("realised", MISSING if cut.realised is None else write(cut.realised)),
        ("prunable channels", f"{cut.channels[0]} → {cut.channels[1]}"),
    ]
    body = definitions(facts)
    if cut.tried:
        best = max(cut.tried.values()) or 1.0
        body += "<h4>Validation accuracy right after the cut</h4><ul class='layers one'>" + "".join(
            f'<li{" class=chosen" if name == cut.chosen else ""}><span class="name">{escape(name)}</span>'
            f'<span class="bar"><i style="width:{100 * top1 / best:.1f}%"></i></span>'
            f'<span class="num">{percent(top1)}</span></li>'
            for name, top1 in cut.tried.items()
        )
        body += f'</ul><p class="note">Kept: {escape(cut.chosen)}.</p>'
    return f'<div class="card"><h3>{escape(stage.title)}</h3>{body}</div>'


def refusals(story: Story) -> str:
    """Why channels had to stay, one entry per reason."""
    sites: dict[tuple[str, str], list[str]] = {}
    for cut in story.cuts:
        for refusal in cut.refusals:
            known = sites.setdefault((refusal.reason, refusal.fix), [])
            if refusal.site not in known:
                known.append(refusal.site)
    entries = "".join(
        f"<li><p>{escape(reason)}</p>{_sites(names)}{f'<p class=fix>{escape(fix)}</p>' if fix else ''}</li>"
        for (reason, fix), names in sites.items()
    )
    notes = dict.fromkeys(note for cut in story.cuts for note in cut.notes)
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


def provenance(story: Story) -> str:
    """Configuration and environment."""
    environment = story.environment
    facts = [
        ("command", "bnprune " + " ".join(map(str, environment.get("argv", ())))),
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
    return (
        f'<div class="grid"><details class="card"><summary>Configuration</summary><pre>{escape(story.config_text)}</pre>'
        f'</details><details class="card"><summary>Environment</summary>{told}</details></div>'
    )


def _versions(environment: Any) -> list[tuple[str, Any]]:
    versions = environment.get("versions")
    return list(versions.items()) if isinstance(versions, dict) else []
