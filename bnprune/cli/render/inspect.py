"""The result of `inspect`."""

from __future__ import annotations

from bnprune.cli.render.console import stdout
from bnprune.cli.render.notes import show_notes
from bnprune.cli.render.refusals import show_refusals
from bnprune.cli.render.tables import bar, show_rows
from bnprune.reporting.number_format import count
from bnprune.workflows.results import InspectResult


def show_inspect(result: InspectResult) -> None:
    """Print every layer with its prunable channels, and the reasons for the others."""
    longest = max((layer.width for layer in result.layers), default=1)
    show_rows(
        ["layer", "kind", "width", "prunable", "|γ| median", "γ̂ median", ""],
        [
            (
                layer.name,
                layer.kind,
                str(layer.width),
                str(layer.prunable),
                _short(layer.gamma_median),
                _short(layer.deviation_median),
                bar(layer.prunable, layer.width, longest),
            )
            for layer in result.layers
        ],
    )
    console = stdout()
    console.print(
        f"\n{result.channels.prunable} of {result.channels.total} BN channels are prunable; "
        f"{count(result.params)} parameters, {count(result.macs)} MACs"
    )
    show_refusals(console, result.refusals)
    show_notes(console, result.notes)


def _short(median: float | None) -> str:
    return "" if median is None else f"{median:.2g}"
