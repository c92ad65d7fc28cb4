"""Units of dimensions that a view splits in two, as attention does with its heads: C -> (heads, d).

By default the channels at one position of all heads make one unit, so that d shrinks and the number of heads stays.
The code may not allow this: a scale 1/sqrt(d) that is computed from the width, or `reshape(b, n, c)` with the width c
of another tensor. The alternatives, for the splits of one module::

    whole          a unit is a head: the number of heads shrinks, d stays, and so does a scale 1/sqrt(d)
    tied: heads    q, k and v shrink by the same channels if they are equally wide
    tied: all      so do all tensors of the module: `reshape(b, n, c)` stays correct if c is the width of its input

They only make units larger, so none of them can make a slim network wrong. The dry run shows which of them
the code accepts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from bnprune.channels.graph import ChannelGraph, Record
from bnprune.channels.labels import Label, varying
from bnprune.channels.op_context import Count
from bnprune.channels.union_find import ChannelIds, Ids, Refusal


@dataclass(frozen=True, slots=True)
class HeadUnits:
    """Units of the split dimensions of one module."""

    whole: bool = False
    """True if a unit is a whole head."""
    tied: Literal["none", "heads", "all"] = "none"
    """Tensors of the module that lose the same channels if they are equally wide: none, those of the heads, or all."""


ALTERNATIVES = (
    HeadUnits(tied="heads"),
    HeadUnits(whole=True),
    HeadUnits(tied="all"),
    HeadUnits(whole=True, tied="heads"),
    HeadUnits(whole=True, tied="all"),
)
"""The alternatives to the default, in the order of the trials: those that unite the fewest channels come first."""

HeadSites = Mapping[str, HeadUnits]
"""Units by name of the module; modules without an entry have the default."""

_TIED = Refusal("", "must have the width of other channels, which stay", "")


def split_sites(graph: ChannelGraph) -> set[str]:
    """Return the modules in which a view splits channels along several dimensions."""
    records = _records(graph)
    return {record.site for record in records if any(_is_split(label) for label in _outputs_of_view(record))}


def sites_using(graph: ChannelGraph, sites: Iterable[str], units: Collection[int]) -> set[str]:
    """Return those modules that read or write a channel of these units."""
    searched = np.array(sorted(units), dtype=np.int64)
    return {
        site
        for site in sites
        if any(np.isin(graph.units(line), searched).any() for line in _lines(_records(graph), site))
    }


def tie_widths(ids: ChannelIds, records: Iterable[Record], site: str, units: HeadUnits) -> None:
    """Unite the channels of the tensors of a module that have the same width."""
    inside = [record for record in records if _is_in(record, site)]
    split = [ids.find(label.numpy()).ravel() for r in inside for label in _outputs_of_view(r) if _is_split(label)]
    in_heads = np.unique(np.concatenate(split)) if split else np.zeros(0, dtype=np.int64)
    first: dict[int, Ids] = {}
    for line in _lines(inside, site):
        if units.tied == "all" or np.isin(ids.find(line), in_heads).all():
            ids.unite(first.setdefault(len(line), line), line, _TIED)


def head_counts(ids: ChannelIds, records: Iterable[Record], site: str, module: nn.Module) -> Iterator[Count]:
    """Yield the attributes that hold the number of heads, or a width, of a module whose units are whole heads.

    Of several attributes with the same value, none is returned: some of them may hold another number.
    """
    integers = {name: value for name, value in vars(module).items() if type(value) is int and not name.startswith("_")}
    values = list(integers.values())
    lines = (line for record in records if record.site == site for label in _labels(record) for line in _axes(label))
    by_size = {len(line): line for line in lines if _holds_heads(ids.find(line))}
    for name, value in integers.items():
        if value in by_size and values.count(value) == 1:
            yield Count(site, name, by_size[value])


def _holds_heads(roots: Ids) -> bool:
    """True if there are several units along a dimension, each at adjacent places: not if it is batch and heads in one.

    ::

        heads               [5 6 7 8]              True
        heads x d           [5 5 6 6 7 7 8 8]      True
        batch x heads       [5 6 7 8 5 6 7 8]      False: its size depends on the batch
    """
    runs = 1 + int((roots[1:] != roots[:-1]).sum())
    return 1 < runs == len(np.unique(roots))


def _records(graph: ChannelGraph) -> list[Record]:
    return [record for trace in graph.traces.values() for record in trace.records]


def _is_in(record: Record, site: str) -> bool:
    return record.site == site or (bool(site) and record.site.startswith(f"{site}."))


def _labels(record: Record) -> list[Label]:
    return [*record.inputs, *(label for _, labels in record.outputs for label in labels)]


def _outputs_of_view(record: Record) -> list[Label]:
    return [label for _, labels in record.outputs for label in labels] if record.kind == "view" else []


def _is_split(label: Label) -> bool:
    return len(varying(label)) > 1


def _lines(records: Iterable[Record], site: str) -> Iterator[Ids]:
    """Yield the channel ids of all tensors in a module that vary along a single dimension, each of shape (size,)."""
    for record in records:
        if _is_in(record, site):
            yield from (label.reshape(-1).numpy() for label in _labels(record) if len(varying(label)) == 1)


def _axes(label: Label) -> Iterator[Ids]:
    """Yield the channel ids along each dimension of a label, at index 0 of the others."""
    for dim in varying(label):
        yield label[tuple(slice(None) if other == dim else 0 for other in range(label.dim()))].numpy()
