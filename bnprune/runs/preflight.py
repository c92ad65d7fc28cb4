"""Checks before a run: its device, network and data are opened and compared before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from bnprune.config.schema import ModelConfig, PipelineConfig, PruneConfig, TrainConfig
from bnprune.config.tables import LAYER_MEASUREMENTS
from bnprune.data import Splits, splits_of
from bnprune.errors import ConfigError, Problems, first_line
from bnprune.models.pretrained import build_pretrained
from bnprune.models.zoo import ModelSpec, build, set_gamma
from bnprune.notes import Note
from bnprune.pruning.draft_plan import require_cut
from bnprune.pruning.pruner import draft
from bnprune.pruning.scores import needs_data
from bnprune.runs.checkpoint import Header, load_checkpoint, read_header
from bnprune.runs.passes import request_of
from bnprune.runs.stages import kind_of, pass_of
from bnprune.runs.trust import spec_from_file
from bnprune.runs.weights import fit_state, read_weights
from bnprune.training.compatibility import require_fit
from bnprune.training.distributed.processes import SINGLE_PROCESS, Processes
from bnprune.training.evaluate import CLASSIFICATION
from bnprune.training.penalties.gamma import require_scale_factors
from bnprune.training.tasks.factory import make_task
from bnprune.training.tasks.task import Task

Network = tuple[nn.Module, Header]


@dataclass(frozen=True)
class Start:
    """Everything the first stage needs."""

    device: torch.device
    network: Network
    splits: Splits
    task: Task
    """Without the settings of a training."""
    prunable: int | None
    """BatchNorm channels that the prune stage may remove; None if there is no such stage."""
    notes: tuple[str, ...]
    """Remarks about the data, and about how the network fits them."""


def prepare(
    config: PipelineConfig, stages: Sequence[str], network: Network | None = None, processes: Processes = SINGLE_PROCESS
) -> Start:
    """Open what the stages of a recipe need, and check everything that could stop them.

    Args:
        config: The recipe.
        stages: Names of the stages to run.
        network: The network that the first of them starts from; default: built from the recipe.
        processes: The processes that train together.

    Raises:
        ConfigError: There is no such device, network or data set, or they do not fit each other or the processes.
        DataError: Data or weights cannot be read.
        PruningError: The network has nothing to prune, or no scale factors for a penalty.
    """
    needs_labels = any(kind_of(stage) != "finetune" for stage in stages)
    problems = Problems()
    with problems.noted():
        device = device_of(config, processes)
    with problems.noted():
        if not (problems and config.model.pretrained):  # no download if something is wrong already
            network = network or initial(config)
    with problems.noted():
        if not (problems and config.data.download):
            splits = splits_of(config, needs_labels=needs_labels)
    problems.raise_all()
    assert network is not None
    model = network[0]
    trained = any(kind_of(stage) != "prune" for stage in stages)
    task = make_task(config.task, splits.classes)
    fitted = task if splits.labelled else CLASSIFICATION
    scores = require_fit(model, splits, "model", config.data.batch_size if trained else None, fitted)
    notes = splits.notes
    if trained:
        notes = (*notes, *_unused_scores(scores, splits))
        _require_shares(config, splits, processes)
    if "train" in stages and (config.train or TrainConfig()).sparsity.penalty != "none":
        require_scale_factors(model)
    cuts = [stage for stage in stages if kind_of(stage) == "prune"]
    prunable = None
    if cuts:
        prunable = _prunable(model, splits, config.prune or PruneConfig(), first_pass=pass_of(cuts[0]) == 1)
    return Start(device, network, splits, task, prunable, notes)


def _unused_scores(scores: int | None, splits: Splits) -> tuple[Note, ...]:
    """Return a note if a network has more class scores than its data has classes, which is legal in fine-tuning."""
    if scores is None or not splits.labelled or not 1 < splits.classes < scores:  # 1: targets without classes
        return ()
    text = (
        f"the network returns {scores} class scores, and the data has {splits.classes} classes, so that the "
        f"other {scores - splits.classes} are never right. If you did not intend this, build the network with "
        f"num_classes={splits.classes} (model.kwargs)"
    )
    return (Note("model.unused_scores", "note", text),)


def _prunable(model: nn.Module, splits: Splits, config: PruneConfig, *, first_pass: bool) -> int:
    asked = request_of(config)
    LAYER_MEASUREMENTS(model, splits.example, asked, sensitivity=config.sensitivity, profile=config.profile)
    if (
        asked.latency_ms is not None or not first_pass
    ):  # solved later; here, check only that some channel can be removed
        asked = asked.aimed("ratio", 0.5)
    if needs_data(asked.ranked_by):  # the network may not be trained yet: its activations say nothing
        asked = replace(asked, criterion="gamma")
    drafted = draft(model, splits.example, asked)
    if first_pass:  # a later pass may have nothing to do
        require_cut(drafted)
    return drafted.channels[0]


def _require_shares(config: PipelineConfig, splits: Splits, processes: Processes) -> None:
    size, count = config.data.batch_size, len(splits.train)
    if size % processes.size:
        near = max(1, round(size / processes.size)) * processes.size
        raise ConfigError(
            f"data.batch_size: {size} images cannot be shared by {processes.size} processes in equal parts. "
            f"Use {near}: "
            "the batch is that of all processes together."
        )
    if processes.size > 1 and count < size:
        raise ConfigError(
            f"data.batch_size: with {processes.size} processes there must be a whole batch (got {size}, and {count} "
            "training images)."
        )


def device_of(config: PipelineConfig, processes: Processes) -> torch.device:
    """Return the device of this process. If several processes run on one machine, each has its own accelerator.

    If there are more processes than accelerators, they share the one that the recipe names, such as `cuda:0`.

    Raises:
        ConfigError: There is no such device, or not enough of them.
    """
    device = choose_device(config.device)
    if processes.size == 1 or device.type == "cpu":
        return device
    named = device.index is not None and config.device != "auto"
    if named and not processes.shares_accelerator:
        raise ConfigError(
            f"device: '{config.device}' cannot be shared by {processes.size} processes. Use {device.type}."
        )
    if processes.shares_accelerator:
        if named:
            return device
        raise ConfigError(
            f"device: there are more processes than devices of type {device.type} here. Start fewer processes, or let "
            f"them share one, which is slower: device={device.type}:0"
        )
    return choose_device(f"{device.type}:{processes.local_rank}")


def choose_device(name: str) -> torch.device:
    """Return the device a recipe asks for; `auto` takes an accelerator if there is one.

    Raises:
        ConfigError: There is no such device.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    choose = "Choose auto, cpu, cuda or mps."
    try:
        device = torch.device(name)
    except Exception as error:  # its message lists every kind of device that PyTorch can be built for
        raise ConfigError(f"device: '{name}' cannot be used: there is no such device. {choose}") from error
    try:
        torch.zeros(1, device=device).item()  # not on "meta", which computes nothing
    except Exception as error:  # a missing backend may fail in any way, also while it is imported
        raise ConfigError(f"device: '{name}' cannot be used: {_device_problem(error)}. {choose}") from error
    return device


