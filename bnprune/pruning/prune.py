"""Prune: trace, score, select, rehearse, cut, prove. The whole path from a network to a smaller one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from bnprune.channels.call import Count
from bnprune.channels.graph import ChannelGraph
from bnprune.channels.ids import Refusal
from bnprune.channels.modules import walk
from bnprune.channels.trace import Coupling, trace
from bnprune.channels.trees import as_inputs
from bnprune.errors import CheckpointError, PruningError, TraceError, first_line
from bnprune.pruning.cost import Cost, cost
from bnprune.pruning.gates import gated_name
from bnprune.pruning.plan import PruningPlan, make_plan
from bnprune.pruning.rehearsal import Rehearsal, rehearse
from bnprune.pruning.request import Request
from bnprune.pruning.score import CRITERIA, Reduce, Scores, with_streams
from bnprune.pruning.select import (
    Candidates,
    Mask,
    by_ratio,
    candidates,
    refusals,
    require_prunable,
    shortfall,
)
from bnprune.pruning.surgery import apply, carve, fill, named_tensors, remember, require_bare
from bnprune.pruning.verify import Verification, require, verify


@dataclass(frozen=True, slots=True)
class LayerChange:
    """Width of one layer before and after."""

    name: str
    kind: str
    before: int
    after: int


@dataclass(frozen=True)
class Report:
    """What pruning did, in numbers."""

    ratio_requested: float | None
    ratio_realised: float
    """Removed share of the prunable BatchNorm channels."""
    channels_before: int
    """Prunable BatchNorm channels (those of units that are neither frozen nor excluded)."""
    channels_after: int
    params_before: int
    params_after: int
    macs_before: int
    """Multiply-accumulates for the example input as given (its batch included)."""
    macs_after: int
    max_relative_error: float | None
    """Of the float64 proof; None where it was not asked for."""
    layers: tuple[LayerChange, ...]
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]
    """Wall-clock seconds of "trace", "select" (with rehearsal), "surgery" and "verify"."""


@dataclass(frozen=True)
class PruningResult:
    """The slim network, the plan that makes it, and the report."""

    model: nn.Module
    plan: PruningPlan
    report: Report


@dataclass(frozen=True)
class Survey:
    """A network, followed and scored."""

    graph: ChannelGraph
    scores: Scores
    request: Request
    seconds: float


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
    seconds: float

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Why channels stay."""
        return tuple(why for why, _ in refusals(self.survey.graph, self.survey.scores, self.chosen.kept))

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


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float,
    min_channels: int = 1,
    exclude: Sequence[str] = (),
    criterion: str = "gamma",
    reduce: Reduce = "max",
    coupling: Coupling = "shared",
    proof: bool = True,
) -> PruningResult:
    """Prune a network by its BatchNorm scale factors (Liu et al., ICCV 2017).

    Args:
        model: Any module that runs a forward pass; it is left untouched.
        example_inputs: A tensor (usually (1, channels, height, width)), a tuple of positional or a mapping of keyword
            arguments of the forward pass. Shapes matter; values of floating-point tensors only where the network cannot
            digest noise, which the proof feeds it otherwise.
        ratio: Fraction of the prunable BatchNorm channels to remove, in (0, 1).
        min_channels: Channels every layer keeps at least.
        exclude: Layers whose width stays: module names, names of parents, or globs.
        criterion: Name of the score, see `bnprune.pruning.score.CRITERIA`.
        reduce: How the scale factors of channels that must go together become one score: "max", "mean" or "sum".
        coupling: "shared": layers that read or write one stream of channels (residual adds, dense concatenations) lose
            the same ones. "gates": each loses its own, behind small modules that pick or fill channels
            (`bnprune.pruning.gates`); more freedom, for the price of a copy per gate.
        proof: Prove in float64 that the slim network equals the masked original.

    Returns:
        The slim network, its plan and a report.

    Raises:
        ConfigError: An argument is out of range or a pattern matches nothing.
        PruningError: The network cannot be pruned: no BatchNorm, or everything frozen.
        TraceError: The analysis fails.
        ForwardError: The forward pass fails, or gives nothing finite to compare.
        VerificationError: The proof failed; this is a bug in bnprune worth a report.
    """
    require_bare(model)
    request = Request(ratio, min_channels, _patterns(exclude), criterion, reduce, coupling)
    drafted = draft(model, example_inputs, survey(model, example_inputs, request))
    return carry_out(drafted, model, example_inputs, proof=proof)


