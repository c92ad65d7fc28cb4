"""The report: one self-contained HTML file about one run, or several side by side. No scripts, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from bnprune.reporting import sections
from bnprune.reporting.compare import comparison
from bnprune.reporting.inputs import inputs_and_classes
from bnprune.reporting.run_data import RunData

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""Forbids the browser to load anything or to run a script, even if a name in a run contains markup."""


def render(runs: Sequence[RunData]) -> str:
    """Return the page about one run, or about several.

    Args:
        runs: At least one run; no two of the same name.
    """
    if len(runs) == 1:
        [run] = runs
        title, body = run.name, f"{_header(run)}{_run(run)}"
    else:
        title = " · ".join(run.name for run in runs)
        folded = "".join(_folded(run) for run in runs)
        body = f"{comparison(runs)}<section><h2>The runs</h2>{folded}</section>"
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{escape(title)} – bnprune</title>\n<style>\n{style}</style></head>\n'
        f"<body><main>{body}</main><footer>Made by bnprune from the files of the run. "
        "MACs are multiply-accumulate operations for one input.</footer></body></html>\n"
    )


def _header(run: RunData) -> str:
    device = run.environment.get("accelerators") or [run.environment.get("processor", "")]
    about = " · ".join(
        escape(part)
        for part in (
            f"{run.model} on {run.data}",
            str(run.environment.get("time", ""))[:10],
            str(device[0]),
        )
        if part
    )
    name = escape(run.name)
    return f'<header><p class="page-kind">bnprune run</p><h1>{name}</h1><p class="about">{about}</p></header>'


def _run(run: RunData) -> str:
    """Return everything about one run."""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in run.notes)
    return (
        f'<p class="headline">{sections.headline(run)}</p>'
        f"{sections.key_figures(run)}{sections.proof(run)}{notes}"
        + sections.section("Stage by stage", sections.stage_table(run))
        + sections.section("Training", sections.training(run))
        + sections.section("Scale factors", sections.gammas(run), _about_gammas(run))
        + sections.section("Channels per layer", sections.layers(run))
        + sections.section("Pruning", sections.prune_steps(run))
        + sections.section("Not pruned, and why", sections.refusals(run))
        + sections.section("Inputs and classes", inputs_and_classes(run))
        + sections.section("Configuration and environment", sections.provenance(run))
    )


def _about_gammas(run: RunData) -> str:
    text = "A channel whose scale factor γ is near zero contributes almost nothing to the output. "
    if run.criterion in ("", "gamma"):
        return text + "Channels are ranked by |γ|, and the lowest-ranked ones are removed."
    return text + (
        f"This run ranked channels by the criterion '{escape(run.criterion)}' instead of |γ| over the whole network, "
        "so the removed channels need not be those with the smallest |γ|."
    )


def _folded(run: RunData) -> str:
    return (
        f'<details class="run"><summary><b>{escape(run.name)}</b> '
        f"<span>{escape(run.model)} on {escape(run.data)}"
        f"</span></summary>{_run(run)}</details>"
    )
