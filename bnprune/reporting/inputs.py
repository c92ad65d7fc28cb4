"""The part of the page that says how images become inputs of the network, and what its classes are called."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bnprune.reporting.run_data import RunData
from bnprune.reporting.sections import definitions
from bnprune.runs.input_format import per_channel, sizing_of

_MANY_CLASSES = 30
"""Number of classes above which their list is folded."""


def inputs_and_classes(run: RunData) -> str:
    """Return how images become inputs, and the names of the classes; empty if the run does not know it."""
    if run.inputs is None:
        return ""
    facts = [
        ("images", f"{sizing_of(run.inputs)}, pixel values between 0 and 1"),
        ("mean", f"{per_channel(run.inputs.mean)}, subtracted"),
        ("standard deviation", f"{per_channel(run.inputs.std)}, divided by"),
    ]
    return f'<div class="card">{definitions(facts)}{_classes(run.inputs.classes)}</div>'


def _classes(names: Sequence[str]) -> str:
    if not names:
        return ""
    title = f"{len(names)} classes, in the order of the scores"
    listed = f'<ol class="classes" start="0">{"".join(f"<li>{escape(name)}</li>" for name in names)}</ol>'
    if len(names) > _MANY_CLASSES:
        return f"<details><summary>{title}</summary>{listed}</details>"
    return f"<h4>{title}</h4>{listed}"
