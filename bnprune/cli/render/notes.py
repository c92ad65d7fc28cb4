"""Remarks on a network or a cut, with the options and verbs that help."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from bnprune.cli.render.console import print_text
from bnprune.notes import Note

_HELP = {
    "weights.random": "--weights FILE, or --pretrained for torchvision/ and timm/",
    "calibration.unlike": "--mean and --std for images of a folder; data.mean and data.std in a recipe",
    "gamma.equal": "bnprune train CONFIG",
    "cut.live_channels": "bnprune train CONFIG; --criterion activation --calibrate DIR; bnprune finetune",
}
"""What helps, by code of the note."""


def with_help(note: str) -> str:
    """Return a remark with its level, if it is a warning, and with what helps."""
    if not isinstance(note, Note):
        return note
    level = "warning: " if note.level == "warning" else ""
    return f"{level}{note} ({_HELP[note.code]})" if note.code in _HELP else f"{level}{note}"


def show_notes(console: Console, notes: Iterable[str]) -> None:
    """Print one line per remark."""
    for note in notes:
        is_warning = isinstance(note, Note) and note.level == "warning"
        print_text(console, with_help(note) if is_warning else f"note: {with_help(note)}")
