"""A training stage, in one process or in several: the leader hands it out, the others take part.

The leader's network, recipe and saved state reach the others through the network, so that files are read and written by
one process alone; images are read by each. Before training starts, all compare what they have.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnprune.config.schema import FinetuneConfig, OptimisationConfig, PipelineConfig, SparsityConfig, TrainConfig
from bnprune.data import Splits, load_data
from bnprune.data.splits import mixed
from bnprune.errors import BnpruneError, CheckpointError, Interrupted, PeerFailed, TrainingError
from bnprune.models.zoo import ModelSpec, build
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.surgery import apply
from bnprune.runs.preflight import Network, device_of
from bnprune.runs.stages import KINDS, kind_of, pass_of
from bnprune.runs.weights import fit_state
from bnprune.training.distill import as_teacher
from bnprune.training.distributed.processes import Processes
from bnprune.training.loop import EpochRecord, TrainingJob, begin, train
from bnprune.training.penalties.gamma import Penalty, TravelBudget
from bnprune.training.penalties.table import make_penalty
from bnprune.training.state import Progress, State


@dataclass(frozen=True)
class StageTask:
    """What a training stage is to do."""

    config: PipelineConfig
    stage: str
    settings: OptimisationConfig
    saved: dict[str, Any] | None
    """The state of an interrupted training."""


@dataclass(frozen=True)
class Training:
    """A stage that is set up, ready to run from wherever its state stands."""

    job: TrainingJob
    state: State
    penalty: Penalty | None
    budget: TravelBudget | None


def settings_of(config: PipelineConfig, stage: str) -> OptimisationConfig:
    """Return how a stage trains: the baseline as the sparse training does, without sparsity."""
    if kind_of(stage) == "finetune":
        return config.finetune or FinetuneConfig()
    settings = config.train or TrainConfig()
    plain = SparsityConfig(penalty="none")
    return settings.model_copy(update={"sparsity": plain}) if stage == "baseline" else settings


def set_up(
    stage_task: StageTask,
    model: nn.Module,
    teacher: nn.Module | None,
    splits: Splits,
    device: torch.device,
    processes: Processes,
) -> Training:
    """Get a stage ready; the same in every process.

    Args:
        stage_task: What is to be done.
        model: What it starts from; trained in place.
        teacher: A network it learns from.
        splits: The data.
        device: Of this process.
        processes: The processes.
    """
    config, stage, settings = stage_task.config, stage_task.stage, stage_task.settings
    # A stage's randomness must not be that of another, but baseline and train are to be compared: same order, same
    # augmentation.
    same = "train" if stage == "baseline" else stage
    seed = mixed(config.seed, KINDS.index(kind_of(same)), *([pass_of(stage)] if pass_of(stage) > 1 else []))
    distill = config.finetune.distill if config.finetune else None
    taught = as_teacher(teacher, device, distill.temperature, distill.weight) if teacher and distill else None
    job = TrainingJob(splits, config.data.batch_size, settings, device, seed, processes, taught)
    state = begin(model, job)
    sparsity = settings.sparsity if isinstance(settings, TrainConfig) else None
    example = splits.example.to(device)
    penalty, budget = make_penalty(
        model, settings, sparsity, job.updates_per_epoch, example_inputs=example, prune=config.prune
    )
    if stage_task.saved is not None:
        state.restore(stage_task.saved, processes)
        _require_reachable(state.progress, job)
    return Training(job, state, penalty, budget)


def _require_reachable(progress: Progress, job: TrainingJob) -> None:
    for name, most in (("epoch", job.config.epochs), ("step", job.steps_per_epoch), ("seen", math.inf)):
        if not 0 <= (found := getattr(progress, name)) <= most:
            raise CheckpointError(f"'own.progress.{name}' is {found}, and must be from 0 to {most}.")


# -- several processes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Packed:
    """A network on its way to another process, which builds it anew."""

    spec: ModelSpec
    plans: tuple[PruningPlan, ...]
    weights: dict[str, torch.Tensor]


def _packed(network: Network) -> _Packed:
    model, header = network
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return _Packed(header.spec, header.plans, weights)


def _unpacked(packed: _Packed) -> nn.Module:
    model = build(packed.spec)
    for plan in packed.plans:
        model = apply(plan, model)
    fit_state(model, packed.weights, "what the leading process sent")
    return model


def hand_out(processes: Processes, stage_task: StageTask, network: Network, teacher: Network | None) -> None:
    """Leader: let the other processes take part in a training."""
    if processes.size > 1:
        processes.send((stage_task, _packed(network), teacher and _packed(teacher)))
        require_equal(processes, network[0], network[1].plans)


def follow(processes: Processes, stopping: Callable[[], bool]) -> None:
    """Others: take part in every training that the leader hands out, until there are no more.

    Raises:
        PeerFailed: Training ended early for a reason that all processes have, and the leader tells.
        BnpruneError: Something is wrong in this process alone.
    """
    try:
        _follow(processes, stopping)
    except (Interrupted, TrainingError) as error:  # what all agreed on
        raise PeerFailed(error.exit_code) from error
    except PeerFailed:
        raise
    except BnpruneError as error:
        raise type(error)(f"process {processes.rank}: {error}") from error


def _follow(processes: Processes, stopping: Callable[[], bool]) -> None:
    splits: Splits | None = None
    while (assignment := processes.receive()) is not None:
        stage_task, network, teacher = assignment
        config = stage_task.config
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        model = _unpacked(network)
        require_equal(processes, model, network.plans)
        splits = splits or load_data(config.data)
        training = set_up(
            stage_task, model, teacher and _unpacked(teacher), splits, device_of(config, processes), processes
        )
        train(training.state, training.job, training.penalty, Silence(), stopping)


def require_equal(processes: Processes, model: nn.Module, plans: tuple[PruningPlan, ...]) -> None:
    """Compare networks before training them together: one that was cut otherwise would silently go its own way.

    Raises:
        BnpruneError: They differ; in every process.
    """
    found = processes.gather(_digest(model, plans))
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


class Silence:
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
