"""Training of networks in the arena: the stages of bnprune's own pipeline, which continue where they were stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from arena.arms import Bench, base_recipe
from bnprune.config.schema import OptimisationConfig, PipelineConfig
from bnprune.data.splits import combined_seed
from bnprune.models.zoo import build
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.surgery import apply
from bnprune.runs.checkpoint import Header
from bnprune.runs.directory import RunDirectory
from bnprune.runs.display import NO_DISPLAY
from bnprune.runs.pipeline import execute
from bnprune.runs.preflight import spec_of
from bnprune.runs.stages import KINDS, kind_of
from bnprune.runs.training_log import TrainingLog
from bnprune.runs.training_stage import StageRequest, set_up
from bnprune.runs.weights import fit_state, read_tensors
from bnprune.training.distributed.processes import SINGLE_PROCESS
from bnprune.training.loop import train

Stopping = Callable[[], bool]


def opened(path: Path, config: PipelineConfig) -> RunDirectory:
    """Open a run directory: a new one, or that of an interrupted training."""
    if (path / "config.yaml").exists():
        return RunDirectory.resume(path, config)
    return RunDirectory.new(path, force=True)


def train_base(config: PipelineConfig, base: str, path: Path, stopping: Stopping) -> float:
    """Train a base; return the seconds it took.

    Raises:
        Interrupted: It was asked to stop; it can be continued.
    """
    recipe = base_recipe(config, base)
    result = execute(recipe, opened(path, recipe), NO_DISPLAY, stopping, ["train"])
    return result.stages["train"].seconds


def trained(
    network: nn.Module,
    bench: Bench,
    stage: str,
    settings: OptimisationConfig,
    path: Path,
    stopping: Stopping,
    teacher: nn.Module | None = None,
) -> tuple[nn.Module, float]:
    """Train a network, and return it as it was after its best epoch on validation images, with the seconds it took.

    This is what a stage of a recipe does, for networks that no plan of bnprune describes.

    Args:
        network: The network to start from; trained in place.
        bench: Recipe and data.
        stage: "finetune" or "scratch", which decides on the random numbers: all arms see the same images in the same
            order.
        settings: Epochs, learning rate and so on.
        path: The run directory; an interrupted training is continued.
        stopping: Returns True to stop.
        teacher: A network to learn from as well.

    Raises:
        Interrupted: It was asked to stop; it can be continued.
    """
    directory = opened(path, bench.config)
    with directory.locked():
        directory.begin(bench.config)
        saved = directory.load_state(stage)
        request = StageRequest(bench.config, stage, settings, saved)
        training = set_up(request, network, teacher, bench.splits, bench.device, SINGLE_PROCESS)
        directory.rewind(saved)
        header = Header(spec_of(bench.config))
        log = TrainingLog(directory, NO_DISPLAY, stage, settings, header, None, bench.splits.classes)
        log.seconds = 0.0 if saved is None else saved["seconds"]
        train(training.state, training.job, training.penalty, log, stopping)
        final = directory.load_state(stage)
        best = directory.checkpoint("best")
        fit_state(network, read_tensors(best), str(best))
    return network, final["seconds"] if final else log.seconds


def from_new_weights(config: PipelineConfig, plan: PruningPlan) -> nn.Module:
    """Return the slim architecture of a plan with new weights, and γ = 1."""
    torch.manual_seed(combined_seed(config.seed, KINDS.index(kind_of("scratch"))))
    return apply(plan, build(spec_of(config)))
