"""The page: one self-contained HTML file about one run, or several side by side. No script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from bnprune.reporting import sections
from bnprune.reporting.compare import comparison
from bnprune.reporting.run_data import RunData

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""The browser is told to fetch nothing and to run nothing, whatever a name in a run may contain."""


def render(stories: Sequence[RunData]) -> str:
    """Return the page about one run or several.

    Args:
        stories: At least one; their names must differ.
    """
    if len(stories) == 1:
        [run_data] = stories
        title, body = run_data.name, f"{_header(run_data)}{_run(run_data)}"
    else:
        title = " · ".join(run_data.name for run_data in stories)
        runs = "".join(_folded(run_data) for run_data in stories)
        body = f"{comparison(stories)}<section><h2>The runs</h2>{runs}</section>"
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{escape(title)} – bnprune</title>\n<style>\n{style}</style></head>\n'
        f"<body><main>{body}</main><footer>Made by bnprune from the files of the run. "
        "MACs are multiply-accumulates for one input.</footer></body></html>\n"
    )


def _header(run_data: RunData) -> str:
    device = run_data.environment.get("accelerators") or [run_data.environment.get("processor", "")]
    about = " · ".join(
        escape(part)
        for part in (
            f"{run_data.model} on {run_data.data}",
            str(run_data.environment.get("time", ""))[:10],
            str(device[0]),
        )
        if part
    )
    name = escape(run_data.name)
    return f'<header><p class="eyebrow">bnprune run</p><h1>{name}</h1><p class="about">{about}</p></header>'


def _run(run_data: RunData) -> str:
    """Everything about one run."""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in run_data.notes)
    return (
        f'<p class="headline">{sections.headline(run_data)}</p>'
        f"{sections.tiles(run_data)}{sections.proof(run_data)}{notes}"
        + sections.section("Stage by stage", sections.stage_table(run_data))
        + sections.section("Training", sections.training(run_data))
        + sections.section("Scale factors", sections.gammas(run_data), _GAMMAS)
        + sections.section("Channels per layer", sections.layers(run_data))
        + sections.section("The cut", sections.cuts(run_data))
        + sections.section("What had to stay, and why", sections.refusals(run_data))
        + sections.section("Made with", sections.provenance(run_data))
    )


_GAMMAS = (
    "A channel whose scale factor γ is near zero says almost nothing. Channels are ranked by it, and the smallest go. "
    "Heights are square roots of counts."
)


def _folded(run_data: RunData) -> str:
    return (
        f'<details class="run"><summary><b>{escape(run_data.name)}</b> '
        f"<span>{escape(run_data.model)} on {escape(run_data.data)}"
        f"</span></summary>{_run(run_data)}</details>"
    )
