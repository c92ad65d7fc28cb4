"""Prune: open a network, prune it, verify and compensate the slim network, and save it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from bnprune.config.bounded_reading import DATA_BYTES, read_text
from bnprune.data.splits import Normalisation
from bnprune.errors import CheckpointError, ForwardError, Problems
from bnprune.notes import Note
from bnprune.pruning.calibration import DEFAULT_IMAGES, Calibration
from bnprune.pruning.draft_plan import describe_plan, require_cut
from bnprune.pruning.layer_measurements import LayerMeasurements
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.pruner import PruningResult, RepairOutcome, draft, prune_as_requested, replay
from bnprune.pruning.report import Report, make_report, report_of_plan
from bnprune.pruning.request import Request
from bnprune.pruning.scores import needs_data, uses_data
from bnprune.pruning.surgery import require_plan_fits
from bnprune.recovery.compensate import Compensation, compensate
from bnprune.recovery.repair import Repair
from bnprune.recovery.repair import repair as repair_network
from bnprune.runs.checkpoint import save_checkpoint
from bnprune.runs.display import NO_DISPLAY, Display
from bnprune.runs.network_source import NetworkSource, open_source
from bnprune.runs.outputs import require_checkpoint_name, require_output
from bnprune.runs.summary import cut_figures, pruned_of, seconds_of
from bnprune.workflows.calibration_data import CalibrationData, normalisation_of, open_calibration
from bnprune.workflows.cut_effect import cut_effect
from bnprune.workflows.layer_measurements import layer_measurements
from bnprune.workflows.results import CalibrationOutcome, CompensationOutcome, CutEffect, PruneResult


def prune(
    source: str | Path | None = None,
    request: Request | None = None,
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    input_shape: Sequence[int] | None = None,
    trust: bool = False,
    plan: str | Path | None = None,
    profile: str | Path | None = None,
    sensitivity: str | Path | None = None,
    compensated: bool = True,
    calibrate: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
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
        pretrained: Load the weights that torchvision or timm publish for `model`.
        input_shape: Shape of one input, without the batch.
        trust: Run the code and use the paths that the files name.
        plan: File with a plan to replay, in place of a request.
        profile: File with a latency profile, for a target in milliseconds; it gives the batch size and the backend.
        sensitivity: File with a sensitivity table of the network (`bnprune.sensitivity`), which decides how much each
            group of layers loses: all lose the same accuracy, as measured alone. Inside a group, the criterion ranks.
        compensated: After verification, add the constant output of removed channels to the biases of the next layers.
        calibrate: Calibration data: a folder of images, of any structure, or "package.module:factory", which returns an
            iterable of batches as for `bnprune.prune`. By default, the training images of the network's recipe, if they
            can be opened. Criteria measure activations on them; after the proof, the network is repaired with them
            (`bnprune.recovery.repair`). The request says how many are used; 0: no data.
        mean: Mean of the pixel values, between 0 and 1, that images of a folder are normalised with: one number, or one
            per channel. Default: that of the network's training images, if known, or of ImageNet.
        std: Their standard deviation, as for `mean`.
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
    problems = Problems()
    if not dry_run:
        inputs = (_path(source), _path(weights), _path(plan), _path(profile), _path(sensitivity))
        with problems.noted():
            require_output(target, force=force, sources=inputs)
            require_checkpoint_name(target, "out")
    with problems.noted():
        network = open_source(
            source,
            model=model,
            arguments=model_arguments,
            weights=weights,
            pretrained=pretrained and not problems,  # no download if something is wrong already
            shape=input_shape,
            needs_shape=True,
            trust=trust,
        )
        measured = layer_measurements(network.model, network.inputs, request, sensitivity=sensitivity, profile=profile)
        replayed = None if plan is None else _read_plan(Path(plan), network.model)
        data, notes = _calibration(network, request, calibrate, normalisation_of(mean, std), dry_run=dry_run)
    problems.raise_all()
    for note in measured.notes:
        display.note(note)
    notes = (*_cut_before(network), *notes)
    calibration = None if data is None else data.calibration
    if dry_run:
        report, planned = _foreseen(network, request, replayed, calibration, measured)
        return _result(network, _noted(report, notes), (), out=None, plan=planned, calibration=_calibrated(data, None))
    if replayed is not None:
        result = replay(replayed, network.model, network.inputs)
    else:
        result = prune_as_requested(
            network.model,
            network.inputs,
            _required(request),
            calibration=calibration,
            latency=measured.latency,
            sensitivity=measured.sensitivity,
        )
    result, done = _recovered(network, result, calibration, display, compensated=compensated)
    outcome = _calibrated(data, result.repair)
    _save(target, network, result, outcome)
    effect = cut_effect(network, result.model)
    return _result(network, _noted(result.report, notes), done, out=target, calibration=outcome, effect=effect)


def _cut_before(network: NetworkSource) -> tuple[Note, ...]:
    if not network.header.plans:
        return ()
    text = "the network was pruned before; shares of channels, parameters and MACs are of what it has now"
    return (Note("prune.again", "note", text),)


def _calibration(
    network: NetworkSource,
    request: Request | None,
    given: str | Path | None,
    normalisation: Normalisation | None,
    *,
    dry_run: bool,
) -> tuple[CalibrationData | None, tuple[Note, ...]]:
    """Open the calibration data; in a dry run, only check what is given if the criterion does not use it."""
    criterion = _required(request).ranked_by if request is not None else None
    if dry_run and (criterion is None or not uses_data(criterion)):
        if given is not None or normalisation is not None:
            open_calibration(network, given, 1, required=True, normalisation=normalisation)
        return None, ()
    count = DEFAULT_IMAGES if request is None else request.calibrate_images
    required = criterion is not None and needs_data(criterion)
    return open_calibration(network, given, count, required=required, normalisation=normalisation)


def _noted(report: Report, notes: tuple[Note, ...]) -> Report:
    return replace(report, notes=(*report.notes, *notes))


def _recovered(
    network: NetworkSource,
    result: PruningResult,
    calibration: Calibration | None,
    display: Display,
    *,
    compensated: bool,
) -> tuple[PruningResult, tuple[Compensation, ...]]:
    """Repair the slim network with calibration data, or compensate constants if there is none."""
    if calibration is None:
        return result, _compensated(network, result, display) if compensated else ()
    repair: Repair = repair_network(
        network.model, result.model, result.plan, network.inputs, calibration, compensated=compensated
    )
    report = _noted(result.report, repair.notes)
    return replace(result, model=repair.model, repair=repair, report=report), repair.compensation


def _calibrated(data: CalibrationData | None, repair: RepairOutcome | None) -> CalibrationOutcome | None:
    if data is None:
        return None
    return CalibrationOutcome(
        source=data.source,
        images=data.calibration.images,
        preprocessing=data.preprocessing,
        chosen=None if repair is None else repair.chosen,
        held_out=0 if repair is None else repair.held_out,
        distances={} if repair is None else dict(repair.distances),
    )


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _required(request: Request | None) -> Request:
    return Request() if request is None else request  # an empty request raises: a target is missing


def _foreseen(
    network: NetworkSource,
    request: Request | None,
    plan: PruningPlan | None,
    calibration: Calibration | None,
    measured: LayerMeasurements,
) -> tuple[Report, PruningPlan]:
    """Return the report of a plan, made now or replayed, without pruning, and the plan."""
    if plan is not None:
        return report_of_plan(plan, network.model, network.inputs), plan
    drafted = draft(
        network.model,
        network.inputs,
        _required(request),
        calibration=calibration,
        latency=measured.latency,
        sensitivity=measured.sensitivity,
    )
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


def _save(path: Path, network: NetworkSource, result: PruningResult, calibration: CalibrationOutcome | None) -> None:
    header = network.header
    metrics: dict[str, Any] = {"params": result.report.params_after, "macs": result.report.macs_after}
    if calibration is not None:
        metrics["calibration"] = calibration.to_dict()
    pruned = replace(
        header,
        plans=(*header.plans, result.plan),
        stage="prune",
        metrics=metrics,
    )
    save_checkpoint(path, result.model, pruned)


def _result(
    network: NetworkSource,
    report: Report,
    compensation: Sequence[Compensation],
    *,
    out: Path | None,
    plan: PruningPlan | None = None,
    calibration: CalibrationOutcome | None = None,
    effect: CutEffect | None = None,
) -> PruneResult:
    pruned = pruned_of(report)
    return PruneResult(
        **cut_figures(report) | {"notes": network.notes_with(report.notes)},
        channels=pruned.channels,
        params=pruned.params,
        macs=pruned.macs,
        seconds={**seconds_of(report), "total": round(sum(report.seconds.values()), 4)},
        compensation=[CompensationOutcome(**asdict(done)) for done in compensation],
        out=None if out is None else str(out),
        calibration=calibration,
        effect=effect,
        plan=None if plan is None else plan.to_dict(),
    )
