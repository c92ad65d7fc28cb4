"""The training loop, top to bottom. Its state is a `State`, from which it resumes exactly; it reports to a `Log`.

Random numbers (order, augmentation, dropout) depend on the seed, the epoch and the step only, never on earlier steps.
So a run that was killed at any step and resumed gives the same bits as one that was not interrupted.

With several processes (see `Processes`), each runs this loop on its share of every batch. Between two optimizer steps,
they decide together if the loss is finite, if the state is saved now, and if the user has asked to stop.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import nn

from bnprune.config.schema import OptimisationConfig
from bnprune.data.splits import Split, Splits, combined_seed
from bnprune.errors import DataError, Interrupted, TrainingError
from bnprune.recovery.recalibrate import recalibrate
from bnprune.training.distill import Teacher
from bnprune.training.distributed.ddp import accumulating, average_statistics, wrap
from bnprune.training.distributed.processes import SINGLE_PROCESS, Processes
from bnprune.training.distributed.sync_bn import SyncedBatchNorm
from bnprune.training.ema import Average
from bnprune.training.evaluate import Score, evaluate
from bnprune.training.lr_schedule import learning_rate
from bnprune.training.mixup import make_mix
from bnprune.training.penalties.gamma import Penalty
from bnprune.training.state import Progress, State
from bnprune.training.tasks.classification import Classification
from bnprune.training.tasks.task import Task

_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

_RECALIBRATION_BATCHES = 20
"""Batches to estimate the BatchNorm statistics of averaged weights with."""


@dataclass(frozen=True, slots=True)
class RunningMeans:
    """Means over the training samples of an epoch, while the network was trained."""

    loss: float
    value: float | None
    """Share of the samples that were right; None if the task does not count them."""
    count: int
    """Samples, of all processes."""


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One finished epoch."""

    epoch: int
    """Counted from 1."""
    lr: float
    train: RunningMeans
    validation: Score
    is_best: bool


class Log(Protocol):
    """Receives the progress of a training. With several processes, only the log of the leader does anything."""

    def on_step(self, state: State, steps: int, loss: float) -> None:
        """Report progress within an epoch: micro-batches per epoch and the mean loss so far."""
        ...

    def on_start(self, validation: Score, state: State) -> None:
        """Report the score of the network before training, if `TrainingJob.keeps_start`; write its checkpoint here."""
        ...

    def on_epoch(self, record: EpochRecord, state: State) -> None:
        """Report a finished epoch; write checkpoints here."""
        ...

    def wants_state(self) -> bool:
        """Return True if the state is to be saved now, within an epoch."""
        ...

    def on_state(self, saved: dict[str, Any]) -> None:
        """Save the state: after every epoch, if `wants_state` says so, and when training is stopped."""
        ...


