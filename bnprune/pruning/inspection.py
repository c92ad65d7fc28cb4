"""What can be pruned in a network, what cannot, and why; nothing is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from bnprune.channels.modules import parameter_count
from bnprune.channels.operator_mode import preserve_thread_state
from bnprune.channels.trace_network import Coupling
from bnprune.channels.union_find import NO_CHANNEL, Refusal
from bnprune.pruning.planner import DraftPlan, plan_cut, score_network
from bnprune.pruning.request import Request
from bnprune.pruning.select import NO_GAMMA
from bnprune.pruning.surgery import named_tensors

_PROBE = 0.5
"""Hard-coded sizes show when something is removed; half of everything shows them all."""
_FIXED = "its width is fixed"


@dataclass(frozen=True, slots=True)
class LayerInspection:
    """One layer with a width of its own."""

    name: str
    kind: str
    """"conv", "linear" or "norm"."""
    width: int
    """Output channels."""
    prunable: int
    """Output channels that may go (down to the floor)."""
    units: int
    """Sets of channels that go together with others of this layer or not; fewer than `width` for grouped layers."""
    gamma_median: float | None
    """Median |γ|; None for layers without scale factors of their own."""
    reason: str
    """Why channels stay; empty where all may go."""


@dataclass(frozen=True)
class Inspection:
    """A network as the pruner sees it."""

    layers: tuple[LayerInspection, ...]
    refusals: tuple[Refusal, ...]
    channels: int
    """BatchNorm channels."""
    prunable: int
    """BatchNorm channels that may go."""
    params: int
    macs: int
    notes: tuple[str, ...]


@preserve_thread_state
def inspect(
    model: nn.Module, example_inputs: Any, *, exclude: Sequence[str] = (), coupling: Coupling = "shared"
) -> Inspection:
    """Find out what can be pruned.

    Args:
        model: Any module that runs a forward pass; left untouched.
        example_inputs: As for `bnprune.prune`.
        exclude: Layers whose width stays, as for `bnprune.prune`.
        coupling: "shared" or "gates", as for `bnprune.prune`.

    Raises:
        ConfigError: A pattern matches no layer.
        TraceError: The forward pass fails.
    """
    found = score_network(model, example_inputs, Request(ratio=_PROBE, exclude=tuple(exclude), coupling=coupling))
    draft = plan_cut(model, example_inputs, found)
    graph, prunable = found.graph, draft.chosen.prunable
    tensors = dict(named_tensors(model))
    layers = []
    for layer in graph.layers:
        units = graph.units(layer.ids)
        name = next((key for key, module in graph.gammas.items() if module == layer.name), None)
        median = float(tensors[name].detach().abs().median()) if name in tensors and layer.kind == "norm" else None
        stuck = units[~prunable[units]]
        layers.append(
            LayerInspection(
                name=layer.name,
                kind=layer.kind,
                width=len(units),
                prunable=int(prunable[units].sum()),
                units=len(np.unique(units)),
                gamma_median=median,
                reason=_reason(draft, int(stuck[0])) if len(stuck) else "",
            )
        )
    return Inspection(
        layers=tuple(layers),
        refusals=draft.refusals,
        channels=int(graph.gamma_count.sum()),
        prunable=int(graph.gamma_count[prunable].sum()),
        params=parameter_count(model),
        macs=graph.traces["eval"].macs,
        notes=(*graph.notes, *draft.advice),
    )


def _reason(draft: DraftPlan, unit: int) -> str:
    why = draft.score_network.graph.frozen[unit] or draft.chosen.kept.get(unit)
    return str(why) if why is not None and unit != NO_CHANNEL else _FIXED if unit == NO_CHANNEL else NO_GAMMA
