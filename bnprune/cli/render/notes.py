"""Remarks on a network or a cut, with the options and verbs that help."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from bnprune.cli.render.console import print_text
from bnprune.notes import Note

_HELP = {
    "weights.random": "--weights FILE, or --pretrained for torchvision/ and timm/",
    "gamma.equal": "bnprune train CONFIG",
    "cut.live_channels": "bnprune train CONFIG; --criterion activation --calibrate DIR; bnprune finetune",
}
"""What helps, by code of the note."""


def show_notes(console: Console, notes: Iterable[str]) -> None:
    """Print one line per remark."""
    for note in notes:
        level, code = (note.level, note.code) if isinstance(note, Note) else ("note", "")
        help_text = f" ({_HELP[code]})" if code in _HELP else ""
        print_text(console, f"{level}: {note}{help_text}")
