"""The order of removal by sensitivity: all groups of layers lose the same accuracy, as measured for each alone.

That is the greedy selection of AIMET (Qualcomm). Channels are put in the order of the loss that their group has as soon
as they are removed, so that the search for a target bisects over one loss for all groups. Inside a group they keep the
order of the criterion.

Test accuracy of an ordinary ResNet-20 (CIFAR-10 at 16x16, 20 epochs on 20,000 images: 73.9%; tables with shares 0.25,
0.5, 0.75, 0.9 from 2,000 validation images and the order of γ; mean of 3 seeds) without fine-tuning, recalibrated /
reconstructed / both::

    layers lose        inside a layer   0.5 of the MACs       0.3 of the MACs
    by γ               γ                43.4  58.0  58.5      29.7  42.8  48.0
    the same share     γ                48.9  60.2  61.0      32.0  43.9  48.2
    by sensitivity     γ                48.3  63.5  61.9      34.0  44.6  49.3
    by activation      activation       56.8  65.2  65.3      36.1  44.6  53.9
    by sensitivity     activation       56.2  65.6  65.0      39.5  49.1  54.8

Shares of 0.1, 0.2, ... 0.9 gave the same within 1.1 points (reconstructed, one seed).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnprune.channels.graph import ChannelGraph
from bnprune.channels.union_find import NO_CHANNEL, Ids
from bnprune.errors import ConfigError
from bnprune.notes import Note
from bnprune.pruning.candidates import Candidates, Mask, excluded_layers, interchangeable
from bnprune.pruning.draft_plan import DraftPlan, ScoredNetwork
from bnprune.pruning.select import after
from bnprune.pruning.sensitivity import Sensitivity

Groups = dict[tuple[str, ...], Ids]


def layer_groups(graph: ChannelGraph) -> Groups:
    """Return the units of each group of layers that are cut together, by the names of the layers.

    The units of a group have channels in the same layers. In a residual network, all layers that write or read one
    stream are a group; so is a convolution inside a block with its BatchNorm.
    """
    kind, _ = interchangeable(graph, 1)
    _, group = np.unique(kind, return_inverse=True)
    names: list[dict[str, None]] = [{} for _ in range(int(group.max(initial=-1)) + 1)]
    for layer in graph.layers:
        units = graph.units(layer.ids)
        for index in np.unique(group[units[units != NO_CHANNEL]]).tolist():
            names[index][layer.name] = None
    found: dict[tuple[str, ...], list[Ids]] = {}
    for index, layers in enumerate(names):
        members = np.flatnonzero(group == index)
        found.setdefault(tuple(layers), []).append(members[members != NO_CHANNEL])
    found.pop((), None)
    in_order = {layer.name: place for place, layer in enumerate(graph.layers)}
    ranked = sorted(found.items(), key=lambda item: [in_order[name] for name in item[0]])
    return {layers: np.concatenate(units) for layers, units in ranked}


def prunable_groups(scored: ScoredNetwork) -> Groups:
    """Return the groups of which channels may be removed."""
    graph = scored.graph
    prunable = graph.free & np.isfinite(scored.scores)
    prunable[[NO_CHANNEL, *scored.findings.kept]] = False
    excluded = excluded_layers(graph, scored.request.exclude, scored.request.include)
    found = layer_groups(graph).items()
    return {layers: units for layers, units in found if prunable[units].any() and excluded.isdisjoint(layers)}


def cut_group(graph: ChannelGraph, candidates: Candidates, group: Ids, share: float) -> Mask:
    """Return True for units to remove so that a group loses about a share of its units, and others nothing."""
    inside = np.zeros(graph.unit_count, dtype=np.bool_)
    inside[group] = True
    steps = [step for step in _steps(candidates) if inside[step].all()]
    sizes = np.cumsum([0, *map(len, steps)])
    count = int(np.abs(sizes - share * len(group)).argmin())
    return after(graph, _with_steps(graph, candidates, steps), count)


def by_sensitivity(graph: ChannelGraph, candidates: Candidates, sensitivity: Sensitivity) -> Candidates:
    """Return the candidates in the order of the loss of accuracy that their group has, as soon as they are removed.

    Channels of equal loss go by the share of their group that is removed, so that as long as nothing is lost, all
    groups lose the same share. Channels beyond the largest measured cut go last. Channels of groups that were not
    measured stay. Steps that are taken for every target stay in front.

    Args:
        graph: The trace.
        candidates: The units to choose from, and the steps that the constraints allow.
        sensitivity: The measured losses.
    """
    loss, share = np.full(graph.unit_count, np.nan), np.zeros(graph.unit_count)
    for layers, units in layer_groups(graph).items():
        measured = sensitivity.group(layers)
        if measured is not None:
            mine = candidates.order[np.isin(candidates.order, units)]
            share[mine] = np.arange(1, len(mine) + 1) / len(units)
            loss[mine] = measured.losses_at(share[mine], sensitivity.accuracy)
    steps = _steps(candidates)
    forced, free = steps[: candidates.forced_steps], steps[candidates.forced_steps :]
    free = [step for step in free if not np.isnan(loss[step]).any()]
    free.sort(key=lambda step: (loss[step].max(), share[step].max()))
    return _with_steps(graph, candidates, [*forced, *free], forced_steps=len(forced))


def with_sensitivity(scored: ScoredNetwork, sensitivity: Sensitivity) -> ScoredNetwork:
    """Return a network whose groups lose as much as their sensitivity says, with a note on groups without one.

    Raises:
        ConfigError: No group was measured, for example because the other one was traced with other gates.
    """
    groups = prunable_groups(scored)
    missing = [layers for layers in groups if sensitivity.group(layers) is None]
    if groups and len(missing) == len(groups):
        raise ConfigError(
            "no layer of the network is in the sensitivity table. Make a table with the same coupling: bnprune "
            "sensitivity.",
            argument="sensitivity",
        )
    if not missing:
        return replace(scored, sensitivity=sensitivity)
    first = ", ".join(layers[0] for layers in missing[:3]) + (" and others" if len(missing) > 3 else "")
    several = (
        f"{len(missing)} groups of layers keep their width" if len(missing) > 1 else "1 group of layers keeps its width"
    )
    text = f"{several}: no sensitivity was measured ({first})"
    notes = (*scored.criterion_notes, Note("sensitivity.missing", "note", text))
    return replace(scored, sensitivity=sensitivity, criterion_notes=notes)


def sensitivity_notes(drafted: DraftPlan) -> tuple[Note, ...]:
    """Return notes on what the sensitivity table does not say about a cut: its criterion, and larger shares."""
    sensitivity, graph = drafted.scored.sensitivity, drafted.scored.graph
    if sensitivity is None:
        return ()
    notes = []
    measured, used = sensitivity.settings.get("criterion"), drafted.scored.request.ranked_by
    if measured != used:
        text = f"the sensitivity table was measured with criterion {measured}, and channels are ranked by {used}"
        notes.append(Note("sensitivity.criterion", "note", text))
    beyond = []
    for layers, units in layer_groups(graph).items():
        known = sensitivity.group(layers)
        if known is not None and drafted.removed[units].sum() > known.points[-1].removed:
            beyond.append(layers[0])
    if beyond:
        names = ", ".join(beyond[:3]) + (" and others" if len(beyond) > 3 else "")
        text = f"some layers lose more channels than the sensitivity table has measured: {names}"
        notes.append(Note("sensitivity.beyond", "warning", text))
    return tuple(notes)


def _steps(candidates: Candidates) -> list[Ids]:
    return np.split(candidates.order, candidates.step_ends[:-1]) if candidates.order.size else []


def _with_steps(graph: ChannelGraph, candidates: Candidates, steps: list[Ids], forced_steps: int = 0) -> Candidates:
    order = np.concatenate([*steps, np.zeros(0, np.int64)]).astype(np.int64)
    ends = np.cumsum([len(step) for step in steps], dtype=np.int64)
    step_of_unit = np.full(graph.unit_count, -1, dtype=np.int64)
    step_of_unit[order] = np.arange(len(ends)).repeat(np.diff(ends, prepend=0))
    return replace(candidates, order=order, step_ends=ends, step_of_unit=step_of_unit, forced_steps=forced_steps)
