"""The calls of layers in a forward pass: their order, their multiply-accumulates, and the BatchNorm that follows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from bnprune.channels.graph import ChannelGraph, Layer


@dataclass(frozen=True, slots=True)
class LayerCall:
    """The place of a layer in the forward pass in eval mode."""

    position: int | None
    """Rank of its first call among those of all layers, from 0; None if it is not called."""
    macs: int
    """Multiply-accumulates of all its calls for one input."""
    norm: str | None
    """Name of the BatchNorm that normalises its output channel by channel, with nothing in between; None if there is
    none, and for BatchNorms."""


def layer_calls(graph: ChannelGraph) -> list[LayerCall]:
    """Return the calls of `graph.layers`, in the same order."""
    records = graph.traces["eval"].records
    numbers = _calls(graph)
    first = sorted(found[0] for found in numbers if found)
    norms = _norms(graph, numbers)
    return [
        LayerCall(
            position=first.index(found[0]) if found else None,
            macs=sum(records[number].macs for number in found),
            norm=norms.get(place),
        )
        for place, found in enumerate(numbers)
    ]


def _calls(graph: ChannelGraph) -> list[list[int]]:
    """Return the positions of the operator calls of every layer.

    The calls of a BatchNorm are those of its module and, if the module that owns it runs it, those that read its scale
    factors.
    """
    gammas = iter(graph.gammas)  # in the order of the BatchNorms among the layers
    sites: dict[str, int] = {}
    tensors: dict[str, int] = {}
    for place, layer in enumerate(graph.layers):
        gamma = next(gammas) if layer.kind == "norm" else None
        if gamma is not None:
            tensors[gamma] = place
        if gamma is None or gamma.rpartition(".")[0] == layer.name:
            sites[layer.name] = place
    numbers: list[list[int]] = [[] for _ in graph.layers]
    for number, record in enumerate(graph.traces["eval"].records):
        read = {tensors[o.source] for o in record.operands if isinstance(o.source, str) and o.source in tensors}
        for place in read | ({sites[record.site]} if record.site in sites else set()):
            numbers[place].append(number)
    return numbers


def _norms(graph: ChannelGraph, numbers: list[list[int]]) -> dict[int, str]:
    """Return the name of the BatchNorm that reads the output of a layer, by the place of the layer."""
    records, layers = graph.traces["eval"].records, graph.layers
    unique = [name for name, count in Counter(layer.name for layer in layers).items() if count == 1]
    made_by = {number: place for place, found in enumerate(numbers) for number in found if layers[place].kind != "norm"}
    norms: dict[int, str] = {}
    for place, found in enumerate(numbers):
        if layers[place].kind != "norm" or layers[place].name not in unique:
            continue
        sources = (operand.source for number in found for operand in records[number].operands)
        before = {made_by[source] for source in sources if isinstance(source, int) and source in made_by}
        if len(before) == 1 and _same_channels(layers[place], layers[one := before.pop()], graph):
            norms.setdefault(one, layers[place].name)
    return norms


def _same_channels(norm: Layer, layer: Layer, graph: ChannelGraph) -> bool:
    return np.array_equal(graph.units(norm.ids), graph.units(layer.ids))
