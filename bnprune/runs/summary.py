"""Conversion of reports of pruning and recovery to result types."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from bnprune.pruning.proof_tolerance import TOLERANCE
from bnprune.pruning.report import Report
from bnprune.pruning.request import Request
from bnprune.pruning.verify import Verification
from bnprune.recovery.recover import Recovery
from bnprune.runs.results import (
    Change,
    LayerChange,
    NotCompensated,
    ProofOutcome,
    Pruned,
    RatioOutcome,
    RecoveryOutcome,
    RefusedSite,
    TargetOutcome,
    WrittenDeviation,
)


def cut_figures(report: Report) -> dict[str, Any]:
    """Return the figures of a pruning, as keyword arguments of `StageResult` and `PruneResult`."""
    target = report.target
    return {
        "target": TargetOutcome(kind=target.kind, requested=target.requested, realised=target.realised),
        "ratio": RatioOutcome(requested=report.ratio_requested, realised=report.ratio_realised),
        "verification": _proof_outcome(report.verification),
        "layers": [
            LayerChange(name=layer.name, kind=layer.kind, before=layer.before, after=layer.after)
            for layer in report.layers
        ],
        "written": [WrittenDeviation(**asdict(written)) for written in report.written],
        "refusals": [RefusedSite(site=r.site, reason=r.reason, fix=r.fix) for r in report.refusals],
        "notes": list(report.notes),
    }


def _proof_outcome(proof: Verification | None) -> ProofOutcome:
    if proof is None:
        return ProofOutcome(max_relative_error=None, tolerance=TOLERANCE, passed=None)
    return ProofOutcome(
        max_relative_error=proof.max_relative_error,
        tolerance=proof.tolerance,
        passed=proof.passed,
        dtype=proof.dtype,
        inputs=proof.inputs,
        outputs=proof.outputs,
    )


def pruned_of(report: Report) -> Pruned:
    """Return how much was removed."""
    return Pruned(
        channels=Change(before=report.channels_before, after=report.channels_after),
        params=Change(before=report.params_before, after=report.params_after),
        macs=Change(before=report.macs_before, after=report.macs_after),
    )


def seconds_of(report: Report) -> dict[str, float]:
    """Return the rounded seconds of every step."""
    return {name: round(seconds, 4) for name, seconds in report.seconds.items()}


_NAMES = {"compensated + recalibrated": "both"}
"""Names of repaired networks that version 0.1 wrote otherwise."""


def recovery_outcome(recovery: Recovery[Any]) -> RecoveryOutcome:
    """Return the ways of recovery that were tried, and the one that was kept."""
    outcomes = Counter(done.outcome for done in recovery.compensation)
    failed = (done for done in recovery.compensation if done.outcome == "none")
    return RecoveryOutcome(
        chosen=_NAMES.get(recovery.chosen, recovery.chosen),
        validation={_NAMES.get(name, name): score.value for name, score in recovery.scores.items()},
        compensated_layers={str(outcome): count for outcome, count in outcomes.items()},
        not_compensated=[NotCompensated(site=done.site, reason=done.reason) for done in failed],
    )


def describe_request(request: Request) -> str:
    """Return the target of a request as text."""
    kind, value = request.target
    match kind:
        case "ratio":
            return f"removing {value:.0%} of the prunable channels"
        case "latency_ms":
            return f"down to {value:g} ms per forward pass"
    return f"down to {value:.0%} of the {'MACs' if kind == 'macs' else 'parameters'}"
