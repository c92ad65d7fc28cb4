"""Pruning: from a network to a slim one, with plan, proof and report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from bnprune.channels.operator_mode import preserve_thread_state
from bnprune.channels.pytrees import as_inputs
from bnprune.channels.trace_network import Coupling
from bnprune.pruning.draft_plan import DraftPlan, describe_plan, require_cut
from bnprune.pruning.latency_search import plan_for_target
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.planner import score_network
from bnprune.pruning.report import Report, foresee, make_report, recounted
from bnprune.pruning.request import Request
from bnprune.pruning.scores import Reduce
from bnprune.pruning.surgery import apply, copy_weights, record_plan, require_bare, require_values
from bnprune.pruning.verify import Verification, require, verify


@dataclass(frozen=True)
class PruningResult:
    """The slim network, the plan that makes it, and the report."""

    model: nn.Module
    plan: PruningPlan
    report: Report


@preserve_thread_state
def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency_ms: float | None = None,
    min_channels: int = 1,
    cap: float = 1.0,
    round_to: int = 1,
    exclude: Sequence[str] = (),
    layer_ratios: Mapping[str, float] | None = None,
    criterion: str = "gamma",
    reduce: Reduce = "max",
    coupling: Coupling = "shared",
    fold_bias: bool = False,
    proof: bool = True,
) -> PruningResult:
    """Prune a network by its BatchNorm scale factors (Liu et al., ICCV 2017).

    Args:
        model: Any module that runs a forward pass; it is left untouched.
        example_inputs: A tensor (usually (1, channels, height, width)), a tuple of positional or a mapping of keyword
            arguments of the forward pass. Shapes matter; values of floating-point tensors only where the network cannot
            digest noise, which the proof feeds it otherwise.
        ratio: Fraction of the prunable BatchNorm channels to remove, in (0, 1). One target is given: this or one of the
            next three.
        macs: Fraction of the multiply-accumulates to keep at most, in (0, 1).
        params: Fraction of the parameters to keep at most, in (0, 1).
        latency_ms: Milliseconds a forward pass may take here, with `example_inputs` as the batch and the current number
            of threads.
        min_channels: Channels every layer keeps at least.
        cap: Largest share of a layer's channels that goes, in (0, 1].
        round_to: Widths that are a multiple of this stay multiples of it.
        exclude: Layers whose width stays: module names, names of parents, or globs.
        layer_ratios: Fraction that goes of layers with a ratio of their own, by pattern as in `exclude`.
        criterion: Name of the score, see `bnprune.pruning.scores.CRITERIA`.
        reduce: How the scale factors of channels that must go together become one score: "max", "mean" or "sum".
        coupling: "shared": layers that read or write one stream of channels (residual adds, dense concatenations) lose
            the same ones; gates stand behind grouped convolutions only, where nothing could go without. "gates": each
            loses its own, behind small modules that pick or fill channels (`bnprune.pruning.gates`); more freedom, for
            the price of a copy per gate.
        fold_bias: Whether biases that nothing but a following BatchNorm sees go into its running mean.
        proof: Run both networks: prove in float64 that the slim one equals the masked original, and count MACs that
            depend on data (boxes per image) on the example inputs. Without it, a note calls such MACs made up.

    Returns:
        The slim network, its plan and a report.

    Raises:
        ConfigError: An argument is out of range or a pattern matches nothing.
        PruningError: The network cannot be pruned (no BatchNorm, everything frozen), or not as far as asked.
        TraceError: The analysis fails.
        ForwardError: The forward pass fails, or gives nothing finite to compare.
        VerificationError: The proof failed; this is a bug in bnprune worth a report.
    """
    require_bare(model)
    request = Request(
        ratio=ratio,
        macs=macs,
        params=params,
        latency_ms=latency_ms,
        min_channels=min_channels,
        cap=cap,
        round_to=round_to,
        exclude=_patterns(exclude),
        layer_ratios=layer_ratios,
        criterion=criterion,
        reduce=reduce,
        coupling=coupling,
        fold_bias=fold_bias,
    )
    draft = plan_for_target(model, example_inputs, score_network(model, example_inputs, request))
    return carry_out(draft, model, example_inputs, proof=proof)


def _patterns(exclude: Sequence[str]) -> tuple[str, ...]:
    return (exclude,) if isinstance(exclude, str) else tuple(exclude)


def carry_out(draft: DraftPlan, model: nn.Module, example_inputs: Any, *, proof: bool = True) -> PruningResult:
    """Carry out a draft: cut the network and prove the result.

    Raises:
        PruningError: Nothing can be pruned.
        VerificationError: The proof failed.
    """
    require_cut(draft)
    plan = describe_plan(draft)
    started = time.perf_counter()
    slim = copy_weights(draft.meta_slim, plan, model)
    record_plan(slim, model, plan)
    cut = time.perf_counter()
    verification: Verification | None = None
    if proof:
        verification = verify(model, slim, plan, as_inputs(example_inputs))
        require(verification)
    seconds = {
        "trace": draft.scored.seconds,
        "select": draft.seconds,
        "surgery": cut - started,
        "verify": time.perf_counter() - cut,
    }
    report = make_report(draft, plan, verification, seconds)
    return PruningResult(slim, plan, recounted(report, model, slim, example_inputs) if proof else report)


@preserve_thread_state
def replay(plan: PruningPlan, model: nn.Module, example_inputs: Any) -> PruningResult:
    """Apply a plan made earlier, and prove the result.

    Raises:
        PruningError: The plan was made for another network.
        CheckpointError: It is damaged.
        VerificationError: The proof failed.
    """
    require_values(model, example_inputs)
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
