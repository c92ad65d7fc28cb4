"""A training stage, in one process or in several: the leader hands it out, the others take part.

The leader's network, recipe and saved state reach the others through the network, so that files are read and written by
one process alone; images are read by each. Before training starts, all compare what they have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnprune.config import FinetuneConfig, OptimisationConfig, PipelineConfig, SparsityConfig, TrainConfig
from bnprune.data import Splits, load_data
from bnprune.data.splits import mixed
from bnprune.errors import BnpruneError, Interrupted, PeerFailed, TrainingError
from bnprune.models.zoo import ModelSpec, build
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.surgery import apply
from bnprune.runs.checkpoint import Header, fit_state
from bnprune.runs.stages import KINDS, kind_of, pass_of
from bnprune.runs.start import device_of
from bnprune.training.loop import EpochRecord, State, Task, begin, train
from bnprune.training.penalty import make_penalty
from bnprune.training.sparsity import Budget, Penalty
from bnprune.training.world import World


@dataclass(frozen=True)
class Training:
    """A stage that is set up, ready to run from wherever its state stands."""

    task: Task
    state: State
    penalty: Penalty | None
    budget: Budget | None


def settings_of(config: PipelineConfig, stage: str) -> OptimisationConfig:
    """Return how a stage trains: the baseline as the sparse training does, without sparsity."""
    if kind_of(stage) == "finetune":
        return config.finetune or FinetuneConfig()
    settings = config.train or TrainConfig()
    plain = SparsityConfig(penalty="none")
    return settings.model_copy(update={"sparsity": plain}) if stage == "baseline" else settings


def set_up(
    config: PipelineConfig,
    stage: str,
    model: nn.Module,
    splits: Splits,
    device: torch.device,
    world: World,
    saved: dict[str, Any] | None,
) -> Training:
    """Get a stage ready; the same in every process.

    Args:
        config: The recipe.
        stage: Its name.
        model: What it starts from; trained in place.
        splits: The data.
        device: Of this process.
        world: The processes.
        saved: The state of an interrupted training.
    """
    settings = settings_of(config, stage)
    # A stage's randomness must not be that of another, but baseline and train are to be compared: same order, same
    # augmentation.
    same = "train" if stage == "baseline" else stage
    seed = mixed(config.seed, KINDS.index(kind_of(same)), *([pass_of(stage)] if pass_of(stage) > 1 else []))
    task = Task(splits, config.data.batch_size, settings, device, seed, world)
    state = begin(model, task)
    sparsity = settings.sparsity if isinstance(settings, TrainConfig) else None
    penalty, budget = make_penalty(model, settings, sparsity, task.updates_per_epoch)
    if saved is not None:
        state.restore(saved, world)
    return Training(task, state, penalty, budget)


# -- several processes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Assignment:
    """What the leader hands out."""

    config: PipelineConfig
    stage: str
    spec: ModelSpec
    plans: tuple[PruningPlan, ...]
    weights: dict[str, torch.Tensor]
    saved: dict[str, Any] | None


def hand_out(
    world: World, config: PipelineConfig, stage: str, model: nn.Module, header: Header, saved: dict[str, Any] | None
) -> None:
    """Leader: let the other processes take part in a training."""
    if world.size == 1:
        return
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    world.send(Assignment(config, stage, header.spec, header.plans, weights, saved))
    _require_equal(world, model, header.plans)


def follow(world: World, stopping: Callable[[], bool]) -> None:
    """Others: take part in every training that the leader hands out, until there are no more.

    Raises:
        PeerFailed: Training ended early for a reason that all processes have, and the leader tells.
        BnpruneError: Something is wrong in this process alone.
    """
    try:
        _follow(world, stopping)
    except (Interrupted, TrainingError) as error:  # what all agreed on
        raise PeerFailed(error.exit_code) from error
    except PeerFailed:
        raise
    except BnpruneError as error:
        raise type(error)(f"process {world.rank}: {error}") from error


def _follow(world: World, stopping: Callable[[], bool]) -> None:
    splits: Splits | None = None
    while (assignment := world.receive()) is not None:
        config = assignment.config
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        model = _rebuilt(assignment)
        _require_equal(world, model, assignment.plans)
        splits = splits or load_data(config.data)
        training = set_up(config, assignment.stage, model, splits, device_of(config, world), world, assignment.saved)
        train(training.state, training.task, training.penalty, _Silence(), stopping)


def _rebuilt(assignment: Assignment) -> nn.Module:
    model = build(assignment.spec)
    for plan in assignment.plans:
        model = apply(plan, model)
    fit_state(model, assignment.weights, "what the leading process sent")
    return model


def _require_equal(world: World, model: nn.Module, plans: tuple[PruningPlan, ...]) -> None:
    """Compare networks before training them together: one that was cut otherwise would silently go its own way."""
    found = world.gather(_digest(model, plans))
    odd = [rank for rank, digest in enumerate(found) if digest != found[0]]
    if odd:
        raise BnpruneError(
            f"processes {', '.join(map(str, odd))} hold another network than process 0. Are all machines running the "
            "same version of bnprune and of your own code?"
        )


def _digest(model: nn.Module, plans: tuple[PruningPlan, ...]) -> str:
    digest = hashlib.sha256()
    for plan in plans:
        digest.update(plan.to_json().encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Silence:
    """The `Log` of a process that does not lead."""

    def on_step(self, state: State, steps: int, loss: float) -> None:
        """Say nothing."""

    def on_epoch(self, record: EpochRecord, state: State) -> None:
        """Write nothing."""

    def wants_state(self) -> bool:
        """Leave that to the leader."""
        return False

    def on_state(self, saved: dict[str, Any]) -> None:
        """Write nothing."""
