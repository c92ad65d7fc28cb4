"""A training stage, in one process or in several: the leader sends it, and the followers take part.

The leader broadcasts its network, recipe and saved state, so that only one process reads and writes files; images are
read by each process. Before training starts, the processes check that their networks are equal.
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
from bnprune.data import Splits, splits_of
from bnprune.data.splits import combined_seed
from bnprune.errors import BnpruneError, CheckpointError, Interrupted, PeerFailed, TrainingError
from bnprune.models.zoo import ModelSpec, build
from bnprune.pruning.plan import PruningPlan
from bnprune.pruning.surgery import apply
from bnprune.runs.preflight import Network, device_of
from bnprune.runs.stages import KINDS, kind_of, pass_of
from bnprune.runs.weights import fit_state
from bnprune.training.distill import as_teacher
from bnprune.training.distributed.processes import Processes
from bnprune.training.evaluate import Score
from bnprune.training.loop import EpochRecord, TrainingJob, begin, train
from bnprune.training.penalties.gamma import Penalty, TravelBudget
from bnprune.training.penalties.table import make_penalty
from bnprune.training.state import Progress, State
from bnprune.training.tasks.distillation import Distillation
from bnprune.training.tasks.factory import make_task


@dataclass(frozen=True)
class StageRequest:
    """The recipe, settings and saved state of one training stage, as the leader sends them."""

    config: PipelineConfig
    stage: str
    settings: OptimisationConfig
    saved: dict[str, Any] | None
    """The state of an interrupted training."""


@dataclass(frozen=True)
class Training:
    """A stage that is ready to run from the position in its state."""

    job: TrainingJob
    state: State
    penalty: Penalty | None
    budget: TravelBudget | None


def settings_of(config: PipelineConfig, stage: str) -> OptimisationConfig:
    """Return the settings of a stage; those of the baseline are those of `train` without sparsity."""
    if kind_of(stage) == "finetune":
        return config.finetune or FinetuneConfig()
    settings = config.train or TrainConfig()
    plain = SparsityConfig(penalty="none")
    return settings.model_copy(update={"sparsity": plain}) if stage == "baseline" else settings


def set_up(
    request: StageRequest,
    model: nn.Module,
    teacher: nn.Module | None,
    splits: Splits,
    device: torch.device,
    processes: Processes,
) -> Training:
    """Set up a stage, in the same way in every process.

    Args:
        request: The stage.
        model: The network that it starts from; trained in place.
        teacher: The network to learn from, if any.
        splits: The data.
        device: The device of this process.
        processes: The processes.
    """
    config, stage, settings = request.config, request.stage, request.settings
    # Each stage has random numbers of its own, except that baseline and train, which are compared, share the order of
    # the images and the augmentation.
    same = "train" if stage == "baseline" else stage
    seed = combined_seed(config.seed, KINDS.index(kind_of(same)), *([pass_of(stage)] if pass_of(stage) > 1 else []))
    distill = settings.distill if isinstance(settings, FinetuneConfig) else None
    learned_from = as_teacher(teacher, device, distill.temperature, distill.weight) if teacher and distill else None
    if splits.labelled:
        task = make_task(config.task, splits.classes, settings.label_smoothing)
    else:  # the teacher gives the targets
        assert learned_from is not None
        task, learned_from = Distillation(learned_from), None
    keeps_start = kind_of(stage) == "finetune"
    job = TrainingJob(
        splits, config.data.batch_size, settings, device, seed, processes, learned_from, task, keeps_start
    )
    state = begin(model, job)
    sparsity = settings.sparsity if isinstance(settings, TrainConfig) else None
    example = splits.example.to(device)
    penalty, budget = make_penalty(
        model, settings, sparsity, job.updates_per_epoch, example_inputs=example, prune=config.prune
    )
    if request.saved is not None:
        state.restore(request.saved, processes)
        _require_reachable(state.progress, job)
    return Training(job, state, penalty, budget)


def _require_reachable(progress: Progress, job: TrainingJob) -> None:
    for name, most in (("epoch", job.config.epochs), ("step", job.steps_per_epoch), ("seen", math.inf)):
        if not 0 <= (found := getattr(progress, name)) <= most:
            raise CheckpointError(f"'own.progress.{name}' is {found}, and must be from 0 to {most}.")


# -- several processes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Packed:
    """A network to be sent to another process, which builds it again."""

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
    fit_state(model, packed.weights, "the network that the leading process sent")
    return model


def send_stage(processes: Processes, request: StageRequest, network: Network, teacher: Network | None) -> None:
    """Send a training stage to the other processes. Called by the leader."""
    if processes.size > 1:
        processes.send((request, _packed(network), teacher and _packed(teacher)))
        require_equal(processes, network[0], network[1].plans)


def follow(processes: Processes, stopping: Callable[[], bool]) -> None:
    """Take part in every training stage that the leader sends, until there are no more. Called by the followers.

    Raises:
        PeerFailed: Training ended early for a reason that all processes share; the leader prints it.
        BnpruneError: This process alone failed.
    """
    try:
        _follow(processes, stopping)
    except (Interrupted, TrainingError) as error:  # all processes decide on these together
        raise PeerFailed(error.exit_code) from error
    except PeerFailed:
        raise
    except BnpruneError as error:
        raise type(error)(f"process {processes.rank}: {error}") from error


def _follow(processes: Processes, stopping: Callable[[], bool]) -> None:
    splits: Splits | None = None
    while (assignment := processes.receive()) is not None:
        request, network, teacher = assignment
        config = request.config
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        model = _unpacked(network)
        require_equal(processes, model, network.plans)
        splits = splits or splits_of(config, needs_labels=False)
        training = set_up(
            request, model, teacher and _unpacked(teacher), splits, device_of(config, processes), processes
        )
        train(training.state, training.job, training.penalty, NoLog(), stopping)


def require_equal(processes: Processes, model: nn.Module, plans: tuple[PruningPlan, ...]) -> None:
    """Check that all processes hold the same network: otherwise, their gradients would be averaged silently.

    Raises:
        BnpruneError: They differ. It is raised in every process.
    """
    digests = processes.gather(_digest(model, plans))
    different = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if different:
        raise BnpruneError(
            f"processes {', '.join(map(str, different))} hold another network than process 0. Are all machines running "
            "the same version of bnprune and of your own code?"
        )


def _digest(model: nn.Module, plans: tuple[PruningPlan, ...]) -> str:
    digest = hashlib.sha256()
    for plan in plans:
        digest.update(plan.to_json().encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class NoLog:
    """The `Log` of a follower, which does nothing."""

    def on_step(self, state: State, steps: int, loss: float) -> None:
        """Ignore the step."""

    def on_start(self, validation: Score, state: State) -> None:
        """Ignore the score."""

    def on_epoch(self, record: EpochRecord, state: State) -> None:
        """Ignore the epoch."""

    def wants_state(self) -> bool:
        """Return False: the leader decides."""
        return False

    def on_state(self, saved: dict[str, Any]) -> None:
        """Ignore the state."""
