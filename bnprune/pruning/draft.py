"""Drafts: trace, score, select and rehearse, until a selection does what was asked. Nothing is cut yet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from bnprune.channels.boundaries import Boundary, GateKind, Gates, Operators, untying, worth_a_gate
from bnprune.channels.call import Count
from bnprune.channels.graph import ChannelGraph
from bnprune.channels.ids import NO_CHANNEL, Ids, Refusal
from bnprune.channels.modules import parameter_count, walk
from bnprune.channels.trace import require_repeatable, trace
from bnprune.channels.trees import Inputs, as_inputs
from bnprune.errors import PruningError, TraceError
from bnprune.pruning.folding import find_folds
from bnprune.pruning.plan import PruningPlan, make_plan
from bnprune.pruning.rehearsal import Rehearsal, rehearse
from bnprune.pruning.request import Request, TargetKind
from bnprune.pruning.score import CRITERIA, Scores, require_finite, with_streams
from bnprune.pruning.select import by_cost, by_ratio, refusals, require_prunable, shortfall
from bnprune.pruning.steps import Candidates, Mask, candidates, excluded_layers, own_ratios
from bnprune.pruning.surgery import carve, fill, named_tensors, require_values
from bnprune.pruning.tally import Tally

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
class Survey:
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
class Draft:
    """A selection that has passed the rehearsal, with everything needed to carry it out."""

    survey: Survey
    chosen: Candidates
    removed: Mask
    plan: PruningPlan
    hollow: nn.Module
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
        return tuple(why for why, _ in refusals(self.survey.graph, self.survey.scores, self.chosen.kept))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing about how the request was met."""
        kind, requested, realised = self.target.kind, self.target.requested, self.target.realised
        notes = list(self.advice)
        own = self._own_ratios()
        if self.survey.untied:
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
        if self.gateable <= _NOTEWORTHY * self.survey.graph.gamma_count.sum():
            return ()
        many = f"{self.gateable} BatchNorm channels"
        return (f"{many} stay with a stream that must stay: coupling 'gates' may let them go",)

    @property
    def _is_least(self) -> bool:
        """Whether nothing went but what goes in any case."""
        return not (self.chosen.step_of[self.removed] >= self.chosen.least).any()

    def _own_ratios(self) -> dict[str, tuple[float, float, int]]:
        """Asked and realised ratio and width of layers with a ratio of their own."""
        graph = self.survey.graph
        wanted = own_ratios(graph, self.survey.request.constraints.layer_ratios)
        layers = {layer.name: graph.units(layer.ids) for layer in graph.layers if layer.name in wanted}
        return {name: (wanted[name], float(self.removed[units].mean()), len(units)) for name, units in layers.items()}

    @property
    def channels(self) -> tuple[int, int]:
        """Prunable BatchNorm channels before and after."""
        counts = self.survey.graph.gamma_count
        before = int(counts[self.chosen.prunable].sum())
        return before, before - int(counts[self.removed].sum())

    @property
    def ratio(self) -> float:
        """Removed share of the prunable BatchNorm channels."""
        before, after = self.channels
        return (before - after) / max(before, 1)

    def cost_of(self, kind: TargetKind) -> int:
        """MACs or parameters of the slim network."""
        return self.macs if kind == "macs" else parameter_count(self.hollow)

    @property
    def target(self) -> Target:
        """What was asked for, and what came of it."""
        kind, requested = self.survey.request.target
        return Target(kind, requested, self._realised(kind))

    def _realised(self, kind: TargetKind) -> float:
        match kind:
            case "ratio":
                return self.ratio
            case "latency_ms":
                return float("nan") if self.latency_ms is None else self.latency_ms
        return self.cost_of(kind) / max(self.survey.cost_of(kind), 1)


def survey(model: nn.Module, example_inputs: Any, request: Request, gates: Gates | None = None) -> Survey:
    """Trace and score a network, with `gates` in any case. Errors as for `prune`."""
    started = time.perf_counter()
    require_values(model, example_inputs)
    graph = _trace(model, example_inputs, request, gates)
    tensors = dict(named_tensors(model))
    require_finite(graph, tensors)
    scores = CRITERIA[request.criterion](graph, tensors, request.reduce)
    scored = with_streams(graph, scores)
    return Survey(graph, scored, request, parameter_count(model), time.perf_counter() - started, gates or {})


