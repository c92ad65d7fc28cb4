"""Inspection: which channels of a network can be pruned, and why others cannot. Nothing is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from bnprune.channels.graph import ChannelGraph
from bnprune.channels.layer_calls import layer_calls
from bnprune.channels.modules import parameter_count
from bnprune.channels.operator_mode import preserve_thread_state
from bnprune.channels.trace_network import Coupling, Outputs
from bnprune.channels.union_find import NO_CHANNEL, Refusal
from bnprune.notes import Note
from bnprune.pruning.candidates import Mask
from bnprune.pruning.draft_plan import DraftPlan
from bnprune.pruning.planner import plan_cut, score_network
from bnprune.pruning.request import Request
from bnprune.pruning.result_tables import Row, html_lines, html_table, text_table
from bnprune.pruning.select import NO_GAMMA
from bnprune.pruning.sensitivity_order import layer_groups
from bnprune.pruning.surgery import named_tensors

_RATIO = 0.5
"""Ratio of the selection that is tried; the set of prunable channels does not depend on it."""
_FIXED = "its width is fixed"
_QUANTILES = np.linspace(0, 1, 11)


@dataclass(frozen=True, slots=True)
class LayerInspection:
    """One layer with a width of its own."""

    name: str
    kind: str
    """"conv", "linear" or "norm"."""
    width: int
    """Output channels."""
    prunable: int
    """Output channels that can be removed, before `min_channels` is applied."""
    units: int
    """Sets of channels that can only be removed together; fewer than `width` for grouped layers."""
    gamma_median: float | None
    """Median |γ|; None for layers without scale factors of their own."""
    deviation_median: float | None
    """Median γ̂, the standard deviation of its output, of layers without a BatchNorm that write prunable channels."""
    reason: str
    """Why channels stay; empty if all can be removed."""
    position: int | None
    """Rank of its first call among those of all layers in the forward pass, from 0; None if it is not called."""
    macs: int
    """Multiply-accumulates for one input."""
    norm: str | None
    """Name of the BatchNorm that normalises the output of a convolution or linear layer, if there is one."""
    groups: tuple[int, ...]
    """Numbers of the groups of prunable channels that it holds, from 1. Layers of one group lose the same channels."""
    gamma_quantiles: tuple[float, ...] | None
    """Minimum, the nine deciles and maximum of |γ|; None for layers without scale factors of their own."""


@dataclass(frozen=True)
class Inspection:
    """The prunable and the fixed channels of a network: the result of `bnprune.inspect`.

    `print(inspection)` is a table; in a notebook, it is shown as HTML.

    Example::

        inspection = bnprune.inspect(model, example_inputs)
        print(f"{inspection.prunable} of {inspection.channels} channels, {inspection.macs:,} MACs")
        fixed = [layer.name for layer in inspection.layers if not layer.prunable]
    """

    layers: tuple[LayerInspection, ...]
    """Convolutions and linear layers, then norms; `position` is their order in the forward pass."""
    refusals: tuple[Refusal, ...]
    """Why channels stay, one entry per place and reason."""
    channels: int
    """BatchNorm channels."""
    prunable: int
    """BatchNorm channels that can be removed."""
    params: int
    """Number of parameters."""
    macs: int
    """Multiply-accumulates for the example inputs, their batch included."""
    notes: tuple[Note, ...]

    def __str__(self) -> str:
        return "\n".join([*self._head, *text_table(_COLUMNS, self._rows)])

    def _repr_html_(self) -> str:
        return html_lines(self._head) + html_table(_COLUMNS, self._rows)

    @property
    def _head(self) -> list[str]:
        return [f"{self.prunable:,} of {self.channels:,} BatchNorm channels can be pruned", *self.notes]

    @property
    def _rows(self) -> list[Row]:
        return [
            (layer.name, layer.kind, f"{layer.width:,}", f"{layer.prunable:,}", layer.reason) for layer in self.layers
        ]


_COLUMNS = ("layer", "kind", "width", "prunable", "why others stay")


@preserve_thread_state
def inspect(
    model: nn.Module,
    example_inputs: Any,
    *,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    coupling: Coupling = "shared",
    outputs: Outputs | None = None,
) -> Inspection:
    """Return which channels of a network can be pruned, layer by layer, and why others cannot. Nothing is cut.

    Args:
        model: Any module that runs a forward pass; left untouched.
        example_inputs: As for `bnprune.prune`.
        exclude: Layers not to prune, as for `bnprune.prune`.
        include: The only layers to prune, as for `bnprune.prune`.
        coupling: "shared" or "gates", as for `bnprune.prune`.
        outputs: The outputs that count, as for `bnprune.prune`.

    Returns:
        Widths, prunable channels, scale factors and MACs of each layer, and the reasons why channels stay.

    Raises:
        ConfigError: A pattern matches no layer, or the network does not return `outputs`.
        TraceError: The analysis fails.
        ForwardError: The forward pass fails.

    Example::

        inspection = bnprune.inspect(model, example_inputs, exclude=["0"])
        for layer in inspection.layers:
            print(f"{layer.name}: {layer.prunable} of {layer.width}. {layer.reason}")
    """
    request = Request(ratio=_RATIO, exclude=tuple(exclude), include=tuple(include), coupling=coupling, outputs=outputs)
    scored = score_network(model, example_inputs, request)
    draft = plan_cut(model, example_inputs, scored)
    graph, prunable = scored.graph, draft.candidates.prunable
    return Inspection(
        layers=tuple(_inspected(model, draft)),
        refusals=draft.refusals,
        channels=int(graph.gamma_count.sum()),
        prunable=int(graph.gamma_count[prunable].sum()),
        params=parameter_count(model),
        macs=graph.traces["eval"].macs,
        notes=(*scored.notes, *draft.advice, *draft.notes_on_network),
    )


def _inspected(model: nn.Module, draft: DraftPlan) -> Iterator[LayerInspection]:
    graph, prunable = draft.scored.graph, draft.candidates.prunable
    tensors = dict(named_tensors(model))
    gammas = {module: tensors[name].detach().abs() for name, module in graph.gammas.items() if name in tensors}
    written = {deviation.layer: deviation.median for deviation in draft.written}
    groups = _groups(graph, prunable)
    for layer, call in zip(graph.layers, layer_calls(graph), strict=True):
        units = graph.units(layer.ids)
        gamma = gammas.get(layer.name) if layer.kind == "norm" else None
        staying = units[~prunable[units]]
        yield LayerInspection(
            name=layer.name,
            kind=layer.kind,
            width=len(units),
            prunable=int(prunable[units].sum()),
            units=len(np.unique(units)),
            gamma_median=None if gamma is None else float(gamma.median()),
            deviation_median=written.get(layer.name),
            reason=_reason(draft, int(staying[0])) if len(staying) else "",
            position=call.position,
            macs=call.macs,
            norm=call.norm,
            groups=tuple(number for number, members in groups.items() if layer.name in members),
            gamma_quantiles=None if gamma is None else tuple(np.quantile(gamma.double().cpu(), _QUANTILES).tolist()),
        )


def _groups(graph: ChannelGraph, prunable: Mask) -> dict[int, tuple[str, ...]]:
    """Return the names of the layers of each group that has prunable channels."""
    found = [layers for layers, units in layer_groups(graph).items() if prunable[units].any()]
    return dict(enumerate(found, 1))


def _reason(draft: DraftPlan, unit: int) -> str:
    why = draft.scored.graph.frozen[unit] or draft.candidates.kept.get(unit)
    return str(why) if why is not None and unit != NO_CHANNEL else _FIXED if unit == NO_CHANNEL else NO_GAMMA