def _device_problem(error: Exception) -> str:
    if isinstance(error, NotImplementedError | ImportError) or "INTERNAL ASSERT" in str(error):
        return "PyTorch computes nothing on it here"
    return first_line(error).partition(". ")[0]  # the rest is advice for people who build PyTorch


def spec_of(config: PipelineConfig) -> ModelSpec:
    """Return the specification of a recipe's network."""
    return ModelSpec(config.model.name, config.model.factory, config.model.kwargs)


def with_model(config: PipelineConfig, spec: ModelSpec) -> PipelineConfig:
    """Return a recipe whose `model` section is replaced by `spec`, so that the stored recipe repeats the run."""
    if spec_of(config) == spec:
        return config
    model = ModelConfig(name=spec.name, factory=spec.factory, kwargs=dict(spec.kwargs))
    return config.model_copy(update={"model": model})


def initial(config: PipelineConfig) -> Network:
    """Build the recipe's network with its initial weights, the same ones for the same seed.

    Raises:
        ConfigError: There is no such network.
        CheckpointError: Its weights cannot be read or downloaded, or do not fit.
    """
    torch.manual_seed(config.seed)
    spec = spec_of(config)
    model = (build_pretrained if config.model.pretrained else build)(spec)
    if config.model.weights is not None:
        fit_state(model, read_weights(config.model.weights), f"model.weights: '{config.model.weights}'")
    if config.model.gamma_init is not None:
        set_gamma(model, config.model.gamma_init)
    return model, Header(spec)


def load_stage(config: PipelineConfig, path: Path) -> Network:
    """Load a checkpoint of a run.

    The user has named the recipe, so it is trusted like a script. The checkpoint is not: its network is the one of the
    recipe, or one of those that an untrusted file may name.
    """
    spec = spec_of(config)
    same = spec_from_file(spec.to_dict(), trusted=False)[0] == read_header(path).spec
    return load_checkpoint(path, build(spec) if spec.own or same else None)
