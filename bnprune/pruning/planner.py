"""Drafts: trace, score, select and rehearse, until a selection does what was asked. Nothing is cut yet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from bnprune.channels.gate_sites import GateKind, Gates, GateSite, Operators, separating_gates, useful_gates
from bnprune.channels.graph import ChannelGraph
from bnprune.channels.modules import modules_by_name, parameter_count
from bnprune.channels.op_context import Count
from bnprune.channels.pytrees import Inputs, as_inputs
from bnprune.channels.trace_network import require_repeatable, trace
from bnprune.channels.union_find import NO_CHANNEL, Ids, Refusal
from bnprune.errors import PruningError, TraceError
from bnprune.pruning.bias_folding import find_folds
from bnprune.pruning.candidates import Candidates, Mask, candidates, excluded_layers, own_ratios
from bnprune.pruning.cost_model import CostModel
from bnprune.pruning.dry_run import DryRun, dry_run
from bnprune.pruning.plan import PruningPlan, make_plan
from bnprune.pruning.request import Request, TargetKind
from bnprune.pruning.scores import CRITERIA, Scores, require_finite, with_streams
from bnprune.pruning.select import by_cost, by_ratio, refusals, require_prunable, shortfall
from bnprune.pruning.surgery import copy_weights, named_tensors, require_values, slim_on_meta

_NOTEWORTHY = 0.02
"""Share of the BatchNorm channels that is worth a word."""
_COARSE = 0.015
"""Distance below a cost target, as a share of the whole cost, that the report explains."""


@dataclass(frozen=True, slots=True)
class Target:
    """What was asked for, and what came of it."""

    kind: TargetKind
    requested: float
    realised: float


@dataclass(frozen=True)
class ScoredNetwork:
    """A network, followed and scored."""

    graph: ChannelGraph
    scores: Scores
    request: Request
    params: int
    seconds: float
    untied: Gates = field(default_factory=dict)
    """Gates without which nothing could go."""

    def cost_of(self, kind: TargetKind) -> int:
        """MACs or parameters of the network as it is."""
        return self.graph.traces["eval"].macs if kind == "macs" else self.params


@dataclass(frozen=True)
class DraftPlan:
    """A selection that has passed the dry run, with everything needed to carry it out."""

    score_network: ScoredNetwork
    chosen: Candidates
    removed: Mask
    plan: PruningPlan
    meta_slim: nn.Module
    """The slim network without weights."""
    macs: int
    """Of the slim network."""
    seconds: float = 0.0
    latency_ms: float | None = None
    """Of the slim network, where the target was a latency."""
    gateable: int = 0
    """BatchNorm channels that stay where a gate could stand."""

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Why channels stay."""
        return tuple(why for why, _ in refusals(self.score_network.graph, self.score_network.scores, self.chosen.kept))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing about how the request was met."""
        kind, requested, realised = self.target.kind, self.target.requested, self.target.realised
        notes = list(self.advice)
        own = self._own_ratios()
        if self.score_network.untied:
            notes.append(
                "grouped convolutions tie all streams to one that must stay: gates behind them take these apart"
            )
        if kind in ("macs", "params") and requested - realised > _COARSE:
            why = "layer_ratios alone take that much" if own and self._is_least else "channels go in sets"
            notes.append(f"{kind} {realised:.3f} instead of {requested:g}: {why}")
        if kind == "ratio" and own and self._is_least and realised - requested > _COARSE:
            notes.append(f"ratio {realised:.3f} instead of {requested:g}: layer_ratios alone take that much")
        for name, (asked, got, width) in own.items():
            if abs(asked - got) * width >= 1:
                notes.append(
                    f"layer_ratios: {name}: {got:.3f} of it went, asked {asked:g}: other constraints forbid more"
                )
        return tuple(notes)

    @property
    def advice(self) -> tuple[str, ...]:
        """What would let more channels go."""
        if self.gateable <= _NOTEWORTHY * self.score_network.graph.gamma_count.sum():
            return ()
        many = f"{self.gateable} BatchNorm channels"
        return (f"{many} stay with a stream that must stay: coupling 'gates' may let them go",)

    @property
    def _is_least(self) -> bool:
        """Whether nothing went but what goes in any case."""
        return not (self.chosen.step_of[self.removed] >= self.chosen.least).any()

    def _own_ratios(self) -> dict[str, tuple[float, float, int]]:
        """Asked and realised ratio and width of layers with a ratio of their own."""
        graph = self.score_network.graph
        wanted = own_ratios(graph, self.score_network.request.constraints.layer_ratios)
        layers = {layer.name: graph.units(layer.ids) for layer in graph.layers if layer.name in wanted}
        return {name: (wanted[name], float(self.removed[units].mean()), len(units)) for name, units in layers.items()}

    @property
    def channels(self) -> tuple[int, int]:
        """Prunable BatchNorm channels before and after."""
        counts = self.score_network.graph.gamma_count
        before = int(counts[self.chosen.prunable].sum())
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
        """What was asked for, and what came of it."""
        kind, requested = self.score_network.request.target
        return Target(kind, requested, self._realised(kind))

    def _realised(self, kind: TargetKind) -> float:
        match kind:
            case "ratio":
                return self.ratio
            case "latency_ms":
                return float("nan") if self.latency_ms is None else self.latency_ms
        return self.cost_of(kind) / max(self.score_network.cost_of(kind), 1)


def score_network(model: nn.Module, example_inputs: Any, request: Request, gates: Gates | None = None) -> ScoredNetwork:
    """Trace and score a network, with `gates` in any case. Errors as for `prune`."""
    started = time.perf_counter()
    require_values(model, example_inputs)
    graph = _trace(model, example_inputs, request, gates)
    tensors = dict(named_tensors(model))
    require_finite(graph, tensors)
    scores = CRITERIA[request.criterion](graph, tensors, request.reduce)
    scored = with_streams(graph, scores)
    return ScoredNetwork(graph, scored, request, parameter_count(model), time.perf_counter() - started, gates or {})


def _trace(model: nn.Module, example_inputs: Any, request: Request, gates: Gates | None) -> ChannelGraph:
    return trace(model, example_inputs, exact=request.weighs_macs, coupling=request.coupling, gates=gates)


def plan_cut(model: nn.Module, example_inputs: Any, found: ScoredNetwork) -> DraftPlan:
    """Select and rehearse until the slim network runs as expected and costs what was asked; nothing is cut yet.

    Where nothing can go because grouped convolutions tie everything to channels that must stay, gates behind them take
    the streams apart.

    Where nothing can be pruned, nothing is selected (`Draft.chosen.prunable` is empty). A target in milliseconds needs
    measurements: see `bnprune.pruning.latency_search`.

    Raises:
        PruningError: The target cannot be reached; the message says how near one can get.
    """
    started = time.perf_counter()
    planner = _Planner(model, as_inputs(example_inputs), found)
    best = _best(planner)
    if not best.removed.any() and not found.untied:
        best = _untied(planner, example_inputs) or best
    return replace(best, seconds=time.perf_counter() - started, gateable=planner.gateable(best))


def _untied(planner: _Planner, example_inputs: Any) -> DraftPlan | None:
    """Try with gates behind grouped convolutions, and then with those alone that are needed; None if they do not help.

    A grouped convolution ties the stream it reads to the one it writes, and so, channels that must stay to all others.
    """
    best, gates = None, planner.separating_gates()
    while gates:
        found = score_network(planner.model, example_inputs, planner.found.request, gates)
        planner = _Planner(planner.model, planner.inputs, found)
        best = _best(planner)
        gates, tried = planner.dividing(), gates
        if gates == tried:
            break
    return best if best is not None and best.removed.any() else None


def _best(planner: _Planner) -> DraftPlan:
    kind, share = planner.found.request.target
    if kind == "ratio":
        return planner.follow(lambda chosen: by_ratio(planner.found.graph, chosen, share))
    return _to_cost(planner, kind, share)


_AIMS = 10
"""How often a cost target is corrected by what the dry run has counted."""
_NEAR = 0.01
"""Undershoot, as a share of the whole cost, that is not worth another correction."""
_FINE = 0.002
"""Difference of aims, as a share of the whole cost, that is not worth a try."""


def _to_cost(planner: _Planner, kind: TargetKind, share: float) -> DraftPlan:
    """Aim at a cost, and correct the aim by what the slim network really costs; bisect where that leads astray."""
    graph, cost_model = planner.found.graph, CostModel(planner.found.graph, planner.model)
    estimate = cost_model.macs if kind == "macs" else cost_model.params
    whole = planner.found.cost_of(kind)
    limit = aim = share * whole
    low, high = 0.0, math.inf  # aims below which too much goes, above which too little
    best: DraftPlan | None = None
    for _ in range(_AIMS):
        draft = planner.follow(partial(by_cost, graph, cost=estimate, target=aim))
        real = draft.cost_of(kind)
        if best is None or _nearer(real, best.cost_of(kind), limit):
            best = draft
        if limit - _NEAR * whole <= real <= limit:
            break
        low, high = (max(low, aim), high) if real <= limit else (low, min(high, aim))
        corrected = limit - (real - estimate(draft.removed))
        if not low < corrected < high:
            corrected = (low + min(high, whole)) / 2
        if abs(corrected - aim) < _FINE * whole and best.cost_of(kind) <= limit:
            break
        aim = corrected
    assert best is not None
    if best.cost_of(kind) > limit and best.chosen.order.size:
        nearest = math.ceil(1000 * best.cost_of(kind) / whole) / 1000
        raise PruningError(
            f"{kind} {share:g} cannot be reached: what must stay costs {nearest:.3f} of the network's {kind}. "
            f"Ask for {kind} {nearest:.3f} or more, or loosen min_channels, cap, round_to or exclude."
        )
    return best


def _nearer(cost: int, best: int, limit: float) -> bool:
    """Tell whether a cost is better: below the limit, as high as possible; else as low as possible."""
    if best <= limit:
        return best < cost <= limit
    return cost < best


class _Planner:
    """The dry runs of one network: what they have shown holds for all further selections."""

    def __init__(self, model: nn.Module, inputs: Inputs, found: ScoredNetwork) -> None:
        self.model = model
        self.inputs = inputs
        self.found = found
        self._kept: dict[int, Refusal] = {}
        self._sizes: list[Count] = []
        self._barred: set[tuple[str, str]] = set()
        self._steady = False
        self._folds = find_folds(model, inputs) if found.request.fold_bias else ()

    def follow(self, select: Callable[[Candidates], Mask]) -> DraftPlan:
        """Select and rehearse until the slim network runs as expected."""
        graph = self.found.graph
        while True:
            chosen = candidates(graph, self.found.scores, self.found.request.constraints, self._kept)
            removed = select(chosen)
            plan = make_plan(graph, self.model, removed, self._sizes)
            meta_slim = slim_on_meta(plan, self.model)
            trial = self._dry_run(meta_slim, removed)
            if graph.real and not trial.passed:  # it may have lacked nothing but values
                meta_slim = copy_weights(meta_slim, plan, self.model)
                trial = self._dry_run(meta_slim, removed, real=True)
            if trial.passed:
                plan, meta_slim = self._folded(plan, meta_slim)
                return DraftPlan(self.found, chosen, removed, plan, meta_slim, trial.macs)
            if trial.other_code and not self._steady:
                self._require_steady()
            self._learn(trial)

    def _require_steady(self) -> None:
        """Refuse a network that does something else each time, before its channels are kept for it."""
        found, (args, kwargs) = self.found, self.inputs
        require_repeatable(found.graph, _trace(self.model, kwargs or args, found.request, found.untied))
        self._steady = True

    def separating_gates(self) -> dict[str, GateKind]:
        """Return gates that would take apart streams in which something must stay."""
        return separating_gates(*self._crossings())

    def _crossings(self) -> tuple[Sequence[GateSite], Ids, Mask, Mapping[str, nn.Module], Operators]:
        graph, passed = self.found.graph, self.found.graph.traces["eval"]
        operators = passed.op_kinds_in({gate_site.site for gate_site in passed.gate_sites})
        return passed.gate_sites, graph.unit_of, self._stuck(), modules_by_name(self.model), operators

    def gateable(self, draft: DraftPlan) -> int:
        """Count the BatchNorm channels that stay in a draft without gates, where a gate could stand.

        Not all of them need be free behind it: what makes a stream stay may be before the BatchNorm.
        """
        graph, request = draft.score_network.graph, draft.score_network.request
        if request.coupling == "gates" or draft.score_network.untied or not self._stuck()[graph.gamma_count > 0].any():
            return 0
        gate_sites, unit_of, stuck, *_ = crossings = self._crossings()
        sites = useful_gates(*crossings).keys() - excluded_layers(graph, request.exclude)
        return sum(int(stuck[unit_of[gate_site.ids]].sum()) for gate_site in gate_sites if gate_site.site in sites)

    def dividing(self) -> dict[str, GateKind]:
        """Return those gates that stand between a stream that must stay and channels that may go."""
        graph, stuck = self.found.graph, self._stuck()
        ends = {gate.site: (stuck[graph.units(gate.stream)], stuck[graph.units(gate.own)]) for gate in graph.gates}
        return {g.site: g.kind for g in graph.gates if ends[g.site][0].any() and not ends[g.site][1].all()}

    def _stuck(self) -> Mask:
        """Whether each unit must stay, as far as it is known, shape (units,)."""
        stuck = ~self.found.graph.free
        stuck[[*self._kept]] = True
        stuck[NO_CHANNEL] = False
        return stuck

    def _folded(self, plan: PruningPlan, meta_slim: nn.Module) -> tuple[PruningPlan, nn.Module]:
        gated = {gate.at for gate in plan.gates}
        folds = tuple(entry for entry in self._folds if entry.into not in gated)
        plan = replace(plan, folds=folds)
        return plan, slim_on_meta(plan, self.model) if folds else meta_slim

    def _dry_run(self, meta_slim: nn.Module, removed: Mask, *, real: bool = False) -> DryRun:
        return dry_run(
            meta_slim, self.found.graph, removed, self.inputs, self._kept, self._sizes, self._barred, real=real
        )

    def _learn(self, trial: DryRun) -> None:
        if not trial.kept and not trial.sizes:
            if not self._sizes:
                site, what = trial.misses[0]
                raise TraceError(f"{site or 'the network'}: the slim network does not run as expected: {what}")
            self._barred |= {(size.module, size.attribute) for size in self._sizes}  # they were no sizes after all
            self._sizes = []
        self._kept |= trial.kept
        self._sizes += trial.sizes


def require_cut(draft: DraftPlan) -> None:
    """Refuse a draft that leaves the network as it is.

    Raises:
        PruningError: Nothing can be pruned, or the ratio is too small for a channel to go.
    """
    require_prunable(draft.score_network.graph, draft.chosen, draft.advice)
    if not draft.plan.cuts:
        kind, value = draft.score_network.request.target
        count = draft.channels[0]
        more = "Raise the ratio" if kind == "ratio" else f"Lower {kind}"
        asked = f"{kind} {value:g}"
        asked += f" of {count} prunable channels is {value * count:.2g}," if kind == "ratio" else " is"
        raise PruningError(
            f"nothing is removed: {asked} nearer to none than to the fewest that can go together. {more}."
        )


def describe_plan(draft: DraftPlan) -> PruningPlan:
    """Return the draft's plan with what was asked for, what came of it, and the refusals."""
    found, request = draft.score_network, draft.score_network.request
    before, after = draft.channels
    reason = f"fewer of its channels can go than fill a portion that keeps multiples of {request.round_to}"
    portions = [Refusal(name, reason, "lower round_to") for name in draft.chosen.unfilled]
    floors = []
    if request.ratio is not None:
        floors = shortfall(found.graph, draft.chosen, draft.removed, request.ratio, request.constraints)
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
