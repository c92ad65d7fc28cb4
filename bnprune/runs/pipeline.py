"""The stages of a recipe: baseline, train, prune, finetune. Each can be resumed and adds its figures to the result."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from bnprune.channels.pytrees import as_inputs
from bnprune.config.metrics import metric_of
from bnprune.config.recipe import as_data
from bnprune.config.schema import OptimisationConfig, PipelineConfig, PruneConfig, TrainConfig
from bnprune.config.tables import LAYER_MEASUREMENTS
from bnprune.data import Splits
from bnprune.errors import PruningError
from bnprune.models.zoo import build
from bnprune.notes import Note
from bnprune.pruning.cost import cost
from bnprune.pruning.latency import latencies
from bnprune.pruning.layer_measurements import LayerMeasurements
from bnprune.pruning.pruner import PruningResult, prune_as_requested
from bnprune.pruning.report import Report
from bnprune.pruning.request import Request
from bnprune.recovery.input_statistics import unlike_training
from bnprune.recovery.recover import recover
from bnprune.recovery.sweep import Point, sweep
from bnprune.recovery.sweep_choice import choose, why_not_larger
from bnprune.recovery.training_images import calibration_for
from bnprune.runs.checkpoint import Header, load_weights, save_checkpoint
from bnprune.runs.directory import RunDirectory
from bnprune.runs.display import Display
from bnprune.runs.files import write_text
from bnprune.runs.from_scratch import scratch_network, scratch_training
from bnprune.runs.input_format import input_format_of
from bnprune.runs.networks_before import networks_before
from bnprune.runs.passes import request_of
from bnprune.runs.preflight import Network, initial, load_stage, prepare
from bnprune.runs.requirements import require_tools
from bnprune.runs.results import Document, RunResult, Sparsity, StageResult, SweepPoint, TeacherComparison
from bnprune.runs.scale_factors import save_gammas
from bnprune.runs.stages import CONTROLS, kind_of, order_of, pass_of
from bnprune.runs.summary import cut_figures, describe_request, pruned_of, recovery_outcome, seconds_of
from bnprune.runs.teacher import find_teacher, require_teacher
from bnprune.runs.tensorboard_log import open_tensorboard_log
from bnprune.runs.training_log import TrainingLog
from bnprune.runs.training_stage import StageRequest, Training, send_stage, set_up, settings_of
from bnprune.training.distributed.processes import SINGLE_PROCESS, Processes
from bnprune.training.evaluate import Score, evaluate, paired_score, validation_score
from bnprune.training.loop import train
from bnprune.training.penalties.table import shortage, shortfall
from bnprune.training.state import require_processes
from bnprune.training.tasks.task import Task
from bnprune.training.warnings import collapse, small_batches


@dataclass(frozen=True)
class Run:
    """One execution of a recipe."""

    config: PipelineConfig
    directory: RunDirectory
    display: Display
    stopping: Callable[[], bool]
    device: torch.device
    splits: Splits
    task: Task
    """With which networks are evaluated."""
    processes: Processes


def execute(
    config: PipelineConfig,
    directory: RunDirectory,
    display: Display,
    stopping: Callable[[], bool],
    stages: Sequence[str],
    network: Network | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> RunResult:
    """Run stages one after the other, skipping those that are finished, and return the result.

    Args:
        config: The recipe.
        directory: The run directory; an interrupted run is continued. Everything that can be checked beforehand is
            checked before anything is written or removed.
        display: Where to show progress.
        stopping: Returns True if the user has asked to stop.
        stages: Names of stages, in order.
        network: The network that the first stage starts from; default: built from the recipe.
        processes: The processes that train together; the other ones call `follow`.

    Raises:
        BnpruneError: A stage failed; finished stages and checkpoints are kept.
    """
    with directory.locked():
        return _execute(config, directory, display, stopping, stages, network, processes)


def _execute(
    config: PipelineConfig,
    directory: RunDirectory,
    display: Display,
    stopping: Callable[[], bool],
    stages: Sequence[str],
    network: Network | None,
    processes: Processes,
) -> RunResult:
    result = directory.result().model_copy(update={"seed": config.seed})
    todo = [stage for stage in stages if stage not in result.stages]
    if not todo and all(result.stages[stage].latency_ms is not None for stage in stages):
        display.note(f"Nothing to do: every stage of '{directory.path}' is finished.")
        return result
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    display.doing("reading the data and tracing the network")
    before = _network_before(config, directory, result, todo[0]) if todo else None
    start = prepare(config, todo, before or network, processes)
    require_teacher(config, stages, start.splits, start.network[0], start.task)
    require_tools(config, todo, start.device)
    for note in start.notes:
        display.note(f"note: {note}")
    directory.begin(config)
    if not result.stages and not directory.gamma_file.exists():
        save_gammas(directory.gamma_file, start.network[0])
    run = Run(config, directory, display, stopping, start.device, start.splits, start.task, processes)
    result.inputs = input_format_of(start.splits)
    if network is not None and not result.before:
        result.before = _networks_before(run, *network)
    display.schedule(_epochs(config, todo))
    for stage in todo:
        started = time.perf_counter()
        first = start.network if stage == todo[0] else None
        model, header = first or _network_before(config, directory, result, stage) or initial(config)
        figures = _KINDS[kind_of(stage)](run, model, header, stage)
        figures.seconds = round(figures.seconds + time.perf_counter() - started, 3)
        result.stages[stage] = figures
        result.metrics_bytes = directory.metrics_bytes()
        directory.write_result(result)
        display.end(stage, figures)
    display.doing("measuring the latency of the networks")
    _measure_latency(run, result, stages)
    directory.write_result(result)
    return result


def _epochs(config: PipelineConfig, stages: Sequence[str]) -> dict[str, int]:
    """Return the epochs of every stage; 0 for the cuts. `scratch` takes as long as all other training together."""
    trained = {stage: settings_of(config, stage).epochs for stage in stages if kind_of(stage) in ("train", "finetune")}
    known = trained | {"baseline": settings_of(config, "baseline").epochs, "scratch": sum(trained.values())}
    return {stage: known.get(stage, 0) for stage in stages}


def _networks_before(run: Run, model: nn.Module, header: Header) -> dict[str, StageResult]:
    if not header.plans:
        run.display.note(Note("finetune.dense", "warning", _NOT_CUT))
        return {}
    model.to(run.device)
    dense = build(header.spec).to(run.device)
    accuracies = _accuracies(run, model, run.task) if run.splits.labelled else dict.fromkeys(_ACCURACIES)
    return networks_before(_sizes(run, dense), accuracies | _sizes(run, model))


_ACCURACIES = ("accuracy", "validation_accuracy", "loss")
_LOOKED_AT = 64
"""Images without labels that are compared with those that the teacher was trained on."""
_NOT_CUT = "nothing was cut from this network: it has no pruning plan. It is trained on as it is"


def _network_before(config: PipelineConfig, directory: RunDirectory, result: RunResult, stage: str) -> Network | None:
    """Return the network that a stage starts from: that of the stage before it; None if there is none."""
    before = [name for name in result.stages if order_of(name) < order_of(stage) and kind_of(name) not in CONTROLS]
    return load_stage(config, directory.checkpoint(max(before, key=order_of))) if before else None


# -- stages ----------------------------------------------------------------------------------------------------------


def _scratch(run: Run, model: nn.Module, header: Header, stage: str) -> StageResult:
    model, header = scratch_network(run.config, run.directory)
    return _training(run, model, header, stage, scratch_training(run.config, run.directory.result().stages))


def _training(
    run: Run, model: nn.Module, header: Header, stage: str, settings: OptimisationConfig | None = None
) -> StageResult:
    teacher = find_teacher(run.config, run.directory) if kind_of(stage) == "finetune" else None
    saved = run.directory.load_state(stage)
    with run.directory.naming_state_file():
        require_processes(saved, run.processes)
    start = None if run.splits.labelled else copy.deepcopy(model)  # to compare with: a saved state replaces the weights
    stage_request = StageRequest(run.config, stage, settings or settings_of(run.config, stage), saved)
    send_stage(run.processes, stage_request, (model, header), teacher)
    with run.directory.naming_state_file():
        training = set_up(stage_request, model, teacher and teacher[0], run.splits, run.device, run.processes)
    run.directory.rewind(saved)
    config, budget = training.job.config, training.budget
    sparsity = config.sparsity if isinstance(config, TrainConfig) else None
    training_log = TrainingLog(
        run.directory, run.display, stage, config, _header(run, header, stage), sparsity, run.splits.classes
    )
    if saved is not None:
        training_log.seconds = saved["seconds"]
    together = min(run.config.data.batch_size, len(run.splits.train))
    images = together * training.job.steps_per_epoch
    run.display.begin(stage, config.epochs, str(budget) if budget else "", images)
    if budget and sparsity and (too_short := shortage(budget, config, sparsity)):
        run.display.note(too_short)
    if problem := small_batches(together if config.sync_bn else together // run.processes.size):
        run.display.note(problem)
    if not run.splits.labelled and teacher is not None:
        _note_unlabelled(run, teacher[0])
    with open_tensorboard_log(
        run.config, run.directory, stage, training.state.progress.epoch
    ) as training_log.tensorboard_log:
        train(training.state, training.job, training.penalty, training_log, run.stopping)
    choice = _take_weights(run, training, model, stage)
    extra: dict[str, Any] = {"epochs": config.epochs, "chosen": choice, "seconds": training_log.seconds}
    if budget is not None:
        gamma = training_log.gamma_figures(model)
        strength = {"lambda": budget.strength, "travel": budget.travel}
        steered = {"lambda": "auto", "target": budget.target}
        extra["sparsity"] = Sparsity(**(strength if budget.target is None else steered), **gamma)
        if missed := shortfall(budget, gamma.get("below", 0.0)):
            run.display.note(Note("sparsity.target", "warning", missed))
    figures = _conclude(run, model, header, stage, extra, training.job.task)
    if start is not None and figures.teacher is not None:
        before = _held_out(run, start, training.job.task)
        figures.teacher.agreement_before, figures.teacher.divergence_before = before.value, before.loss
    return figures


def _note_unlabelled(run: Run, teacher: nn.Module) -> None:
    run.display.note(Note("distill.unlabelled", "note", _AGREEMENT))
    first = run.splits.train.serve([torch.arange(min(_LOOKED_AT, len(run.splits.train)))], run.device)
    if unlike := unlike_training(teacher.to(run.device), first):
        run.display.note(unlike)


def _take_weights(run: Run, training: Training, model: nn.Module, stage: str) -> str:
    """Load the weights of the epoch that the stage keeps; return which one it is."""
    # Scale factors are sparsest at the end of sparse training; for other stages, the best epoch on validation counts.
    choice = "last" if stage == "train" else "best"
    load_weights(run.directory.checkpoint(choice), model)
    if not training.job.keeps_start or training.state.progress.best_epoch >= 0:
        return choice
    run.display.note(Note("finetune.start", "note", _START_KEPT))
    return "start"


_START_KEPT = (
    "note: no epoch was better on the validation images than the network before fine-tuning, which is kept as it was. "
    "With a lower learning rate (finetune.lr), fine-tuning may improve the network"
)

_AGREEMENT = (
    "note: there are no labels, so accuracy is not known. Percentages are shares of images for which the network and "
    "its teacher predict the same class; the best epoch is the one with the largest share of the held-out images"
)


def _prune(run: Run, model: nn.Module, header: Header, stage: str) -> StageResult:
    config = run.config.prune or PruneConfig()
    run.directory.rewind()
    stages = run.directory.result().stages
    earlier = [figures.pruned for figures in stages.values() if figures.pruned is not None]
    extra: dict[str, Any] = {}
    try:
        request = request_of(config, pass_of(stage), *([earlier[0], earlier[-1]] if earlier else []))
        if config.ratio == "auto":
            run.display.doing("measuring the accuracy of cuts of several sizes")
            points, ratio = _swept(run, model, request, config)
            request = request.aimed("ratio", ratio)
            extra["sweep"] = [SweepPoint(**asdict(point)) for point in points]
        run.display.begin(stage, 0, describe_request(request))
        run.display.doing("cutting the network and comparing it with the original")
        outcome = _pruned(run, model, request)
    except PruningError as error:
        if not earlier:
            raise
        run.display.note(f"{stage}: the network stays as it is: {error}")
        return _conclude(run, model, header, stage, {"skipped": str(error)})
    write_text(run.directory.plan_file(stage), outcome.plan.to_json())
    run.display.doing("trying repairs of the cut network on validation images")
    recovery = recover(
        model,
        outcome.model,
        outcome.plan,
        run.splits,
        run.device,
        score=validation_score(run.splits, run.device, run.task),
        compensated=config.compensate,
        reconstruct_images=config.reconstruct,
        batches=config.recalibrate,
        batch_size=run.config.data.batch_size,
    )
    extra["recovery"] = recovery_outcome(recovery)
    kept = recovery.scores[recovery.chosen]
    metric = metric_of(kept.name)
    tried = ", ".join(f"{name} {metric.text(score.value)}" for name, score in recovery.scores.items())
    run.display.note(f"  validation {metric.label} after pruning: {tried}; kept: {recovery.chosen}")
    before = [figures.validation_accuracy for figures in stages.values()][-1:]
    if before and before[0] is not None and (problem := collapse(before[0], kept, run.splits.classes)):
        run.display.note(Note(problem.code, problem.level, f"{problem} after pruning. {_LESS}"))
    slim = Header(header.spec, (*header.plans, outcome.plan))
    return _conclude(run, recovery.model, slim, stage, _cut_result(outcome.report) | extra)


def _swept(run: Run, model: nn.Module, request: Request, config: PruneConfig) -> tuple[list[Point], float]:
    """Return the points of a sweep, and the ratio for `ratio: auto`: the recommended one, or else the measured one.

    Fine-tuning follows, so that a ratio whose loss may be larger than the tolerance is better than none.

    Raises:
        PruningError: Even the smallest ratio loses more than the tolerance.
    """
    score, tolerance = paired_score(run.splits, run.device, run.task), config.tolerance
    swept = sweep(model, run.splits, run.device, request, config, run.config.data.batch_size, score=score)
    choice, start, metric = choose(swept.points, tolerance), swept.points[0].accuracy, metric_of(swept.metric)
    if choice.best is None:
        raise PruningError(
            f"no cut keeps validation {metric.label} within {metric.text(tolerance, 1)} of {metric.text(start)}: "
            "train with more sparsity, allow more loss (tolerance), or give a ratio and fine-tune."
        )
    if choice.measured is not None and choice.measured != choice.recommended:
        allowed, ratio = metric.text(tolerance, 1), choice.measured.asked
        text = f"the largest ratio whose measured loss is within {allowed} is {ratio:g}, but "
        run.display.note(Note("sweep.unsure", "note", f"note: {text}{why_not_larger(swept, tolerance, choice)}"))
    return swept.points, choice.best.asked


_LESS = "Prune less (prune.ratio: auto finds a ratio), train with more sparsity, or fine-tune longer."


def _pruned(run: Run, model: nn.Module, request: Request) -> PruningResult:
    """Prune and verify on the CPU; for a latency target, on the device on which the latency is measured."""
    device = run.device if request.latency_ms is not None else torch.device("cpu")
    example = run.splits.example.to(device)
    calibration, config = calibration_for(run.splits.train, request), run.config.prune or PruneConfig()
    measured: LayerMeasurements = LAYER_MEASUREMENTS(
        model, example, request, sensitivity=config.sensitivity, profile=config.profile
    )
    for note in measured.notes:
        run.display.note(note)
    return prune_as_requested(
        model.to(device),
        example,
        request,
        calibration=calibration,
        latency=measured.latency,
        sensitivity=measured.sensitivity,
    )


def _cut_result(report: Report) -> dict[str, Any]:
    return {**cut_figures(report), "pruned": pruned_of(report), "steps_seconds": seconds_of(report)}


_KINDS: dict[str, Callable[[Run, nn.Module, Header, str], StageResult]] = {
    "baseline": _training,
    "train": _training,
    "prune": _prune,
    "finetune": _training,
    "scratch": _scratch,
}


def _header(run: Run, before: Header, stage: str, metrics: Mapping[str, Any] | None = None) -> Header:
    return Header(
        spec=before.spec,
        plans=before.plans,
        input_shape=run.splits.shape,
        stage=stage,
        config=as_data(run.config),
        inputs=input_format_of(run.splits),
        metrics=metrics or {},
    )


def _conclude(
    run: Run, model: nn.Module, header: Header, stage: str, extra: Mapping[str, Any], task: Task | None = None
) -> StageResult:
    """Evaluate a stage's network, save it, and return its figures."""
    run.display.doing("evaluating on held-out images")
    model.to(run.device)
    used = task or run.task
    found = _test(run, model, stage, used) if run.splits.labelled else _agreement(run, model, stage, used)
    figures = found | _sizes(run, model)
    path = run.directory.checkpoint(stage)
    metrics = {name: value.to_dict() if isinstance(value, Document) else value for name, value in figures.items()}
    save_checkpoint(path, model, _header(run, header, stage, metrics))
    size, name = path.stat().st_size, f"checkpoints/{path.name}"
    return StageResult(**figures, file_bytes=size, checkpoint=name, **extra)


