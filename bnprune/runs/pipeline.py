"""The stages of a recipe: baseline, train, prune, finetune. Each can be resumed and adds its figures to the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnprune.config import FinetuneConfig, OptimisationConfig, PipelineConfig, PruneConfig, SparsityConfig, TrainConfig
from bnprune.data import Splits, load_data
from bnprune.data.splits import mixed
from bnprune.errors import ConfigError
from bnprune.models.zoo import ModelSpec, build, set_gamma
from bnprune.pruning.cost import cost
from bnprune.pruning.latency import latencies
from bnprune.pruning.prune import prune
from bnprune.recipe import as_data
from bnprune.runs.checkpoint import Header, fit_state, load_checkpoint, load_weights, read_weights, save_checkpoint
from bnprune.runs.directory import STAGES, RunDirectory
from bnprune.runs.files import write_text
from bnprune.runs.summary import describe
from bnprune.runs.tracker import Display, Tracker
from bnprune.training.evaluate import evaluate
from bnprune.training.loop import Task, begin, train
from bnprune.training.penalty import make_penalty

RESULT_SCHEMA = "bnprune.run/1"
Network = tuple[nn.Module, Header]


@dataclass(frozen=True)
class Run:
    """One execution of a recipe."""

    config: PipelineConfig
    directory: RunDirectory
    display: Display
    stopping: Callable[[], bool]
    device: torch.device
    splits: Splits

    @property
    def inputs(self) -> torch.Tensor:
        """One input, for tracing and counting."""
        return torch.zeros(1, *self.splits.shape)


def execute(
    config: PipelineConfig,
    directory: RunDirectory,
    display: Display,
    stopping: Callable[[], bool],
    stages: Sequence[str],
    start: Network | None = None,
) -> dict[str, Any]:
    """Run stages one after the other, skipping those that are finished, and return the result.

    Args:
        config: The recipe.
        directory: Where everything goes; a run that was interrupted goes on.
        display: Where to show progress.
        stopping: Whether the user has asked to stop.
        stages: Names of stages, in order.
        start: The network the first stage starts from; default: built from the recipe.

    Raises:
        BnpruneError: Whatever goes wrong; finished stages and checkpoints stay.
    """
    result = directory.result() or {"schema": RESULT_SCHEMA, "seed": config.seed, "stages": {}}
    todo = [stage for stage in stages if stage not in result["stages"]]
    if not todo:
        display.note(f"Nothing to do: every stage of '{directory.path}' is finished.")
        return result
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    run = Run(config, directory, display, stopping, choose_device(config.device), load_data(config.data))
    for stage in todo:
        started = time.perf_counter()
        network = _starting_point(run, stage, result, start)
        figures = _STAGES[stage](run, *network)
        figures["seconds"] = round(figures.get("seconds", 0.0) + time.perf_counter() - started, 3)
        result["stages"][stage] = figures
        directory.write_result(result)
        display.end(stage, figures)
    _measure_latency(run, result, stages)
    directory.write_result(result)
    return result


def choose_device(name: str) -> torch.device:
    """Return the device a recipe asks for; `auto` takes an accelerator where there is one.

    Raises:
        ConfigError: There is no such device.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"device: '{name}' cannot be used: {reason}. Choose auto, cpu, cuda or mps.") from error
    return device


def _starting_point(run: Run, stage: str, result: Mapping[str, Any], start: Network | None) -> Network:
    """The network a stage starts from: what the stages before it left, what was handed in, or a fresh one."""
    before = STAGES[: STAGES.index(stage)]
    done = [name for name in before if name in result["stages"] and name != "baseline"]
    if stage != "baseline" and done:
        return load_stage(run.config, run.directory.checkpoint(done[-1]))
    if start is not None:
        return start
    return fresh(run.config), Header(spec_of(run.config))


def spec_of(config: PipelineConfig) -> ModelSpec:
    """Return how the recipe's network is built."""
    return ModelSpec(config.model.name, config.model.factory, config.model.kwargs)


def fresh(config: PipelineConfig) -> nn.Module:
    """Build the recipe's network with its initial weights, the same ones for the same seed.

    Raises:
        ConfigError: There is no such network.
        CheckpointError: Its weights cannot be read, or do not fit.
    """
    torch.manual_seed(config.seed)
    model = build(spec_of(config))
    if config.model.weights is not None:
        fit_state(model, read_weights(config.model.weights), f"model.weights: '{config.model.weights}'")
    if config.model.gamma_init is not None:
        set_gamma(model, config.model.gamma_init)
    return model


def load_stage(config: PipelineConfig, path: Path) -> Network:
    """Load a checkpoint of a run; its recipe may name a factory, which is trusted like a script."""
    spec = spec_of(config)
    return load_checkpoint(path, build(spec) if spec.own else None)


# -- stages ----------------------------------------------------------------------------------------------------------