def _trace(model: nn.Module, example_inputs: Any, request: Request, gates: Gates | None) -> ChannelGraph:
    return trace(model, example_inputs, exact=request.weighs_macs, coupling=request.coupling, gates=gates)


def draft(model: nn.Module, example_inputs: Any, found: Survey) -> Draft:
    """Select and rehearse until the slim network runs as expected and costs what was asked; nothing is cut yet.

    Where nothing can go because grouped convolutions tie everything to channels that must stay, gates behind them take
    the streams apart.

    Where nothing can be pruned, nothing is selected (`Draft.chosen.prunable` is empty). A target in milliseconds needs
    measurements: see `bnprune.pruning.budget`.

    Raises:
        PruningError: The target cannot be reached; the message says how near one can get.
    """
    started = time.perf_counter()
    course = _Course(model, as_inputs(example_inputs), found)
    best = _best(course)
    if not best.removed.any() and not found.untied:
        best = _untied(course, example_inputs) or best
    return replace(best, seconds=time.perf_counter() - started, gateable=course.gateable(best))


def _untied(course: _Course, example_inputs: Any) -> Draft | None:
    """Try with gates behind grouped convolutions, and then with those alone that are needed; None if they do not help.

    A grouped convolution ties the stream it reads to the one it writes, and so, channels that must stay to all others.
    """
    best, gates = None, course.untying()
    while gates:
        found = survey(course.model, example_inputs, course.found.request, gates)
        course = _Course(course.model, course.inputs, found)
        best = _best(course)
        gates, tried = course.dividing(), gates
        if gates == tried:
            break
    return best if best is not None and best.removed.any() else None


def _best(course: _Course) -> Draft:
    kind, share = course.found.request.target
    if kind == "ratio":
        return course.follow(lambda chosen: by_ratio(course.found.graph, chosen, share))
    return _to_cost(course, kind, share)


_AIMS = 10
"""How often a cost target is corrected by what the rehearsal has counted."""
_NEAR = 0.01
"""Undershoot, as a share of the whole cost, that is not worth another correction."""
_FINE = 0.002
"""Difference of aims, as a share of the whole cost, that is not worth a try."""


def _to_cost(course: _Course, kind: TargetKind, share: float) -> Draft:
    """Aim at a cost, and correct the aim by what the slim network really costs; bisect where that leads astray."""
    graph, tally = course.found.graph, Tally(course.found.graph, course.model)
    estimate = tally.macs if kind == "macs" else tally.params
    whole = course.found.cost_of(kind)
    limit = aim = share * whole
    low, high = 0.0, math.inf  # aims below which too much goes, above which too little
    best: Draft | None = None
    for _ in range(_AIMS):
        drafted = course.follow(partial(by_cost, graph, cost=estimate, target=aim))
        real = drafted.cost_of(kind)
        if best is None or _nearer(real, best.cost_of(kind), limit):
            best = drafted
        if limit - _NEAR * whole <= real <= limit:
            break
        low, high = (max(low, aim), high) if real <= limit else (low, min(high, aim))
        corrected = limit - (real - estimate(drafted.removed))
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


