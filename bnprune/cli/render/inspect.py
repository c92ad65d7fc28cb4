"""The result of `inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from bnprune.cli.render.console import print_text, stdout
from bnprune.cli.render.fitted_line import wrapped
from bnprune.cli.render.notes import show_notes
from bnprune.cli.render.refusals import show_refusals
from bnprune.cli.render.tables import percent, show_rows, sparkline
from bnprune.reporting.number_format import count
from bnprune.workflows.results import InspectedLayer, InspectResult

_GROUPS = 2
"""Numbers of groups that are shown for one layer."""
_WORDS = ("kind", "|γ|", "cut group")


def show_inspect(result: InspectResult) -> None:
    """Print a table with a row per layer, in the order of the forward pass, and the reasons why channels stay.

    A BatchNorm behind a convolution or linear layer is in the row of that layer.
    """
    norms = {layer.name: layer for layer in result.layers if layer.kind == "norm"}
    joined = {layer.norm for layer in result.layers if layer.norm is not None}
    rows = [layer for layer in result.layers if layer.name not in joined]
    rows.sort(key=lambda layer: len(result.layers) if layer.position is None else layer.position)
    largest = max((_tenths(norm)[-1] for norm in norms.values() if norm.gamma_quantiles), default=0.0)
    heads = ["layer", "kind", "width", "prunable", "|γ|", "γ̂ median", "MACs", "cut group"]
    table = [_row(layer, norms.get(layer.norm or layer.name), result.macs, largest) for layer in rows]
    used = [place for place, _ in enumerate(heads) if place < 2 or any(row[place] for row in table)]
    show_rows([heads[place] for place in used], [[row[place] for place in used] for row in table], words=_WORDS)
    _explain(result, rows, largest)
    console = stdout()
    console.print(
        f"\n{result.channels.prunable} of {result.channels.total} BN channels are prunable; "
        f"{count(result.params)} parameters, {count(result.macs)} MACs"
    )
    show_refusals(console, result.refusals)
    show_notes(console, result.notes)


def _row(layer: InspectedLayer, norm: InspectedLayer | None, macs: int, largest: float) -> list[str]:
    kind = {"norm": "BN"}.get(layer.kind, layer.kind) + (" + BN" if layer.norm else "")
    return [
        layer.name,
        kind,
        str(layer.width),
        str(layer.prunable),
        "" if norm is None or not norm.gamma_quantiles else sparkline(_tenths(norm), largest),
        "" if layer.deviation_median is None else f"{layer.deviation_median:.2g}",
        "" if not layer.macs else percent(layer.macs / max(macs, 1), 1),
        _group_names(layer.groups),
    ]


def _tenths(norm: InspectedLayer) -> list[float]:
    """Return a value of |γ| for each tenth of the channels: the middle between the quantiles around it."""
    return [(low + high) / 2 for low, high in pairwise(norm.gamma_quantiles or ())]


def _group_names(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_GROUPS]))
    return f"{shown}, ..." if len(numbers) > _GROUPS else shown


def _explain(result: InspectResult, rows: Sequence[InspectedLayer], largest: float) -> None:
    """Say what the columns show."""
    lines = []
    if not all(layer.prunable for layer in rows):
        lines.append(
            "prunable: channels that may be removed. In a layer with 0, no BatchNorm ranks them, or they have to stay."
        )
    if largest:
        lines.append(
            f"|γ|: scale factors of the layer's BatchNorm, from the smallest tenth of its channels to the largest; the "
            f"highest bar is {largest:.2g}."
        )
    if any(layer.deviation_median is not None for layer in rows):
        lines.append("γ̂ median: median standard deviation of the channels of a layer without a BatchNorm.")
    other = 1 - sum(layer.macs for layer in result.layers) / max(result.macs, 1)
    if result.macs and other >= 0.001:
        lines.append(f"MACs: share of the network's; {other:.1%} are in operators outside these layers.")
    if any(layer.groups for layer in rows):
        lines.append("cut group: layers with the same number lose the same channels.")
    console = stdout()
    print_text(console, "")
    for line in lines:
        print_text(console, wrapped(line, console.width if console.is_terminal else None), "dim")
