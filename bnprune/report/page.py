"""The page: one self-contained HTML file about one run, or several side by side. No script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from bnprune.report import sections
from bnprune.report.compare import comparison
from bnprune.report.story import Story

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""The browser is told to fetch nothing and to run nothing, whatever a name in a run may contain."""


def render(stories: Sequence[Story]) -> str:
    """Return the page about one run or several.

    Args:
        stories: At least one; their names must differ.
    """
    if len(stories) == 1:
        [story] = stories
        title, body = story.name, f"{_header(story)}{_run(story)}"
    else:
        title = " · ".join(story.name for story in stories)
        runs = "".join(_folded(story) for story in stories)
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


def _header(story: Story) -> str:
    device = story.environment.get("accelerators") or [story.environment.get("processor", "")]
    about = " · ".join(
        escape(part)
        for part in (f"{story.model} on {story.data}", str(story.environment.get("time", ""))[:10], str(device[0]))
        if part
    )
    return (
        f'<header><p class="eyebrow">bnprune run</p><h1>{escape(story.name)}</h1><p class="about">{about}</p></header>'
    )


def _run(story: Story) -> str:
    """Everything about one run."""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in story.notes)
    return (
        f'<p class="headline">{sections.headline(story)}</p>{sections.tiles(story)}{sections.proof(story)}{notes}'
        + sections.section("Stage by stage", sections.stage_table(story))
        + sections.section("Training", sections.training(story))
        + sections.section("Scale factors", sections.gammas(story), _GAMMAS)
        + sections.section("Channels per layer", sections.layers(story))
        + sections.section("The cut", sections.cuts(story))
        + sections.section("What had to stay, and why", sections.refusals(story))
        + sections.section("Made with", sections.provenance(story))
    )


_GAMMAS = (
    "A channel whose scale factor γ is near zero says almost nothing. Channels are ranked by it, and the smallest go. "
    "Heights are square roots of counts."
)


def _folded(story: Story) -> str:
    return (
        f'<details class="run"><summary><b>{escape(story.name)}</b> <span>{escape(story.model)} on {escape(story.data)}'
        f"</span></summary>{_run(story)}</details>"
    )