class _Course:
    """The rehearsals of one network: what they have shown holds for all further selections."""

    def __init__(self, model: nn.Module, inputs: Inputs, found: Survey) -> None:
        self.model = model
        self.inputs = inputs
        self.found = found
        self._kept: dict[int, Refusal] = {}
        self._sizes: list[Count] = []
        self._barred: set[tuple[str, str]] = set()
        self._steady = False
        self._folds = find_folds(model, inputs) if found.request.fold_bias else ()

    def follow(self, select: Callable[[Candidates], Mask]) -> Draft:
        """Select and rehearse until the slim network runs as expected."""
        graph = self.found.graph
        while True:
            chosen = candidates(graph, self.found.scores, self.found.request.constraints, self._kept)
            removed = select(chosen)
            plan = make_plan(graph, self.model, removed, self._sizes)
            hollow = carve(plan, self.model)
            rehearsal = self._rehearse(hollow, removed)
            if graph.real and not rehearsal.passed:  # it may have lacked nothing but values
                hollow = fill(hollow, plan, self.model)
                rehearsal = self._rehearse(hollow, removed, real=True)
            if rehearsal.passed:
                plan, hollow = self._folded(plan, hollow)
                return Draft(self.found, chosen, removed, plan, hollow, rehearsal.macs)
            if rehearsal.other_code and not self._steady:
                self._require_steady()
            self._learn(rehearsal)

    def _require_steady(self) -> None:
        """Refuse a network that does something else each time, before its channels are kept for it."""
        found, (args, kwargs) = self.found, self.inputs
        require_repeatable(found.graph, _trace(self.model, kwargs or args, found.request, found.untied))
        self._steady = True

    def untying(self) -> dict[str, GateKind]:
        """Return gates that would take apart streams in which something must stay."""
        return untying(*self._crossings())

    def _crossings(self) -> tuple[Sequence[Boundary], Ids, Mask, Mapping[str, nn.Module], Operators]:
        graph, passed = self.found.graph, self.found.graph.traces["eval"]
        operators = passed.operators_in({boundary.site for boundary in passed.boundaries})
        return passed.boundaries, graph.unit_of, self._stuck(), walk(self.model), operators

    def gateable(self, drafted: Draft) -> int:
        """Count the BatchNorm channels that stay in a draft without gates, where a gate could stand.

        Not all of them need be free behind it: what makes a stream stay may be before the BatchNorm.
        """
        graph, request = drafted.survey.graph, drafted.survey.request
        if request.coupling == "gates" or drafted.survey.untied or not self._stuck()[graph.gamma_count > 0].any():
            return 0
        boundaries, unit_of, stuck, *_ = crossings = self._crossings()
        sites = worth_a_gate(*crossings).keys() - excluded_layers(graph, request.exclude)
        return sum(int(stuck[unit_of[boundary.ids]].sum()) for boundary in boundaries if boundary.site in sites)

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

    def _folded(self, plan: PruningPlan, hollow: nn.Module) -> tuple[PruningPlan, nn.Module]:
        gated = {gate.at for gate in plan.gates}
        folds = tuple(entry for entry in self._folds if entry.into not in gated)
        plan = replace(plan, folds=folds)
        return plan, carve(plan, self.model) if folds else hollow

    def _rehearse(self, hollow: nn.Module, removed: Mask, *, real: bool = False) -> Rehearsal:
        return rehearse(
            hollow, self.found.graph, removed, self.inputs, self._kept, self._sizes, self._barred, real=real
        )

    def _learn(self, rehearsal: Rehearsal) -> None:
        if not rehearsal.kept and not rehearsal.sizes:
            if not self._sizes:
                site, what = rehearsal.misses[0]
                raise TraceError(f"{site or 'the network'}: the slim network does not run as expected: {what}")
            self._barred |= {(size.module, size.attribute) for size in self._sizes}  # they were no sizes after all
            self._sizes = []
        self._kept |= rehearsal.kept
        self._sizes += rehearsal.sizes


def require_cut(drafted: Draft) -> None:
    """Refuse a draft that leaves the network as it is.

    Raises:
        PruningError: Nothing can be pruned, or the ratio is too small for a channel to go.
    """
    require_prunable(drafted.survey.graph, drafted.chosen, drafted.advice)
    if not drafted.plan.cuts:
        kind, value = drafted.survey.request.target
        count = drafted.channels[0]
        more = "Raise the ratio" if kind == "ratio" else f"Lower {kind}"
        asked = f"{kind} {value:g}"
        asked += f" of {count} prunable channels is {value * count:.2g}," if kind == "ratio" else " is"
        raise PruningError(
            f"nothing is removed: {asked} nearer to none than to the fewest that can go together. {more}."
        )


def describe_plan(drafted: Draft) -> PruningPlan:
    """Return the draft's plan with what was asked for, what came of it, and the refusals."""
    found, request = drafted.survey, drafted.survey.request
    before, after = drafted.channels
    reason = f"fewer of its channels can go than fill a portion that keeps multiples of {request.round_to}"
    portions = [Refusal(name, reason, "lower round_to") for name in drafted.chosen.unfilled]
    floors = []
    if request.ratio is not None:
        floors = shortfall(found.graph, drafted.chosen, drafted.removed, request.ratio, request.constraints)
    return replace(
        drafted.plan,
        requested=request.to_dict(),
        realised={
            drafted.target.kind: drafted.target.realised,
            "ratio": drafted.ratio,
            "channels": {"before": before, "after": after},
        },
        refusals=(*floors, *portions, *drafted.refusals),
    )