def _patterns(exclude: Sequence[str]) -> tuple[str, ...]:
    return (exclude,) if isinstance(exclude, str) else tuple(exclude)


def survey(model: nn.Module, example_inputs: Any, request: Request) -> Survey:
    """Trace and score a network. Errors as for `prune`."""
    started = time.perf_counter()
    graph = trace(model, example_inputs, coupling=request.coupling)
    scores = CRITERIA[request.criterion](graph, dict(named_tensors(model)), request.reduce)
    return Survey(graph, with_streams(graph, scores), request, time.perf_counter() - started)


def draft(model: nn.Module, example_inputs: Any, found: Survey) -> Draft:
    """Select and rehearse until the slim network runs as expected; nothing is cut yet.

    Where nothing can be pruned, nothing is selected (`Draft.chosen.prunable` is empty).
    """
    started = time.perf_counter()
    inputs = as_inputs(example_inputs)
    kept: dict[int, Refusal] = {}
    sizes: list[Count] = []
    barred: set[tuple[str, str]] = set()
    while True:
        chosen = candidates(found.graph, found.scores, found.request.constraints, kept)
        removed = by_ratio(found.graph, chosen, found.request.ratio)
        plan = make_plan(found.graph, model, removed, sizes)
        hollow = carve(plan, model)
        rehearsal = rehearse(hollow, found.graph, removed, inputs, kept, sizes, barred)
        if found.graph.real and not rehearsal.passed:  # it may have lacked nothing but values
            hollow = fill(hollow, plan, model)
            rehearsal = rehearse(hollow, found.graph, removed, inputs, kept, sizes, barred, real=True)
        _require_own_modules(model, rehearsal)
        if rehearsal.passed:
            return Draft(found, chosen, removed, plan, hollow, rehearsal.macs, time.perf_counter() - started)
        if not rehearsal.kept and not rehearsal.sizes:
            if not sizes:
                site, what = rehearsal.misses[0]
                raise TraceError(f"{site or 'the network'}: the slim network does not run as expected: {what}")
            barred |= {(size.module, size.attribute) for size in sizes}  # they were no sizes after all
            sizes = []
        kept |= rehearsal.kept
        sizes += rehearsal.sizes


def _require_own_modules(model: nn.Module, rehearsal: Rehearsal) -> None:
    for name, module in walk(model).items() if rehearsal.strangers else ():
        if any(module is stranger for stranger in rehearsal.strangers):
            raise TraceError(
                f"{name or 'the network'}: a copy of the network still runs this module of the original, because some "
                "code holds on to it (a lambda, or a patched forward). Refer to it through `self` in a method."
            )


def require_cut(drafted: Draft) -> None:
    """Refuse a draft that leaves the network as it is.

    Raises:
        PruningError: Nothing can be pruned, or the ratio is too small for a channel to go.
    """
    require_prunable(drafted.survey.graph, drafted.chosen)
    if not drafted.plan.cuts:
        ratio, count = drafted.survey.request.ratio, drafted.channels[0]
        raise PruningError(
            f"nothing is removed: ratio {ratio:g} of {count} prunable channels is {ratio * count:.2g}, nearer to none "
            "than to the fewest that can go together. Raise the ratio."
        )


def carry_out(drafted: Draft, model: nn.Module, example_inputs: Any, *, proof: bool = True) -> PruningResult:
    """Cut the network as drafted and prove the result.

    Raises:
        PruningError: Nothing can be pruned.
        VerificationError: The proof failed.
    """
    require_cut(drafted)
    plan = describe_plan(drafted)
    started = time.perf_counter()
    slim = fill(drafted.hollow, plan, model)
    remember(slim, model, plan)
    cut = time.perf_counter()
    verification: Verification | None = None
    if proof:
        verification = verify(model, slim, plan, as_inputs(example_inputs))
        require(verification)
    seconds = {
        "trace": drafted.survey.seconds,
        "select": drafted.seconds,
        "surgery": cut - started,
        "verify": time.perf_counter() - cut,
    }
    return PruningResult(slim, plan, make_report(drafted, plan, model, verification, seconds))


