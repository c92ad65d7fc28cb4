"""The planner: trace, score, probe, select and try in a dry run, until a selection meets the target.

Nothing is cut here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from torch import nn

from bnprune.channels.gate_sites import GateKind, Gates, GateSite, Operators, separating_gates, useful_gates
from bnprune.channels.graph import ChannelGraph
from bnprune.channels.head_units import ALTERNATIVES, HeadSites, sites_using, split_sites
from bnprune.channels.modules import modules_by_name, parameter_count
from bnprune.channels.op_context import Count
from bnprune.channels.pytrees import Inputs, as_inputs, tensors
from bnprune.channels.trace_network import require_repeatable, trace
from bnprune.channels.union_find import NO_CHANNEL, Ids
from bnprune.config.suggested_numbers import rounded_up
from bnprune.errors import PruningError, TraceError
from bnprune.pruning.attribute_reads import recorded_reads
from bnprune.pruning.bias_folding import find_folds
from bnprune.pruning.candidates import Candidates, Constraints, Mask, excluded_layers, find_candidates
from bnprune.pruning.cost_model import CostModel
from bnprune.pruning.criterion_choice import choose_criterion
from bnprune.pruning.draft_plan import DraftPlan, DryRunFindings, ScoredNetwork
from bnprune.pruning.dry_run import DryRun, dry_run
from bnprune.pruning.least_widths import LeastWidths, is_limited, least_width_note, least_widths, lifted_note
from bnprune.pruning.output_deviation import Measured, with_deviations
from bnprune.pruning.plan import PruningPlan, make_plan, new_sizes
from bnprune.pruning.probe import probe
from bnprune.pruning.request import Request, TargetKind
from bnprune.pruning.scores import Scores, Statistics, gamma_values, require_finite, score_units, with_streams
from bnprune.pruning.select import by_cost, by_ratio
from bnprune.pruning.sensitivity_order import by_sensitivity
from bnprune.pruning.settled_sizes import settle_sizes
from bnprune.pruning.stale_sizes import possible_sizes
from bnprune.pruning.surgery import change_sizes, copy_weights, named_tensors, require_values, slim_on_meta


def score_network(
    model: nn.Module,
    example_inputs: Any,
    request: Request,
    gates: Gates | None = None,
    heads: HeadSites | None = None,
    statistics: Statistics | None = None,
    measured: Measured | None = None,
) -> ScoredNetwork:
    """Trace, score and probe a network. Errors as for `prune`.

    The result holds for every target of the same constraints.

    Args:
        model: The network.
        example_inputs: As for `prune`.
        request: The criterion and the constraints.
        gates: Gates that are set in any case.
        heads: Units of attention heads, as in `trace`; found by probes if not given.
        statistics: Measured by `scores.measure_statistics`, for criteria that need data.
        measured: Standard deviations of layers' outputs (`measure_output_deviation`); estimated for other layers.
    """
    scored = _probed(model, example_inputs, request, gates, heads or {}, statistics, measured)
    return scored if heads is not None else _with_head_units(model, example_inputs, scored, measured)


def _probed(
    model: nn.Module,
    example_inputs: Any,
    request: Request,
    gates: Gates | None,
    heads: HeadSites,
    statistics: Statistics | None,
    measured: Measured | None,
) -> ScoredNetwork:
    started = time.perf_counter()
    require_values(model, example_inputs)
    with recorded_reads(possible_sizes(model)) as reads:
        graph = _trace(model, example_inputs, request, gates, heads)
    tensors = dict(named_tensors(model))
    require_finite(graph, tensors)
    graph = with_deviations(graph, tensors, measured)
    request, notes = choose_criterion(request, graph, tensors, statistics)

    def score(graph: ChannelGraph) -> Scores:
        return with_streams(graph, score_units(request.ranked_by, graph, tensors, request.reduce, statistics))

    scores = score(graph)
    network = ScoredNetwork(
        graph,
        scores,
        scores_by_gamma=score(replace(graph, deviations=())) if graph.deviations else scores,
        request=request,
        params=parameter_count(model),
        seconds=0.0,
        required_gates=gates or {},
        heads=heads,
        gammas={name: gamma_values(tensors[name]) for name in graph.gammas},
        statistics=statistics,
        criterion_notes=notes,
        reads=frozenset(reads),
    )
    findings, prunable = _Planner(model, as_inputs(example_inputs), network).probe()
    seconds = time.perf_counter() - started
    return replace(network, findings=findings, probed_channels=prunable, seconds=seconds)


def _with_head_units(
    model: nn.Module, example_inputs: Any, scored: ScoredNetwork, measured: Measured | None
) -> ScoredNetwork:
    """Return the network with other units for the attention heads of modules whose code keeps channels.

    An alternative is taken if more BatchNorm channels are prunable with it.
    """
    sites = split_sites(scored.graph)
    for units in ALTERNATIVES:
        kept = {unit for unit in scored.findings.kept if scored.graph.gamma_count[unit]}
        changed = sites_using(scored.graph, sites, kept)
        if not changed:
            break
        heads = {**scored.heads, **dict.fromkeys(changed, units)}
        other = _probed(
            model, example_inputs, scored.request, scored.required_gates, heads, scored.statistics, measured
        )
        other = replace(other, criterion_notes=scored.criterion_notes)
        if other.findings.complete and other.probed_channels > scored.probed_channels:
            scored = replace(other, seconds=scored.seconds + other.seconds)
    return scored


def _trace(
    model: nn.Module, example_inputs: Any, request: Request, gates: Gates | None, heads: HeadSites | None
) -> ChannelGraph:
    return trace(
        model,
        example_inputs,
        exact=request.weighs_macs,
        coupling=request.coupling,
        gates=gates,
        heads=heads,
        outputs=request.outputs,
    )


Selection = Callable[[ScoredNetwork, Candidates], Mask]
"""Chooses the units to remove from candidates."""


def plan_cut(
    model: nn.Module, example_inputs: Any, scored: ScoredNetwork, select: Selection | None = None
) -> DraftPlan:
    """Return a draft whose slim network runs as expected and meets the target; nothing is cut yet.

    If no channel can be removed because grouped convolutions couple all of them to channels that must stay, gates after
    these convolutions decouple the streams.

    If no channel can be pruned at all, none is selected (`DraftPlan.candidates.prunable` is empty). A target in
    milliseconds needs measurements: see `bnprune.pruning.latency_search`.

    Args:
        model: The network.
        example_inputs: As for `prune`.
        scored: Its trace and scores.
        select: Chooses the units to remove; default: to meet the target of the request.

    Raises:
        PruningError: The target cannot be reached; the message gives the closest value that can be reached.
    """
    started = time.perf_counter()
    if scored.least_width:
        draft = _with_least_widths(model, example_inputs, scored, select)
    else:
        _, draft = _planned(model, example_inputs, scored, select)
    return replace(draft, seconds=time.perf_counter() - started)


class _UnreachableError(PruningError):
    """A cost cannot be reached with the constraints."""


def _with_least_widths(
    model: nn.Module, example_inputs: Any, scored: ScoredNetwork, select: Selection | None
) -> DraftPlan:
    """Plan so that every layer keeps its least width, or without least widths if the target needs that."""
    asked, limited = scored.request, None
    try:
        planner, limited = _planned(model, example_inputs, scored, select)
        if not limited.falls_short:
            if is_limited(planner.scored.graph, limited.removed, planner.least_widths, asked.round_to):
                return limited.noted(least_width_note(asked.ranked_by, scored.least_width))
            return limited
    except _UnreachableError:
        pass
    lifted = replace(scored, request=replace(asked, cap=1.0))
    _, draft = _planned(model, example_inputs, lifted, select)
    if limited is not None and int(draft.removed.sum()) <= int(limited.removed.sum()):
        return limited  # other constraints prevent the target
    draft = replace(draft, scored=replace(draft.scored, request=asked))
    return draft.noted(lifted_note(asked.ranked_by))


def _planned(
    model: nn.Module, example_inputs: Any, scored: ScoredNetwork, select: Selection | None
) -> tuple[_Planner, DraftPlan]:
    """Plan with the gates that are needed; return the planner as well, which knows them."""
    planner = _Planner(model, as_inputs(example_inputs), scored)
    draft = _best_draft(planner, select)
    if not draft.removed.any() and not scored.required_gates:
        planner, draft = _with_separating_gates(planner, example_inputs, select) or (planner, draft)
    return planner, replace(draft, gate_candidates=planner.count_gate_candidates(draft))


def _with_separating_gates(
    planner: _Planner, example_inputs: Any, select: Selection | None
) -> tuple[_Planner, DraftPlan] | None:
    """Plan with gates after all grouped convolutions, then with the needed ones only; None if gates do not help.

    A grouped convolution couples the stream it reads with the one it writes, and so channels that must stay with
    others:

        stem (must stay) ── depthwise ── depthwise ── ...      without a gate, all of them must stay
    """
    draft, gates = None, planner.separating_gates()
    while gates:
        before = planner.scored
        scored = score_network(planner.model, example_inputs, before.request, gates, before.heads, before.statistics)
        scored = replace(scored, criterion_notes=before.criterion_notes, sensitivity=before.sensitivity)
        planner = _Planner(planner.model, planner.inputs, scored)
        draft = _best_draft(planner, select)
        gates, tried = planner.needed_gates(), gates
        if gates == tried:
            break
    return (planner, draft) if draft is not None and draft.removed.any() else None


def _best_draft(planner: _Planner, select: Selection | None) -> DraftPlan:
    kind, share = planner.scored.request.target
    if select is not None:
        draft = planner.select_until_it_runs(partial(select, planner.scored))
    elif kind == "ratio":
        draft = planner.select_until_it_runs(lambda candidates: by_ratio(planner.scored.graph, candidates, share))
    else:
        draft = _meet_cost(planner, kind, share)
    return planner.with_settled_sizes(draft)


_MOST_CORRECTIONS = 10
"""Dry runs that a search for a cost may take."""
_CLOSE = 0.01
"""Undershoot, as a share of the whole cost, at which the search ends."""
_SMALLEST_CHANGE = 0.002
"""Difference between two aims, as a share of the whole cost, below which the second is not tried."""


def _meet_cost(planner: _Planner, kind: TargetKind, share: float) -> DraftPlan:
    """Search for the selection whose slim network costs at most, and nearly, `share` of the network.

    The cost model is fast, but the dry run may keep further channels, so that the slim network costs more than
    estimated. Near the target this error changes little from one selection to the next. Each round therefore selects
    for an estimate (the aim), counts the real cost in the dry run, and moves the aim by the error. For a limit of 50:

        aim 50    estimate 49.8, real 55.8: error 6      next aim 50 - 6 = 44
        aim 44    estimate 43.9, real 50.1: error 6.2    next aim 50 - 6.2 = 43.8
        aim 43.8  estimate 43.5, real 49.7               below the limit, and close

    Aims that led to a cost above the limit, and aims that led below it, enclose the right one (`low`, `high`). If the
    error changes much (a whole block of coupled channels is removed), the corrected aim can lie outside: then the
    interval is bisected instead.
    """
    graph, cost_model = planner.scored.graph, CostModel(planner.scored.graph, planner.model)
    estimate = cost_model.macs if kind == "macs" else cost_model.params
    whole = planner.scored.cost_of(kind)
    limit = aim = share * whole
    low, high = 0.0, math.inf
    best: DraftPlan | None = None
    for _ in range(_MOST_CORRECTIONS):
        draft = planner.select_until_it_runs(partial(by_cost, graph, cost=estimate, target=aim))
        real = draft.cost_of(kind)
        if best is None or _is_better(real, best.cost_of(kind), limit):
            best = draft
        if limit - _CLOSE * whole <= real <= limit:
            break
        low, high = (max(low, aim), high) if real <= limit else (low, min(high, aim))
        corrected = limit - (real - estimate(draft.removed))
        if not low < corrected < high:
            corrected = (low + min(high, whole)) / 2
        if abs(corrected - aim) < _SMALLEST_CHANGE * whole and best.cost_of(kind) <= limit:
            break
        aim = corrected
    assert best is not None
    if best.cost_of(kind) > limit and best.candidates.order.size:
        lowest = rounded_up(best.cost_of(kind) / whole, below=1)
        more = f"Ask for {kind} {lowest} or more, or loosen" if lowest else "Loosen"
        raise _UnreachableError(
            f"{kind} {share:g} cannot be reached: the channels that must stay cost {lowest or 'all'} of the network's "
            f"{kind}. {more} min_channels, cap, round_to or exclude."
        )
    return best


def _is_better(cost: int, best: int, limit: float) -> bool:
    """Return True if a cost is nearer to the limit from below or, as long as the best is above it, lower."""
    if best <= limit:
        return best < cost <= limit
    return cost < best


class _Planner:
    """Selections and dry runs for one network. Channels that one dry run has kept stay in all further selections."""

    def __init__(self, model: nn.Module, inputs: Inputs, scored: ScoredNetwork) -> None:
        self.model = model
        self.inputs = inputs
        self.scored = scored
        self._findings = scored.findings
        self._is_repeatable = False
        self._folds = find_folds(model, inputs) if scored.request.fold_bias else ()

    def probe(self) -> tuple[DryRunFindings, int]:
        """Find what must stay for every target, in dry runs of a selection that depends on the network only.

        Of the constraints, only `exclude` and `include` count: the others limit how much is removed. If a probe fails
        for an unknown reason, the findings so far are kept, and the dry run of the request decides.

        Returns:
            The findings, and the number of BatchNorm channels that are prunable with them.
        """
        request = self.scored.request
        graph, exclude = self.scored.graph, Constraints(exclude=request.exclude, include=request.include)
        while (removed := probe(graph, self._candidates(exclude).prunable, self._findings.sizes)).any():
            try:
                *_, trial = self._try(removed, self._findings.sizes)
                if trial.passed:
                    break
                self._add_findings(trial)
            except TraceError:
                self._findings = replace(self._findings, complete=False)
                break
        return self._findings, int(graph.gamma_count[self._candidates(exclude).prunable].sum())

    @cached_property
    def least_widths(self) -> LeastWidths:
        """The channels that layers keep at least for the target of the request; empty if there is no such limit."""
        scored, request = self.scored, self.scored.request
        if not scored.least_width:
            return {}
        found = self._candidates(Constraints(exclude=request.exclude, include=request.include))
        cost_model = CostModel(scored.graph, self.model)
        return least_widths(scored.graph, scored.gammas, found.prunable, request.target, cost_model, scored.least_width)

    def select_until_it_runs(self, select: Callable[[Candidates], Mask]) -> DraftPlan:
        """Select and try in a dry run until the slim network runs as expected.

        Each failed dry run keeps further channels or changes further attributes, so the loop ends.
        """
        while True:
            candidates = self._candidates(self.scored.request.constraints, self.least_widths)
            removed = select(candidates)
            plan, meta_slim, trial = self._try(removed, self._findings.sizes)
            if trial.passed:
                plan, meta_slim = self._with_folds(plan, meta_slim)
                late = self._count_found_late(candidates)
                return DraftPlan(self.scored, candidates, removed, plan, meta_slim, trial.macs, found_late=late)
            self._add_findings(trial)

    def _candidates(self, constraints: Constraints, widths: LeastWidths | None = None) -> Candidates:
        scored, findings = self.scored, self._findings
        candidates = find_candidates(scored.graph, scored.scores, constraints, findings.kept, findings.sizes, widths)
        if scored.sensitivity is None:
            return candidates
        return by_sensitivity(scored.graph, candidates, scored.sensitivity)

    def _count_found_late(self, candidates: Candidates) -> int:
        """Count the BatchNorm channels that the probe, but not the requested selection, has shown to be prunable."""
        if self._findings.kept.keys() == self.scored.findings.kept.keys():
            return 0
        graph, scored = self.scored.graph, self.scored
        before = find_candidates(graph, scored.scores, scored.request.constraints, scored.findings.kept)
        return int(graph.gamma_count[before.prunable & ~candidates.prunable].sum())

    def _try(self, removed: Mask, sizes: Sequence[Count]) -> tuple[PruningPlan, nn.Module, DryRun]:
        """Return the plan of a selection, its slim network on the meta device, and its dry run."""
        graph = self.scored.graph
        plan = make_plan(graph, self.model, removed, sizes)
        slim = slim_on_meta(plan, self.model)
        trial = self._dry_run(slim, removed)
        if graph.real and not trial.passed:  # it may have failed only because there were no values
            slim = copy_weights(slim, plan, self.model)
            trial = self._dry_run(slim, removed, with_values=True)
        return plan, slim, trial

    def _require_repeatable(self) -> None:
        """Refuse a network that runs different code each time, before channels are kept for that reason."""
        scored, (args, kwargs) = self.scored, self.inputs
        require_repeatable(
            scored.graph, _trace(self.model, kwargs or args, scored.request, scored.required_gates, scored.heads)
        )
        self._is_repeatable = True

    def _dry_run(self, slim: nn.Module, removed: Mask, *, with_values: bool = False) -> DryRun:
        graph, known = self.scored.graph, self._findings
        return dry_run(
            slim, graph, removed, self.inputs, known.kept, known.sizes, known.not_sizes, with_values=with_values
        )

    def _add_findings(self, trial: DryRun) -> None:
        """Add the results of a failed dry run; if there are none, undo the changes of attributes.

        Raises:
            TraceError: No attribute was changed either, so that there is nothing left to try.
        """
        if trial.other_code and not self._is_repeatable:
            self._require_repeatable()
        kept, sizes, not_sizes = self._findings.kept, self._findings.sizes, self._findings.not_sizes
        if not trial.kept and not trial.sizes:
            if not sizes:
                site, difference = trial.mismatches[0]
                raise TraceError(f"{site or 'the network'}: the slim network does not run as expected: {difference}")
            not_sizes |= {(size.module, size.attribute) for size in sizes}
            sizes = ()
        self._findings = DryRunFindings({**kept, **trial.kept}, (*sizes, *trial.sizes), not_sizes)

    def with_settled_sizes(self, draft: DraftPlan) -> DraftPlan:
        """Return a draft that changes all attributes that hold widths, and no others."""
        graph, removed = self.scored.graph, draft.removed
        if not removed.any():
            return draft
        sizes, notes = settle_sizes(
            self.model,
            graph,
            removed,
            inputs=[tuple(tensor.shape) for tensor in tensors(self.inputs)],
            changed=self._findings.sizes,
            reads=self.scored.reads,
            runs=lambda sizes: self._try(removed, sizes)[2].passed,
        )
        plan = replace(draft.plan, attributes=new_sizes(graph, self.model, removed, sizes))
        change_sizes(draft.meta_slim, draft.plan.attributes, plan.attributes, self.model)
        return replace(draft, plan=plan, size_notes=notes)

    def _with_folds(self, plan: PruningPlan, meta_slim: nn.Module) -> tuple[PruningPlan, nn.Module]:
        gated = {gate.at for gate in plan.gates}
        folds = tuple(entry for entry in self._folds if entry.into not in gated)
        plan = replace(plan, folds=folds)
        return plan, slim_on_meta(plan, self.model) if folds else meta_slim

    # -- gates --

    def separating_gates(self) -> dict[str, GateKind]:
        """Return gates that would decouple the streams in which channels must stay."""
        return separating_gates(*self._gate_sites())

    def needed_gates(self) -> dict[str, GateKind]:
        """Return the gates of the trace that stand between a stream that must stay and channels that may be removed."""
        graph, must_stay = self.scored.graph, self._must_stay()
        stays = {gate.site: [must_stay[graph.units(ids)] for ids in (gate.stream, gate.own)] for gate in graph.gates}
        return {g.site: g.kind for g in graph.gates if stays[g.site][0].any() and not stays[g.site][1].all()}

    def count_gate_candidates(self, draft: DraftPlan) -> int:
        """Count the BatchNorm channels that must stay in a draft without gates, although a gate could be set there.

        With a gate, some of them may still have to stay: the reason can lie before the BatchNorm.
        """
        graph, request = draft.scored.graph, draft.scored.request
        uses_gates = request.coupling == "gates" or draft.scored.required_gates
        if uses_gates or not self._must_stay()[graph.gamma_count > 0].any():
            return 0
        gate_sites, unit_of, must_stay, *_ = arguments = self._gate_sites()
        sites = useful_gates(*arguments).keys() - excluded_layers(graph, request.exclude, request.include)
        return sum(int(must_stay[unit_of[site.ids]].sum()) for site in gate_sites if site.site in sites)

    def _gate_sites(self) -> tuple[Sequence[GateSite], Ids, Mask, Mapping[str, nn.Module], Operators]:
        """Return the arguments of `useful_gates` and `separating_gates`."""
        graph, eval_pass = self.scored.graph, self.scored.graph.traces["eval"]
        operators = eval_pass.op_kinds_in({gate_site.site for gate_site in eval_pass.gate_sites})
        return eval_pass.gate_sites, graph.unit_of, self._must_stay(), modules_by_name(self.model), operators

    def _must_stay(self) -> Mask:
        """Return True for units that must stay according to the trace and the dry runs; shape (units,)."""
        must_stay = ~self.scored.graph.free
        must_stay[[*self._findings.kept]] = True
        must_stay[NO_CHANNEL] = False
        return must_stay
