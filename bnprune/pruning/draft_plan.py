"""A draft plan: a selection of channels that has passed the dry run. It can be reported, or carried out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
from torch import nn

from bnprune.channels.gate_sites import Gates
from bnprune.channels.graph import ChannelGraph
from bnprune.channels.head_units import HeadSites
from bnprune.channels.modules import parameter_count
from bnprune.channels.op_context import Count
from bnprune.channels.union_find import Refusal
from bnprune.errors import PruningError
from bnprune.notes import Note
from bnprune.pruning.attribute_reads import Attribute
from bnprune.pruning.candidates import Candidates, Constraints, Mask, own_ratios
from bnprune.pruning.criterion_choice import NOT_SEPARATED
from bnprune.pruning.cut_notes import ScaleFactors, note_on_equal_gammas, notes_on_cut, notes_on_idle_norms
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.request import Request, TargetKind
from bnprune.pruning.scores import Scores, Statistics, needs_data
from bnprune.pruning.select import refusals, require_prunable, shortfall
from bnprune.pruning.sensitivity import Sensitivity

_NOTABLE_SHARE = 0.02
"""Smallest share of the BatchNorm channels for which the advice to use gates is given."""
_NOTABLE_DISTANCE = 0.015
"""Smallest distance from a target, as a share of the whole, that a note explains; for a cost, the distance below it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A target and the value that was reached."""

    kind: TargetKind
    requested: float
    realised: float


@dataclass(frozen=True, slots=True)
class WrittenDeviation:
    """The standard deviation γ̂ of what a layer without a BatchNorm writes into channels that others rank by γ."""

    layer: str
    units: int
    """Units that it writes."""
    median: float
    """Median γ̂ of their channels."""
    kept: int
    """Units that stay, and that by γ alone would have been removed before others."""


@dataclass(frozen=True)
class DryRunFindings:
    """Results of dry runs: code that depends on a width, and its consequences."""

    kept: Mapping[int, Refusal] = field(default_factory=dict)
    """Units that must stay, with reasons."""
    sizes: tuple[Count, ...] = ()
    """Attributes that seem to hold widths, and are changed in the slim network."""
    not_sizes: frozenset[tuple[str, str]] = frozenset()
    """(module, attribute) of attributes that turned out to hold no width."""
    complete: bool = True
    """False if a dry run failed for an unknown reason."""


@dataclass(frozen=True)
class ScoredNetwork:
    """The trace of a network, the scores of its channels, and which of them must stay for every target."""

    graph: ChannelGraph
    scores: Scores
    scores_by_gamma: Scores
    """Scores without γ̂, the deviations of layers without a BatchNorm; the same object if there are none."""
    request: Request
    params: int
    seconds: float
    required_gates: Gates = field(default_factory=dict)
    """Gates without which no channel could be removed."""
    findings: DryRunFindings = DryRunFindings()
    """Results of the probe, which hold for every target; see `bnprune.pruning.probe`."""
    probed_channels: int = 0
    """BatchNorm channels that are prunable according to the probe."""
    heads: HeadSites = field(default_factory=dict)
    """Modules in which attention heads have other units than by default."""
    gammas: ScaleFactors = field(default_factory=dict)
    """|γ| of each BatchNorm, by name of the tensor."""
    statistics: Statistics | None = None
    """Statistics that the criterion has measured on calibration data."""
    criterion_notes: tuple[Note, ...] = ()
    """Remarks on the choice of the criterion and on least widths."""
    reads: frozenset[Attribute] = frozenset()
    """Attributes of modules that the traced passes have read, of those that may hold widths."""
    sensitivity: Sensitivity | None = None
    """Decides how much each group of layers loses; by default, the scores are compared across all layers."""

    @property
    def least_width(self) -> float:
        """As in the request; 0 with sensitivities, which do not compare scores across layers."""
        return self.request.least_width if self.sensitivity is None else 0.0

    @property
    def notes(self) -> tuple[Note, ...]:
        """Remarks on the trace."""
        return (*self.graph.notes, *notes_on_idle_norms(self.graph))

    def cost_of(self, kind: TargetKind) -> int:
        """MACs or parameters of the network as it is."""
        return self.graph.traces["eval"].macs if kind == "macs" else self.params


@dataclass(frozen=True)
class DraftPlan:
    """A selection that has passed the dry run, with everything needed to carry it out."""

    scored: ScoredNetwork
    candidates: Candidates
    removed: Mask
    """True for units that are removed, shape (units,)."""
    plan: PruningPlan
    meta_slim: nn.Module
    """The slim network without weights."""
    macs: int
    """Of the slim network."""
    seconds: float = 0.0
    latency_ms: float | None = None
    """Of the slim network, if the target was a latency."""
    latency_notes: tuple[Note, ...] = ()
    """Remarks about how that was found."""
    gate_candidates: int = 0
    """BatchNorm channels that stay, but might be removed with gates."""
    found_late: int = 0
    """BatchNorm channels that are prunable according to the probe, but must stay at the widths of this selection."""
    size_notes: tuple[Note, ...] = ()
    """Attributes that may hold a width, although no operator of the trace depends on them."""

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """The reasons why channels stay."""
        return tuple(why for why, _ in refusals(self.scored.graph, self.scored.scores, self.candidates.kept))

    @property
    def notes(self) -> tuple[Note, ...]:
        """Remarks on the trace, on how the request was met, and on the channels that were chosen."""
        notes = [*self.scored.notes, *self.advice]
        if self.scored.required_gates:
            text = (
                "grouped convolutions couple all streams to one that must stay: gates after them decouple the streams"
            )
            notes.append(Note("gates.required", "note", text))
        if self.found_late:
            count = f"{self.found_late} BatchNorm channels"
            text = f"{count} must stay only at the widths of this selection: other targets may prune them"
            notes.append(Note("prunable.found_late", "note", text))
        scored = self.scored
        on_cut: tuple[Note, ...] = ()
        if not needs_data(scored.request.ranked_by):  # else γ did not decide
            on_cut = tuple(notes_on_cut(scored.graph, scored.gammas, scored.scores, self.candidates, self.removed))
        on_criterion = [note for note in scored.criterion_notes if not on_cut or note.code != NOT_SEPARATED.code]
        further = (*self._notes_on_target(), *self._notes_on_layer_ratios(), *self._notes_on_deviations())
        return (*notes, *further, *self.latency_notes, *self.size_notes, *on_cut, *on_criterion)

    def noted(self, note: Note) -> DraftPlan:
        """Return the draft with one more remark on how layers were limited."""
        notes = (*self.scored.criterion_notes, note)
        return replace(self, scored=replace(self.scored, criterion_notes=notes))

    @property
    def advice(self) -> tuple[Note, ...]:
        """How more channels could be removed."""
        if self.gate_candidates <= _NOTABLE_SHARE * self.scored.graph.gamma_count.sum():
            return ()
        count = f"{self.gate_candidates} BatchNorm channels"
        text = f"{count} are coupled to a stream that must stay: coupling 'gates' may make them prunable"
        return (Note("gates.may_help", "note", text),)

    @property
    def notes_on_network(self) -> tuple[Note, ...]:
        """Remarks that hold for every cut of the network."""
        note = note_on_equal_gammas(self.scored.graph, self.scored.gammas, self.candidates.prunable)
        return (note,) if note else ()

    def _notes_on_target(self) -> list[Note]:
        kind, requested, realised = self.target.kind, self.target.requested, self.target.realised
        if kind == "ratio":
            is_explained = abs(requested - realised) > _NOTABLE_DISTANCE and self._is_off_by_a_channel
        else:
            is_explained = kind != "latency_ms" and requested - realised > _NOTABLE_DISTANCE
        text = f"{kind} {realised:.3f} instead of {requested:g}: {self._reason_for_distance}"
        return [Note("target.not_met", "note", text)] if is_explained else []

    @property
    def _is_off_by_a_channel(self) -> bool:
        return abs(self.target.requested - self.ratio) * self.channels[0] >= 1

    @property
    def _reason_for_distance(self) -> str:
        """Why the target and the value that was reached differ."""
        too_few_removed = self.target.kind == "ratio" and self.ratio < self.target.requested
        if self._own_ratios() and self._is_minimal and not too_few_removed:
            return "layer_ratios alone remove that much"
        constraints = self.scored.request.constraints
        if too_few_removed and self.removed[self.candidates.order].all():
            return _limits(constraints)
        if constraints.round_to > 1:
            return f"widths stay multiples of {constraints.round_to}"
        return "some channels can only be removed together"

    def _notes_on_layer_ratios(self) -> list[Note]:
        return [
            Note(
                "layer_ratios.not_met",
                "note",
                f"layer_ratios: {name}: {realised:.3f} of its channels are removed, not {asked:g}: other constraints "
                "forbid it",
            )
            for name, (asked, realised, width) in self._own_ratios().items()
            if abs(asked - realised) * width >= 1
        ]

    def _notes_on_deviations(self) -> list[Note]:
        decided = {written.layer: written.kept for written in self.written if written.kept}
        if not decided:
            return []
        first = ", ".join([*decided][:3]) + (f" and {len(decided) - 3} more" if len(decided) > 3 else "")
        text = (
            f"{int(self._kept_by_deviation().sum())} units stay although their γ are small: layers without a BatchNorm "
            f"write them, which are ranked by the standard deviation of their outputs ({first})"
        )
        return [Note("deviation.decided", "note", text)]

    def _kept_by_deviation(self) -> Mask:
        """Return True for units that stay, but would have been removed before others by γ alone; shape (units,)."""
        by_gamma, removed = self.scored.scores_by_gamma, self.removed
        if by_gamma is self.scored.scores or not removed.any():
            return np.zeros_like(removed)
        stays = self.candidates.prunable & ~removed & (self.scored.scores > by_gamma)
        kept: Mask = stays & (by_gamma < by_gamma[removed].max())
        return kept

    @property
    def written(self) -> tuple[WrittenDeviation, ...]:
        """γ̂ of the layers without a BatchNorm that write ranked channels, in the order of the network."""
        kept = self._kept_by_deviation()
        return tuple(
            WrittenDeviation(d.layer, len(d.units), float(np.median(d.values)), int(kept[d.units].sum()))
            for d in self.scored.graph.deviations
        )

    @property
    def _is_minimal(self) -> bool:
        """True if only the channels are removed that `layer_ratios` remove for every target."""
        steps = self.candidates.step_of_unit[self.removed]
        return not (steps >= self.candidates.forced_steps).any()

    def _own_ratios(self) -> dict[str, tuple[float, float, int]]:
        """Return requested ratio, realised ratio and width of the layers with a ratio of their own."""
        graph = self.scored.graph
        asked = own_ratios(graph, self.scored.request.constraints.layer_ratios)
        layers = {layer.name: graph.units(layer.ids) for layer in graph.layers if layer.name in asked}
        return {name: (asked[name], float(self.removed[units].mean()), len(units)) for name, units in layers.items()}

    @property
    def falls_short(self) -> bool:
        """True if the constraints keep it from reaching a ratio."""
        request = self.scored.request
        if request.ratio is None:
            return False
        arguments = self.scored.graph, self.candidates, self.removed
        return bool(shortfall(*arguments, request.ratio, request.constraints))

    @property
    def channels(self) -> tuple[int, int]:
        """Prunable BatchNorm channels before and after."""
        counts = self.scored.graph.gamma_count
        before = int(counts[self.candidates.prunable].sum())
        return before, before - int(counts[self.removed].sum())

    @property
    def ratio(self) -> float:
        """Removed share of the prunable BatchNorm channels."""
        before, after = self.channels
        return (before - after) / max(before, 1)

    def cost_of(self, kind: TargetKind) -> int:
        """MACs or parameters of the slim network."""
        return self.macs if kind == "macs" else parameter_count(self.meta_slim)

    @property
    def target(self) -> Target:
        """The target and the value that was reached."""
        kind, requested = self.scored.request.target
        return Target(kind, requested, self._realised(kind))

    def _realised(self, kind: TargetKind) -> float:
        match kind:
            case "ratio":
                return self.ratio
            case "latency_ms":
                return float("nan") if self.latency_ms is None else self.latency_ms
        return self.cost_of(kind) / max(self.scored.cost_of(kind), 1)


def _limits(constraints: Constraints) -> str:
    """Name the constraints that prevent the removal of further channels; not those that limit what is prunable."""
    limits = [item for item in fields(constraints) if item.name not in ("exclude", "include")]
    names = [item.name for item in limits if getattr(constraints, item.name) != item.default]
    return f"limited by {' and '.join(names)}" if names else "every layer keeps one channel"


def require_cut(draft: DraftPlan) -> None:
    """Refuse a draft that leaves the network as it is.

    Raises:
        PruningError: No channel can be pruned, or the ratio is too small to remove a channel.
    """
    require_prunable(draft.scored.graph, draft.candidates, draft.advice)
    if not draft.plan.cuts:
        kind, value = draft.scored.request.target
        count = draft.channels[0]
        more = "Raise the ratio" if kind == "ratio" else f"Lower {kind}"
        asked = f"{kind} {value:g}"
        asked += f" of {count} prunable channels is {value * count:.2g}," if kind == "ratio" else " is"
        raise PruningError(
            f"nothing is removed: {asked} closer to zero than to the smallest number that can be removed. {more}."
        )


def describe_plan(draft: DraftPlan) -> PruningPlan:
    """Return the draft's plan with the request, the values reached, the refusals and the notes."""
    scored, request = draft.scored, draft.scored.request
    before, after = draft.channels
    reason = f"too few of its channels can be removed to keep its width a multiple of {request.round_to}"
    portions = [Refusal(name, reason, "lower round_to") for name in draft.candidates.unfilled]
    floors = []
    if request.ratio is not None:
        floors = shortfall(scored.graph, draft.candidates, draft.removed, request.ratio, request.constraints)
    return replace(
        draft.plan,
        requested=request.to_dict(),
        realised={
            draft.target.kind: draft.target.realised,
            "ratio": draft.ratio,
            "channels": {"before": before, "after": after},
        },
        refusals=(*floors, *portions, *draft.refusals),
        notes=draft.notes,
    )