def replay(plan: PruningPlan, model: nn.Module, example_inputs: Any) -> PruningResult:
    """Apply a plan made earlier, and prove the result.

    Raises:
        PruningError: The plan was made for another network.
        CheckpointError: It is damaged.
        VerificationError: The proof failed.
    """
    report = foresee(plan, model, example_inputs)
    started = time.perf_counter()
    slim = apply(plan, model)
    cut = time.perf_counter()
    verification = verify(model, slim, plan, as_inputs(example_inputs))
    require(verification)
    seconds = {"surgery": cut - started, "verify": time.perf_counter() - cut}
    return PruningResult(
        slim, plan, replace(report, max_relative_error=verification.max_relative_error, seconds=seconds)
    )


def foresee(plan: PruningPlan, model: nn.Module, example_inputs: Any) -> Report:
    """Report what a plan made earlier does to a network; nothing is cut, and no weight is copied.

    Raises:
        PruningError: The plan was made for another network.
        CheckpointError: It is damaged.
    """
    require_bare(model)
    hollow = carve(plan, model)
    before, after = cost(model, example_inputs), _cost_of(hollow, plan, model, example_inputs)
    channels = plan.realised.get("channels", {"before": before.channels, "after": after.channels})
    widths, slim_widths = _widths(model), _widths(hollow)
    gated = {gate.at for gate in plan.gates}
    return Report(
        ratio_requested=plan.requested.get("ratio"),
        ratio_realised=plan.realised.get("ratio", 0.0),
        channels_before=channels["before"],
        channels_after=channels["after"],
        params_before=before.params,
        params_after=after.params,
        macs_before=before.macs,
        macs_after=after.macs,
        max_relative_error=None,
        layers=tuple(
            LayerChange(name, kind, width, slim_widths[gated_name(name, gated)][1])
            for name, (kind, width) in widths.items()
        ),
        refusals=plan.refusals,
        notes=(),
        seconds={},
    )


def _cost_of(hollow: nn.Module, plan: PruningPlan, model: nn.Module, example_inputs: Any) -> Cost:
    try:
        return cost(hollow, example_inputs)
    except Exception:  # noqa: BLE001 - a network that decides on its values does not run without weights
        slim = apply(plan, model)
    try:
        return cost(slim, example_inputs)
    except Exception as error:
        raise CheckpointError(f"the plan is damaged: what it makes does not run: {first_line(error)}.") from error


def _widths(model: nn.Module) -> dict[str, tuple[str, int]]:
    """Kind and output width of every layer that has one, by module name."""
    found = {}
    for name, module in model.named_modules():
        for kind, attribute in (("conv", "out_channels"), ("linear", "out_features"), ("norm", "num_features")):
            if isinstance(getattr(module, attribute, None), int):
                found[name] = kind, int(getattr(module, attribute))
    return found


def describe_plan(drafted: Draft) -> PruningPlan:
    """Return the draft's plan with what was asked for, what came of it, and the refusals."""
    found, request = drafted.survey, drafted.survey.request
    before, after = drafted.channels
    floors = shortfall(found.graph, drafted.chosen, drafted.removed, request.ratio, request.min_channels)
    return replace(
        drafted.plan,
        requested=request.to_dict(),
        realised={"ratio": drafted.ratio, "channels": {"before": before, "after": after}},
        refusals=(*floors, *drafted.refusals),
    )


def make_report(
    drafted: Draft,
    plan: PruningPlan,
    model: nn.Module,
    verification: Verification | None,
    seconds: Mapping[str, float],
) -> Report:
    """Sum up what a draft does."""
    graph, removed = drafted.survey.graph, drafted.removed
    before, after = drafted.channels
    return Report(
        ratio_requested=plan.requested.get("ratio"),
        ratio_realised=drafted.ratio,
        channels_before=before,
        channels_after=after,
        params_before=sum(p.numel() for p in model.parameters()),
        params_after=sum(p.numel() for p in drafted.hollow.parameters()),
        macs_before=graph.traces["eval"].macs,
        macs_after=drafted.macs,
        max_relative_error=None if verification is None else verification.max_relative_error,
        layers=tuple(
            LayerChange(layer.name, layer.kind, len(layer.ids), int((~removed[graph.units(layer.ids)]).sum()))
            for layer in graph.layers
        ),
        refusals=plan.refusals,
        notes=graph.notes,
        seconds=dict(seconds),
    )