def _sizes(run: Run, model: nn.Module) -> dict[str, int]:
    counted = cost(model, run.splits.example)
    return {"channels": counted.channels, "params": counted.params, "macs": counted.macs}


def _test(run: Run, model: nn.Module, stage: str, task: Task) -> dict[str, Any]:
    found = _accuracies(run, model, task)
    values = found.get("values") or {found.get("metric", "top1"): found["accuracy"], "loss": found["loss"]}
    run.directory.append_metrics({"stage": stage, "split": "test", **values})
    return found


def _accuracies(run: Run, model: nn.Module, task: Task) -> dict[str, Any]:
    validation = evaluate(model, run.splits.validation, run.device, task=task)
    test = evaluate(model, run.splits.test, run.device, task=task)
    found: dict[str, Any] = {
        "accuracy": test.value,
        "validation_accuracy": validation.value,
        "loss": test.values.get("loss"),
    }
    if test.name != "top1":
        found["metric"] = test.name
    if test.values.keys() - {test.name, "loss"}:
        found["values"] = dict(test.values)
    return found


def _agreement(run: Run, model: nn.Module, stage: str, task: Task) -> dict[str, Any]:
    """Without labels, return how near the network is to its teacher, on held-out images."""
    held_out = _held_out(run, model, task)
    found = {"agreement": held_out.value, "divergence": held_out.loss}
    run.directory.append_metrics({"stage": stage, "split": "validation", **found})
    return {**dict.fromkeys(_ACCURACIES), "teacher": TeacherComparison(**found, images=held_out.count)}


def _held_out(run: Run, model: nn.Module, task: Task) -> Score:
    return evaluate(model.to(run.device), run.splits.validation, run.device, task=task)


def _measure_latency(run: Run, result: RunResult, stages: Sequence[str]) -> None:
    """Measure the networks of all finished stages side by side: batch 1, median of 30 passes."""
    done = [stage for stage in stages if stage in result.stages]
    models = [load_stage(run.config, run.directory.checkpoint(stage))[0].to(run.device) for stage in done]
    taken = latencies(models, as_inputs(run.splits.example.to(run.device)), runs=30)
    for stage, seconds in zip(done, taken, strict=True):
        result.stages[stage].latency_ms = round(seconds * 1e3, 4)