@dataclass(frozen=True)
class TrainingJob:
    """Everything a training needs besides the network: data, settings, device, processes."""

    splits: Splits
    batch_size: int
    """Of all processes together."""
    config: OptimisationConfig
    device: torch.device
    seed: int
    """Of this stage; stages of one run use different ones."""
    processes: Processes = SINGLE_PROCESS
    teacher: Teacher | None = None
    """Whose scores are part of the loss."""
    purpose: Task | None = None
    """The task, with the settings of this training; default: classification, with its label smoothing."""
    keeps_start: bool = False
    """True if the network before training counts as the best one until an epoch is better on the validation images."""

    @property
    def task(self) -> Task:
        """The task."""
        return self.purpose or Classification(self.config.label_smoothing)

    @property
    def steps_per_epoch(self) -> int:
        """Micro-batches per epoch; an incomplete last one is left out if there are others."""
        return max(1, len(self.splits.train) // self.batch_size)

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return math.ceil(self.steps_per_epoch / self.config.accumulate)


def begin(model: nn.Module, job: TrainingJob) -> State:
    """Put the network on its device and build its optimizer."""
    config = job.config
    model.to(job.device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    scaler = torch.amp.GradScaler(job.device.type, enabled=config.precision == "fp16")
    average = Average(model, config.ema) if config.ema else None
    return State(model, make_optimizer(model, config), scaler, average)


def make_optimizer(model: nn.Module, config: OptimisationConfig) -> torch.optim.Optimizer:
    """Build the optimizer; γ, β and biases are not decayed unless `paper` asks for it."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    plain = [] if config.paper else [p for p in trainable if p.dim() < 2]
    small = {id(p) for p in plain}
    groups = [
        {"params": [p for p in trainable if id(p) not in small], "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return adam(groups, lr=config.lr, betas=(config.momentum, 0.999))


@torch.enable_grad()  # a data factory may have switched gradients off
def train(state: State, job: TrainingJob, penalty: Penalty | None, log: Log, stopping: Callable[[], bool]) -> None:
    """Train from the epoch and step in `state` to the last epoch.

    Args:
        state: Where to start; changed in place.
        job: Data, configuration and device.
        penalty: On scale factors, once per optimizer step.
        log: Receives steps and epochs.
        stopping: Returns True if the user has asked to stop; called after every step.

    Raises:
        TrainingError: The loss is not finite.
        Interrupted: The user asked to stop; the state was saved.
    """
    config = job.config
    mix = make_mix(config, job.splits.classes)
    network = wrap(state.model, job.processes, lambda model: _trial_loss(model, job))
    forward = cast(nn.Module, torch.compile(network)) if config.compile else network
    if job.keeps_start and state.progress.is_start:
        _judge_start(state, job, log)
    while state.progress.epoch < config.epochs:
        progress = state.progress
        state.model.train()
        for images, labels in _batches(job, progress):
            _seed(job, combined_seed(job.seed, progress.epoch, progress.step, *job.processes.tag))
            lr = _set_rate(state, job)
            completes = _completes_update(job, progress.step)
            images, targets = mix(images, labels)
            with accumulating(network, completes), _synced(job):
                with _precision(job):
                    loss = job.task.loss(forward, (images, targets))
                    if job.teacher is not None and loss.outputs is not None:
                        value = job.teacher.add_to(loss.value, loss.outputs, images)
                        loss = replace(loss, value=value)
                state.scaler.scale(loss.value / _window(job, progress.step)).backward()
            if completes:
                update(state, job, penalty, lr)
            progress.count(loss)
            if completes:
                _check_and_save(state, job, log, stopping)
        _finish_epoch(state, job, log)


def update(state: State, job: TrainingJob, penalty: Penalty | None, lr: float) -> None:
    """Take one optimizer step: unscale, clip, add the penalty, step, shrink, average.

    In fp16, an overflow skips all of it.
    """
    state.scaler.unscale_(state.optimizer)
    if job.config.clip_norm is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), job.config.clip_norm)
    if penalty is not None:
        penalty.at(_updates_done(state, job))
        penalty.add_gradients()
    scale = state.scaler.get_scale()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    skipped = state.scaler.get_scale() < scale
    if penalty is not None and not skipped:
        penalty.shrink(lr)
    if state.average is not None and not skipped:
        state.average.update(state.model)
    state.optimizer.zero_grad(set_to_none=True)


def _check_and_save(state: State, job: TrainingJob, log: Log, stopping: Callable[[], bool]) -> None:
    """Between two optimizer steps: check the loss, save the state if it is due, and stop if the user has asked to."""
    progress, steps = state.progress, job.steps_per_epoch
    # Not in every step: reading the loss waits for the accelerator, and communication takes time.
    regular = job.device.type == "cpu" or progress.step // job.config.accumulate % 20 == 0 or progress.step == steps
    if not (regular or (job.processes.size == 1 and stopping())):
        return
    broken, stop, save = job.processes.any(not math.isfinite(progress.loss), stopping(), log.wants_state())
    where = f"epoch {progress.epoch + 1}, step {progress.step} of {steps}"
    if broken:  # before saving, which would replace the last good state
        raise _diverged(progress, f"the loss is not finite in {where}")
    log.on_step(state, steps, progress.loss)
    if stop or save:
        if not all(parameter.isfinite().all() for parameter in state.model.parameters()):
            raise _diverged(progress, f"a weight is not finite after {where}")
        log.on_state(state.to_dict(job.processes))
    if stop:
        raise Interrupted(f"stopped in {where}. The run can be resumed.", remedy={"resume": True})


def _diverged(progress: Progress, what: str) -> TrainingError:
    kept = "The last good checkpoint is kept. " if progress.epoch else ""
    return TrainingError(f"{what}. {kept}Lower the learning rate (lr), or set clip_norm.")


def epoch_order(count: int, batch_size: int, seed: int, epoch: int) -> list[torch.Tensor]:
    """Return the sample indices of every micro-batch of an epoch, shuffled by seed and epoch."""
    generator = torch.Generator().manual_seed(combined_seed(seed, epoch))
    order = torch.randperm(count, generator=generator)
    batches = list(order.split(batch_size))
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) < batch_size else batches


def _batches(
    job: TrainingJob, progress: Progress, most: int | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    split: Split = job.splits.train
    order = epoch_order(len(split), job.batch_size, job.seed, progress.epoch)[progress.step :][:most]
    order = [batch.tensor_split(job.processes.size)[job.processes.rank] for batch in order]
    served = split.serve(order, job.device, seed=combined_seed(job.seed, progress.epoch))
    if not job.config.channels_last:
        return served
    return ((images.contiguous(memory_format=torch.channels_last), labels) for images, labels in served)


def _seed(job: TrainingJob, seed: int) -> None:
    """Seed the generators of a step. `torch.manual_seed` seeds those of every kind of device, which takes 0.5 ms."""
    torch.default_generator.manual_seed(seed)
    if job.device.type != "cpu":
        torch.get_device_module(job.device).manual_seed(seed)


def _set_rate(state: State, job: TrainingJob) -> float:
    lr = learning_rate(job.config, _updates_done(state, job), job.updates_per_epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    return lr


def _updates_done(state: State, job: TrainingJob) -> int:
    """Return the number of optimizer steps before the one of the current micro-batch."""
    return state.progress.epoch * job.updates_per_epoch + state.progress.step // job.config.accumulate


def _window(job: TrainingJob, step: int) -> int:
    """Return the number of micro-batches in the optimizer step of a micro-batch; the last of an epoch may be short."""
    first = step - step % job.config.accumulate
    return min(job.config.accumulate, job.steps_per_epoch - first)


def _completes_update(job: TrainingJob, step: int) -> bool:
    return (step + 1) % job.config.accumulate == 0 or step + 1 == job.steps_per_epoch


def _trial_loss(model: nn.Module, job: TrainingJob) -> torch.Tensor:
    """Return the loss of two training samples."""
    split = job.splits.train
    first = torch.arange(min(2, len(split)))
    (batch,) = split.serve([first], job.device)
    return job.task.loss(model, batch).value


def _synced(job: TrainingJob) -> contextlib.AbstractContextManager[Any]:
    shared = job.config.sync_bn and job.processes.size > 1
    return SyncedBatchNorm(job.processes) if shared else contextlib.nullcontext()


def _precision(job: TrainingJob) -> contextlib.AbstractContextManager[Any]:
    dtype = _PRECISIONS[job.config.precision]
    return contextlib.nullcontext() if dtype is None else torch.autocast(job.device.type, dtype=dtype)


def _judge_start(state: State, job: TrainingJob, log: Log) -> None:
    """Take the network before training for the best one so far. Training a good network further can make it worse."""
    held_out = _validate(state, job)
    if math.isfinite(held_out.loss) and math.isfinite(held_out.value):
        state.progress.best, state.progress.best_loss = held_out.value, held_out.loss
        log.on_start(held_out, state)


def _validate(state: State, job: TrainingJob) -> Score:
    batch_size = max(job.batch_size, 256)
    return evaluate(state.network, job.splits.validation, job.device, batch_size, job.processes, job.task)


def _finish_epoch(state: State, job: TrainingJob, log: Log) -> None:
    progress = state.progress
    if not progress.seen:
        raise DataError("the training split holds no images.")
    training_score = _running_means(progress, job)
    average_statistics(state.model, job.processes)
    if state.average is not None:
        with _synced(job), _precision(job):
            again = _batches(job, Progress(progress.epoch), _RECALIBRATION_BATCHES)
            recalibrate(state.network, (images for images, _ in again))
        average_statistics(state.network, job.processes)
    held_out = _validate(state, job)
    if not (math.isfinite(held_out.loss) and math.isfinite(held_out.value)):
        # a bad last step of the epoch is only seen here
        raise _diverged(progress, f"the validation loss is not finite after epoch {progress.epoch + 1}")
    # The loss decides between equal values: on a small validation set many epochs tie.
    is_best = (held_out.value, -held_out.loss) > (progress.best, -progress.best_loss)
    lr = state.optimizer.param_groups[0]["lr"]
    record = EpochRecord(progress.epoch + 1, lr, training_score, held_out, is_best)
    state.progress = Progress(
        epoch=progress.epoch + 1,
        best=held_out.value if is_best else progress.best,
        best_loss=held_out.loss if is_best else progress.best_loss,
        best_epoch=progress.epoch if is_best else progress.best_epoch,
    )
    log.on_epoch(record, state)
    log.on_state(state.to_dict(job.processes))


def _running_means(progress: Progress, job: TrainingJob) -> RunningMeans:
    seen = torch.tensor(progress.seen, device=progress.correct.device)
    job.processes.add(progress.loss_sum, progress.correct, seen)
    value = int(progress.correct) / int(seen) if job.task.counts else None
    return RunningMeans(float(progress.loss_sum) / int(seen), value, int(seen))
