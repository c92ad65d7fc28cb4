"""A pruning report as plain data, the same in `prune --json` and in a run's result."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bnprune.pruning.report import Report
from bnprune.pruning.request import Request
from bnprune.pruning.verify import TOLERANCE
from bnprune.recovery.recover import Recovery

PRUNE_SCHEMA = "bnprune.prune/1"


def describe(report: Report) -> dict[str, Any]:
    """Return what pruning did: requested and realised, layer by layer, with every refusal."""
    error = report.max_relative_error
    return {
        "target": {
            "kind": report.target.kind,
            "requested": report.target.requested,
            "realised": report.target.realised,
        },
        "ratio": {"requested": report.ratio_requested, "realised": report.ratio_realised},
        "verification": {
            "max_relative_error": error,
            "tolerance": TOLERANCE,
            "passed": None if error is None else error <= TOLERANCE,
        },
        "pruned": {
            "channels": {"before": report.channels_before, "after": report.channels_after},
            "params": {"before": report.params_before, "after": report.params_after},
            "macs": {"before": report.macs_before, "after": report.macs_after},
        },
        "layers": [
            {"name": layer.name, "kind": layer.kind, "before": layer.before, "after": layer.after}
            for layer in report.layers
        ],
        "refusals": [{"site": r.site, "reason": r.reason, "fix": r.fix} for r in report.refusals],
        "notes": list(report.notes),
        "steps_seconds": {name: round(seconds, 4) for name, seconds in report.seconds.items()},
    }


def describe_recovery(recovery: Recovery) -> dict[str, Any]:
    """Return what was tried after the cut, and what of it was kept."""
    outcomes = Counter(done.outcome for done in recovery.compensation)
    return {
        "chosen": recovery.chosen,
        "validation": {name: score.top1 for name, score in recovery.scores.items()},
        "compensated_layers": dict(outcomes),
        "not_compensated": [
            {"site": done.site, "reason": done.reason} for done in recovery.compensation if done.outcome == "none"
        ],
    }


def describe_request(request: Request) -> str:
    """Say what is asked for."""
    kind, value = request.target
    match kind:
        case "ratio":
            return f"removing {value:.0%} of the prunable channels"
        case "latency_ms":
            return f"down to {value:g} ms per forward pass"
    return f"down to {value:.0%} of the {'MACs' if kind == 'macs' else 'parameters'}"


def describe_prune(report: Report) -> dict[str, Any]:
    """Return the document of `prune --json`."""
    data = describe(report)
    pruned = data.pop("pruned")
    steps = data.pop("steps_seconds")
    return {
        "schema": PRUNE_SCHEMA,
        "target": data.pop("target"),
        "ratio": data.pop("ratio"),
        **pruned,
        "verification": data.pop("verification"),
        **data,
        "seconds": {**steps, "total": round(sum(report.seconds.values()), 4)},
    }
