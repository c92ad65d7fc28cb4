"""Prune: open a network, prune it, verify and compensate the slim network, and save it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from bnprune.config.bounded_reading import DATA_BYTES, read_text
from bnprune.errors import CheckpointError, ConfigError, ForwardError
from bnprune.pruning.draft_plan import describe_plan, require_cut
from bnprune.pruning.latency_search import LatencyKnowledge
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.pruner import PruningResult, draft, prune_as_requested, replay
from bnprune.pruning.report import Report, foresee, make_report
from bnprune.pruning.request import Request
from bnprune.pruning.surgery import require_plan_fits
from bnprune.recovery.compensate import Compensation, compensate
from bnprune.runs.checkpoint import save_checkpoint
from bnprune.runs.display import NO_DISPLAY, Display
from bnprune.runs.network_source import NetworkSource, open_source
from bnprune.runs.outputs import require_output
from bnprune.runs.summary import cut_figures, pruned_of, seconds_of
from bnprune.workflows.profile import read_profile
from bnprune.workflows.results import CompensationOutcome, PruneResult


def prune(
    source: str | Path | None = None,
    request: Request | None = None,
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    input_shape: Sequence[int] | None = None,
    trust: bool = False,
    plan: str | Path | None = None,
    profile: str | Path | None = None,
    compensated: bool = True,
    dry_run: bool = False,
    out: str | Path = "slim.safetensors",
    force: bool = False,
    display: Display = NO_DISPLAY,
) -> PruneResult:
    """Prune a network from a file or by name, and save the slim one.

    For a network that is in memory, see `bnprune.prune`.

    Args:
        source: A run directory or a checkpoint.
        request: The target and the constraints; None if a plan is given.
        model: A name or `package.module:factory`, in place of `source` or to rebuild it.
        model_arguments: Keyword arguments of `model`.
        weights: File with the weights of `model`.
        input_shape: Shape of one input, without the batch.
        trust: Run the code and use the paths that the files name.
        plan: File with a plan to replay, in place of a request.
        profile: File with a latency profile, for a target in milliseconds; it gives the batch size and the backend.
        compensated: After verification, add the constant output of removed channels to the biases of the next layers.
        dry_run: Return the plan; prune and write nothing.
        out: The checkpoint to write.
        force: Overwrite an existing file.
        display: Where to show warnings.

    Raises:
        ConfigError: An argument is wrong.
        PruningError: The network cannot be pruned as requested.
        VerificationError: The slim network is wrong; nothing is written.
        DataError: A file cannot be read or written.
    """
    target = Path(out)
    if not dry_run:
        inputs = (_path(source), _path(weights), _path(plan), _path(profile))
        require_output(target, force=force, sources=inputs)
    network = open_source(
        source, model=model, arguments=model_arguments, weights=weights, shape=input_shape, trust=trust
    )
    latency = _latency(network, request, profile, display)
    replayed = None if plan is None else _read_plan(Path(plan), network.model)
    if dry_run:
        report, planned = _foreseen(network, request, replayed, latency)
        return _result(report, (), out=None, plan=planned)
    if replayed is not None:
        result = replay(replayed, network.model, network.inputs)
    else:
        result = prune_as_requested(network.model, network.inputs, _required(request), latency=latency)
    done = _compensated(network, result, display) if compensated else ()
    _save(target, network, result)
    return _result(result.report, done, out=target)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _required(request: Request | None) -> Request:
    return Request() if request is None else request  # an empty request raises: a target is missing


def _latency(
    network: NetworkSource, request: Request | None, profile: str | Path | None, display: Display
) -> LatencyKnowledge | None:
    """Read the latency profile; None if there is none."""
    if profile is None:
        return None
    if request is None or request.latency_ms is None:
        message = "a latency profile serves a target in milliseconds. Give one, or leave the profile out."
        raise ConfigError(message, argument="profile")
    return read_profile(Path(profile), network, display)


def _foreseen(
    network: NetworkSource, request: Request | None, plan: PruningPlan | None, latency: LatencyKnowledge | None
) -> tuple[Report, PruningPlan]:
    """Return the report of a plan, made now or replayed, without pruning, and the plan."""
    if plan is not None:
        return foresee(plan, network.model, network.inputs), plan
    drafted = draft(network.model, network.inputs, _required(request), latency)
    require_cut(drafted)
    made = describe_plan(drafted)
    return make_report(drafted, made, None, {}), made


def _read_plan(path: Path, model: nn.Module) -> PruningPlan:
    try:
        plan = PruningPlan.from_json(read_text(path, DATA_BYTES))
        require_plan_fits(plan, model)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}.", argument="plan") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"'{path}' is not a text file.", argument="plan") from error
    except CheckpointError as error:
        raise CheckpointError(f"'{path}': {error}", argument="plan") from error
    return plan


def _compensated(network: NetworkSource, result: PruningResult, display: Display) -> tuple[Compensation, ...]:
    try:
        return compensate(network.model, result.model, result.plan, network.inputs)
    except ForwardError as error:
        display.note(f"note: not compensated: {error}")
        return ()


def _save(path: Path, network: NetworkSource, result: PruningResult) -> None:
    header = network.header
    pruned = replace(
        header,
        plans=(*header.plans, result.plan),
        stage="prune",
        metrics={"params": result.report.params_after, "macs": result.report.macs_after},
    )
    save_checkpoint(path, result.model, pruned)


def _result(
    report: Report, compensation: Sequence[Compensation], *, out: Path | None, plan: PruningPlan | None = None
) -> PruneResult:
    pruned = pruned_of(report)
    return PruneResult(
        **cut_figures(report),
        channels=pruned.channels,
        params=pruned.params,
        macs=pruned.macs,
        seconds={**seconds_of(report), "total": round(sum(report.seconds.values()), 4)},
        compensation=[CompensationOutcome(**asdict(done)) for done in compensation],
        out=None if out is None else str(out),
        plan=None if plan is None else plan.to_dict(),
    )