def _baseline(run: Run, model: nn.Module, header: Header) -> dict[str, Any]:
    config = run.config.train or TrainConfig()
    plain = config.model_copy(update={"sparsity": SparsityConfig(penalty="none")})
    return _training(run, model, header, "baseline", plain)


def _train(run: Run, model: nn.Module, header: Header) -> dict[str, Any]:
    return _training(run, model, header, "train", run.config.train or TrainConfig())


def _finetune(run: Run, model: nn.Module, header: Header) -> dict[str, Any]:
    return _training(run, model, header, "finetune", run.config.finetune or FinetuneConfig())


def _training(run: Run, model: nn.Module, header: Header, stage: str, config: OptimisationConfig) -> dict[str, Any]:
    # A stage's randomness must not be that of another, but baseline and train are to be compared: same order, same
    # augmentation.
    seed = mixed(run.config.seed, STAGES.index("train" if stage == "baseline" else stage))
    task = Task(run.splits, run.config.data.batch_size, config, run.device, seed)
    state = begin(model, task)
    sparsity = config.sparsity if isinstance(config, TrainConfig) else None
    penalty, budget = make_penalty(model, config, sparsity, task.updates_per_epoch)
    tracker = Tracker(run.directory, run.display, stage, config, _header(run, header, stage), sparsity)
    saved = run.directory.load_state(stage)
    if saved is not None:
        state.restore(saved)
        tracker.seconds = saved["seconds"]
    run.display.begin(stage, config.epochs, str(budget) if budget else "")
    if budget is not None and budget.strength and not budget.enough:
        run.display.note(f"warning: {budget}. Raise train.sparsity.lambda, or set it to auto.")
    if run.config.data.batch_size < 8:
        run.display.note("warning: BatchNorm is unreliable with batches below 8; raise data.batch_size.")
    train(state, task, penalty, tracker, run.stopping)
    # Scale factors are sparsest at the end; elsewhere the epoch that did best on validation counts.
    choice = "last" if stage == "train" else "best"
    load_weights(run.directory.checkpoint(choice), model)
    extra: dict[str, Any] = {"epochs": config.epochs, "chosen": choice, "seconds": tracker.seconds}
    if budget is not None:
        extra["sparsity"] = {"lambda": budget.strength, "travel": budget.travel, **tracker.gamma_figures(model)}
    return _conclude(run, model, header, stage, extra)


def _prune(run: Run, model: nn.Module, header: Header) -> dict[str, Any]:
    config = run.config.prune or PruneConfig()
    run.display.begin("prune", 0, f"removing {config.ratio:.0%} of the prunable channels")
    outcome = prune(
        model,
        run.inputs,
        ratio=config.ratio,
        min_channels=config.min_channels,
        exclude=config.exclude,
        criterion=config.criterion,
        reduce=config.reduce,
    )
    write_text(run.directory.plan_file, outcome.plan.to_json())
    slim = Header(header.spec, (*header.plans, outcome.plan))
    return _conclude(run, outcome.model, slim, "prune", describe(outcome.report))


_STAGES: dict[str, Callable[[Run, nn.Module, Header], dict[str, Any]]] = {
    "baseline": _baseline,
    "train": _train,
    "prune": _prune,
    "finetune": _finetune,
}


def _header(run: Run, before: Header, stage: str, metrics: Mapping[str, Any] | None = None) -> Header:
    return Header(
        spec=before.spec,
        plans=before.plans,
        input_shape=run.splits.shape,
        stage=stage,
        config=as_data(run.config),
        metrics=metrics or {},
    )


def _conclude(run: Run, model: nn.Module, header: Header, stage: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate a stage's network, save it, and return its figures."""
    model.to(run.device)
    validation = evaluate(model, run.splits.validation, run.device)
    test = evaluate(model, run.splits.test, run.device)
    counted = cost(model, run.inputs)
    figures: dict[str, Any] = {
        "accuracy": test.top1,
        "validation_accuracy": validation.top1,
        "loss": test.loss,
        "channels": counted.channels,
        "params": counted.params,
        "macs": counted.macs,
    }
    path = run.directory.checkpoint(stage)
    save_checkpoint(path, model, _header(run, header, stage, figures))
    run.directory.append_metrics({"stage": stage, "split": "test", "top1": test.top1, "loss": test.loss})
    return {**figures, "file_bytes": path.stat().st_size, **extra, "checkpoint": f"checkpoints/{path.name}"}


def _measure_latency(run: Run, result: dict[str, Any], stages: Sequence[str]) -> None:
    """Measure the networks of all finished stages side by side: batch 1, median of 30 passes."""
    done = [stage for stage in stages if stage in result["stages"]]
    models = [load_stage(run.config, run.directory.checkpoint(stage))[0].to(run.device) for stage in done]
    taken = latencies(models, (run.inputs.to(run.device),), runs=30)
    for stage, seconds in zip(done, taken, strict=True):
        result["stages"][stage]["latency_ms"] = round(seconds * 1e3, 4)
