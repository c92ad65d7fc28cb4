"""A draft plan: a selection of channels that has passed the dry run. It can be reported, or carried out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from bnprune.channels.gate_sites import Gates
from bnprune.channels.graph import ChannelGraph
from bnprune.channels.head_units import HeadSites
from bnprune.channels.modules import parameter_count
from bnprune.channels.op_context import Count
from bnprune.channels.union_find import Refusal
from bnprune.errors import PruningError
from bnprune.notes import Note
from bnprune.pruning.candidates import Candidates, Mask, own_ratios
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.request import Request, TargetKind
from bnprune.pruning.scores import Scores
from bnprune.pruning.select import refusals, require_prunable, shortfall

_NOTABLE_SHARE = 0.02
"""Share of the BatchNorm channels from which on the advice to use gates is given."""
_NOTABLE_UNDERSHOOT = 0.015
"""Distance below a cost target, as a share of the whole cost, from which on a note explains it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A target and the value that was reached."""

    kind: TargetKind
    requested: float
    realised: float


@dataclass(frozen=True)
class DryRunFindings:
    """What dry runs have found: code that depends on a width."""

    kept: Mapping[int, Refusal] = field(default_factory=dict)
    """Units that must stay, with reasons."""
    sizes: tuple[Count, ...] = ()
    """Attributes that seem to hold widths, and are changed in the slim network."""
    not_sizes: frozenset[tuple[str, str]] = frozenset()
    """(module, attribute) of attributes that turned out to hold no width."""
    complete: bool = True
    """False if a dry run failed for a reason that nothing explains."""


@dataclass(frozen=True)
class ScoredNetwork:
    """The trace of a network, the scores of its channels, and which of them must stay for every target."""

    graph: ChannelGraph
    scores: Scores
    request: Request
    params: int
    seconds: float
    required_gates: Gates = field(default_factory=dict)
    """Gates without which no channel could be removed."""
    findings: DryRunFindings = DryRunFindings()
    """What the probe has found, for every target; see `bnprune.pruning.probe`."""
    probed_channels: int = 0
    """BatchNorm channels that are prunable as far as the probe shows."""
    heads: HeadSites = field(default_factory=dict)
    """Modules in which attention heads have other units than by default."""

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
    """BatchNorm channels that the probe took for prunable, but that must stay at the widths of this selection."""
    size_notes: tuple[Note, ...] = ()
    """Attributes that may hold a width, although no operator of the trace depends on them."""

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """The reasons why channels stay."""
        return tuple(why for why, _ in refusals(self.scored.graph, self.scored.scores, self.candidates.kept))

    @property
    def notes(self) -> tuple[Note, ...]:
        """Remarks about how the request was met."""
        notes = list(self.advice)
        if self.scored.required_gates:
            text = "grouped convolutions tie all streams to one that must stay: gates behind them take these apart"
            notes.append(Note("gates.required", "note", text))
        if self.found_late:
            count = f"{self.found_late} BatchNorm channels"
            text = f"{count} must stay only at the widths of this selection: other targets may prune them"
            notes.append(Note("prunable.found_late", "note", text))
        return (*notes, *self._notes_on_target(), *self._notes_on_layer_ratios(), *self.latency_notes, *self.size_notes)

    @property
    def advice(self) -> tuple[Note, ...]:
        """How more channels could be removed."""
        if self.gate_candidates <= _NOTABLE_SHARE * self.scored.graph.gamma_count.sum():
            return ()
        count = f"{self.gate_candidates} BatchNorm channels"
        text = f"{count} stay with a stream that must stay: coupling 'gates' may let them go"
        return (Note("gates.may_help", "note", text),)

    def _notes_on_target(self) -> list[Note]:
        kind, requested, realised = self.target.kind, self.target.requested, self.target.realised
        by_layer_ratios = bool(self._own_ratios()) and self._is_minimal
        reason = "layer_ratios alone take that much" if by_layer_ratios else "channels go in sets"
        if kind in ("macs", "params"):
            explained = requested - realised > _NOTABLE_UNDERSHOOT
        else:
            explained = kind == "ratio" and by_layer_ratios and realised - requested > _NOTABLE_UNDERSHOOT
        text = f"{kind} {realised:.3f} instead of {requested:g}: {reason}"
        return [Note("target.not_met", "note", text)] if explained else []

    def _notes_on_layer_ratios(self) -> list[Note]:
        return [
            Note(
                "layer_ratios.not_met",
                "note",
                f"layer_ratios: {name}: {realised:.3f} of it went, asked {asked:g}: other constraints forbid more",
            )
            for name, (asked, realised, width) in self._own_ratios().items()
            if abs(asked - realised) * width >= 1
        ]

    @property
    def _is_minimal(self) -> bool:
        """True if only channels are removed that go for every target (`layer_ratios`)."""
        steps = self.candidates.step_of_unit[self.removed]
        return not (steps >= self.candidates.forced_steps).any()

    def _own_ratios(self) -> dict[str, tuple[float, float, int]]:
        """Return asked ratio, realised ratio and width of the layers with a ratio of their own."""
        graph = self.scored.graph
        asked = own_ratios(graph, self.scored.request.constraints.layer_ratios)
        layers = {layer.name: graph.units(layer.ids) for layer in graph.layers if layer.name in asked}
        return {name: (asked[name], float(self.removed[units].mean()), len(units)) for name, units in layers.items()}

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


def require_cut(draft: DraftPlan) -> None:
    """Refuse a draft that leaves the network as it is.

    Raises:
        PruningError: No channel can be pruned, or the ratio is too small for a channel to go.
    """
    require_prunable(draft.scored.graph, draft.candidates, draft.advice)
    if not draft.plan.cuts:
        kind, value = draft.scored.request.target
        count = draft.channels[0]
        more = "Raise the ratio" if kind == "ratio" else f"Lower {kind}"
        asked = f"{kind} {value:g}"
        asked += f" of {count} prunable channels is {value * count:.2g}," if kind == "ratio" else " is"
        raise PruningError(
            f"nothing is removed: {asked} nearer to none than to the fewest that can go together. {more}."
        )


def describe_plan(draft: DraftPlan) -> PruningPlan:
    """Return the draft's plan with the request, the values reached, and the refusals."""
    scored, request = draft.scored, draft.scored.request
    before, after = draft.channels
    reason = f"fewer of its channels can go than fill a portion that keeps multiples of {request.round_to}"
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
    )
