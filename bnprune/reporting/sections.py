"""Sections of the page about one run: functions from its data to HTML. Every text that comes from a run is escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from bnprune.config.metrics import Metric
from bnprune.reporting import charts
from bnprune.reporting.figures import Figure
from bnprune.reporting.number_format import (
    MISSING,
    count,
    duration,
    factor,
    megabytes,
    milliseconds,
    percent_since,
    plural,
)
from bnprune.reporting.run_data import Gammas, RunData, Stage
from bnprune.reporting.svg import inline, legend
from bnprune.runs.results import Change, Pruned, RecoveryOutcome, TargetOutcome, TeacherComparison

_MANY_LAYERS = 80
"""Number of layers above which the list is folded."""
_MOST_CUT = 3
"""Layers that are named as those that lost most."""


def number(at: str, value: float | None, write: Callable[[float], str]) -> str:
    """Return a number with its exact value and its place in result.json: RUN/stages/STAGE/KEY."""
    if value is None:
        return f'<span class="missing">{MISSING}</span>'
    return f'<data data-at="{escape(at)}" value="{escape(json.dumps(value))}">{escape(write(value))}</data>'


def section(title: str, body: str, lead: str = "") -> str:
    """Return a section with a title; empty if the body is."""
    if not body:
        return ""
    introduction = f'<p class="lead">{lead}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{introduction}{body}</section>"


def card(title: str, figure: Figure | None, note: str = "") -> str:
    """Return a figure in a box; empty without a figure."""
    if figure is None:
        return ""
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<figure class="card"><figcaption>{escape(title)}</figcaption>{inline(figure)}{below}</figure>'


def at(run: RunData, stage: Stage, key: str) -> str:
    """Return the place of a number of a stage in result.json."""
    return f"{run.name}/{'before' if stage.before else 'stages'}/{stage.name}/{key}"


# -- at a glance ------------------------------------------------------------------------------------------------------


def headline(run: RunData) -> str:
    """Summarise the run in one or two sentences."""
    final, reference = run.final, run.reference
    if final is None:
        return "No stage of this run is finished yet."
    if not run.pruned:
        return "Nothing was pruned yet."
    if reference is None or final.figures.accuracy is None:
        return f"There is no network to compare the {escape(final.title)} one with."
    after, before = final.figures, reference.figures
    macs, params = (1 - getattr(after, key) / max(getattr(before, key), 1) for key in ("macs", "params"))
    removed = f"{macs:.0%} of the MACs and {params:.0%} of the parameters were removed."
    if reference.figures.accuracy is None:  # it is not known of a network before this run
        reference = run.pruned[-1]
        if reference is final or reference.figures.accuracy is None:
            return removed
    return (
        f"{removed} The test {escape(run.metric.label)} of the {escape(final.title)} network is "
        f"<b>{escape(run.metric.text(final.figures.accuracy))}</b>, that of the {escape(reference.title)} one "
        f"{escape(run.metric.text(reference.figures.accuracy))} "
        f"({escape(run.metric.difference(final.figures.accuracy - reference.figures.accuracy))})."
    )


def key_figures(run: RunData) -> str:
    """Return five numbers of the slim network, each with that of the reference."""
    if run.final is None:
        return ""
    figures = ((f"Test {run.metric.label}", "accuracy", run.metric.text), *_KEY_FIGURES)
    return f'<div class="key-figures">{"".join(_key_figure(run, *entry) for entry in figures)}</div>'


_KEY_FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("MACs", "macs", count),
    ("Parameters", "params", count),
    ("Latency, batch 1", "latency_ms", milliseconds),
    ("File", "file_bytes", megabytes),
)


def _key_figure(run: RunData, name: str, key: str, write: Callable[[float], str]) -> str:
    final, reference = run.final, run.reference
    assert final is not None
    value, was = getattr(final.figures, key), getattr(reference.figures, key) if reference else None
    compared = ""
    if value is not None and was is not None and reference is not final:
        change = run.metric.difference(value - was) if key == "accuracy" else factor(was, value)
        compared = f"<small><b>{escape(change)}</b> from {escape(write(was))}</small>"
    written = number(at(run, final, key), value, write)
    return f'<div class="key-figure"><span>{escape(name)}</span><strong>{written}</strong>{compared}</div>'


def proof(run: RunData) -> str:
    """Return the largest error of the proofs, and what was compared."""
    proofs = [stage.figures.verification for stage in run.pruned]
    errors = [(proof.max_relative_error, proof) for proof in proofs if proof and proof.max_relative_error is not None]
    if not errors:
        return ""
    error, cut = max(errors, key=lambda pair: pair[0])
    compared = "" if cut.outputs is None else f", compared at the outputs that count ({escape(cut.outputs)})"
    return (
        f'<p class="proof"><span>✓</span> Verified: in {escape(cut.dtype or "float64")}, the slim network computes the '
        f"same as the original one with the removed channels set to zero (relative error {error:.1e}{compared}).</p>"
    )


# -- stages -----------------------------------------------------------------------------------------------------------

Column = tuple[str, str, Callable[[float], str]]
"""Title, attribute of `StageResult`, and how its numbers are written."""
_COLUMNS: tuple[Column, ...] = (
    ("MACs", "macs", count),
    ("Parameters", "params", count),
    ("BN channels", "channels", lambda value: f"{value:.0f}"),
    ("Latency", "latency_ms", milliseconds),
    ("File", "file_bytes", megabytes),
    ("Time", "seconds", duration),
)
_BARS = {"macs", "params", "channels", "latency_ms", "file_bytes"}


def stage_table(run: RunData) -> str:
    """Return a table of the numbers of every stage, with bars for those that pruning should reduce."""
    if not run.stages:
        return ""
    write_value = run.metric.text
    columns: list[Column] = [
        (f"Test {run.metric.label}", "accuracy", write_value),
        ("Validation", "validation_accuracy", write_value),
        *_COLUMNS,
    ]
    largest = {key: max(getattr(stage.figures, key) or 0 for stage in run.stages) for key in _BARS}
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title, _, _ in columns)
    rows = "".join(
        f'<tr><th scope="row"><i class="dot c{charts.colour_of(stage.name)}"></i>{escape(stage.title)}</th>'
        + "".join(_cell(run, stage, title, key, write, largest.get(key, 0)) for title, key, write in columns)
        + "</tr>"
        for stage in run.stages
    )
    remarks = [(stage.title, stage.figures.skipped or _compared(stage.figures.teacher)) for stage in run.stages]
    notes = "".join(f'<p class="note">{escape(title)}: {escape(text)}</p>' for title, text in remarks if text)
    return (
        f'<div class="scroll card"><table class="stages"><thead><tr><th scope="col">Network</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{notes}"
    )


def _compared(found: TeacherComparison | None) -> str:
    if found is None:
        return ""
    share = percent_since(found.agreement, found.agreement_before)
    return f"the same class as its teacher for {share} of {found.images} images without labels"


def _cell(run: RunData, stage: Stage, title: str, key: str, write: Callable[[float], str], largest: float) -> str:
    value: float | None = getattr(stage.figures, key)
    bar = ""
    if value is not None and largest:
        bar = _bar(value, largest)
    return f'<td data-label="{escape(title)}">{number(at(run, stage, key), value, write)}{bar}</td>'


# -- figures ----------------------------------------------------------------------------------------------------------


def training(run: RunData) -> str:
    """Return accuracy against MACs, and the curves of training."""
    cards = [
        card(
            f"{run.metric.title} against MACs",
            charts.accuracy_against_macs(run),
            f"{run.metric.title} on the test images at the end of each stage.",
        ),
        card(f"Validation {run.metric.label}", charts.accuracy_curves(run)),
        card("Training loss", charts.loss_curves(run)),
        card("Scale factors while training", charts.gamma_over_time(run)),
    ]
    return grid(cards)


def gammas(run: RunData) -> str:
    """Return histograms of |γ|, or one sentence for a network whose scale factors are all equal."""
    figures = charts.gamma_histograms(run)
    drawn = [gammas for gammas in run.gammas if not charts.constant(gammas)]
    cards = [
        card(figure.title, figure, "" if figure.threshold is None else _threshold_note(gammas))
        for figure, gammas in zip(figures, drawn, strict=True)
    ]
    flat = [gammas for gammas in run.gammas if charts.constant(gammas)]
    sentences = "".join(
        f'<p class="note">{escape(g.title.capitalize())}, every |γ| was {float(g.values[0]):g}.</p>' for g in flat
    )
    return grid(cards) + sentences


def _threshold_note(gammas: Gammas) -> str:
    """Explain the threshold, and the kept channels left of it."""
    text = "Threshold: the largest |γ| of a removed channel."
    if not gammas.kept_below:
        return text
    return (
        f"{text} {plural(gammas.kept_below, 'channel')} left of it stayed: channels that several layers share, as in a "
        "residual stream, go together, ranked by the largest |γ| among them; others cannot be removed (see: not "
        "pruned, and why), or are kept by a limit such as prune.min_channels."
    )


def grid(cards: Sequence[str]) -> str:
    """Return cards side by side, as many as the width of the page allows."""
    body = "".join(cards)
    return f'<div class="grid">{body}</div>' if body else ""


# -- layers -----------------------------------------------------------------------------------------------------------


def layers(run: RunData) -> str:
    """Return the channels of every layer from input to output, with bars and the share that each lost."""
    figure = charts.layer_widths(run)
    if figure is None:
        return ""
    longest = max(before for _, before, _ in figure.layers)
    lost = {name: 1 - after / max(before, 1) for name, before, after in figure.layers}
    most = [name for name in sorted(lost, key=lambda name: -lost[name])[:_MOST_CUT] if lost[name]]
    rows = "".join(
        f'<li{" class=most" if name in most else ""}><span class="name">{escape(name)}</span>'
        f'<span class="track"><span class="bar" style="width:{100 * before / (longest or 1):.1f}%">'
        f'<i style="width:{100 * after / (before or 1):.1f}%"></i></span></span>'
        f'<span class="num">{before} → <b>{after}</b></span><span class="lost">{_lost(lost[name])}</span></li>'
        for name, before, after in figure.layers
    )
    listed = f'{legend(figure.legend)}<ol class="layers cut">{rows}</ol>'
    if len(figure.layers) > _MANY_LAYERS:
        listed = f"<details><summary>All {len(figure.layers)} layers</summary>{listed}</details>"
    named = ", ".join(f"<code>{escape(name)}</code> ({_lost(lost[name])})" for name in most)
    lead = f'<p class="lead">Cut most: {named}.</p>' if most else ""
    return f'{lead}<figure class="card">{listed}</figure>'


def _lost(share: float) -> str:
    return f"−{share:.0%}" if share else ""


# -- pruning ----------------------------------------------------------------------------------------------------------

_TARGET_TEXTS: dict[str, Callable[[float], str]] = {
    "ratio": lambda value: f"{value:.1%} of the prunable channels removed",
    "macs": lambda value: f"{value:.1%} of the MACs kept",
    "params": lambda value: f"{value:.1%} of the parameters kept",
    "latency_ms": lambda value: f"{value:.3g} ms per forward pass",
}


def prune_steps(run: RunData) -> str:
    """Return the target of each pruning, the result, and the ways of recovery that were tried."""
    return grid([_prune_step(stage) + _recovery(stage.figures.recovery, run.metric) for stage in run.pruned])


def _prune_step(stage: Stage) -> str:
    facts = [*_target(stage.figures.target), *_changes(stage.figures.pruned)]
    return f'<div class="card"><h3>{escape(stage.title.capitalize())}</h3>{definitions(facts)}</div>'


def _target(target: TargetOutcome | None) -> list[tuple[str, str]]:
    if target is None:
        return []
    write = _TARGET_TEXTS.get(target.kind, lambda value: f"{target.kind} {value:g}")
    values = {"target": target.requested, "reached": target.realised}
    return [(name, MISSING if value is None else write(value)) for name, value in values.items()]


def _changes(pruned: Pruned | None) -> list[tuple[str, str]]:
    if pruned is None:
        return []
    rows: list[tuple[str, Change, Callable[[float], str]]] = [
        ("prunable channels", pruned.channels, lambda value: f"{value:.0f}"),
        ("parameters", pruned.params, count),
        ("MACs", pruned.macs, count),
    ]
    return [(title, f"{write(change.before)} → {write(change.after)}") for title, change, write in rows]


def _recovery(recovery: RecoveryOutcome | None, metric: Metric) -> str:
    if recovery is None or not recovery.validation:
        return ""
    best = max(recovery.validation.values())
    best = best if best > 0 else 1.0
    rows = "".join(
        f'<li{" class=chosen" if name == recovery.chosen else ""}><span class="name">{escape(_way(name))}</span>'
        f'{_bar(max(value, 0.0), best)}<span class="num">{metric.text(value)}</span></li>'
        for name, value in recovery.validation.items()
    )
    return (
        f'<div class="card"><h3>Validation {escape(metric.label)} after recovery, before fine-tuning</h3>'
        f'<ul class="layers one">{rows}</ul>'
        f'<p class="note">Kept: {escape(_way(recovery.chosen))}.</p></div>'
    )


def _way(name: str) -> str:
    return {"plain": "without recovery", "both": "compensated + recalibrated"}.get(name, name)


def _bar(part: float, whole: float) -> str:
    return f'<span class="bar"><i style="width:{100 * part / (whole or 1):.1f}%"></i></span>'


def refusals(run: RunData) -> str:
    """Return the layers that were not pruned, one entry per reason."""
    sites: dict[tuple[str, str], list[str]] = {}
    for stage in run.pruned:
        for refusal in stage.figures.refusals or ():
            known = sites.setdefault((refusal.reason, refusal.fix), [])
            if refusal.site not in known:
                known.append(refusal.site)
    entries = "".join(
        f"<li>{_sites(names)}<p>{escape(reason)}</p>{f'<p class=fix>{escape(fix)}</p>' if fix else ''}</li>"
        for (reason, fix), names in sites.items()
    )
    notes = dict.fromkeys(note for stage in run.pruned for note in stage.figures.notes or ())
    entries += "".join(f"<li><p>{escape(note)}</p></li>" for note in notes)
    return f'<ul class="reasons card">{entries}</ul>' if entries else ""


def _sites(names: Sequence[str]) -> str:
    shown = "".join(f"<code>{escape(name)}</code> " for name in names[:6])
    if len(names) <= 6:
        return f'<p class="sites">{shown}</p>'
    rest = "".join(f"<code>{escape(name)}</code> " for name in names[6:])
    return f'<div class="sites">{shown}<details><summary>and {len(names) - 6} more</summary>{rest}</details></div>'


# -- configuration and environment ------------------------------------------------------------------------------------


def definitions(facts: Sequence[tuple[str, str]]) -> str:
    """Return a list of names with their values."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts) + "</dl>"


def provenance(run: RunData) -> str:
    """Return the recipe, and the machine and software of the run."""
    environment = run.environment
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
    about = definitions(facts) if environment else '<p class="note">env.json is missing.</p>'
    recipe = f"<pre>{escape(run.config_text)}</pre>"
    return grid([_folded("Configuration", recipe), _folded("Environment", about)])


def _folded(title: str, body: str) -> str:
    return f'<details class="card"><summary>{title}</summary>{body}</details>'


def _versions(environment: Any) -> list[tuple[str, Any]]:
    versions = environment.get("versions")
    return list(versions.items()) if isinstance(versions, dict) else []
