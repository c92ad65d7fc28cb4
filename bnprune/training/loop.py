"""The training loop, top to bottom. What it needs to resume exactly is in `State`; what it reports goes to a `Log`.

Randomness (order, augmentation, dropout) is a function of the seed, the epoch and the step, never of what ran before.
So a run that was killed at any step and resumed gives the same bits as one that was not.

With several processes (see `World`), each runs this loop on its share of every batch; what they decide, they decide
together, between two optimizer steps: whether the loss is still finite, whether to save, whether to stop.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from bnprune.config.schema import OptimisationConfig
from bnprune.data.splits import Split, Splits, mixed
from bnprune.errors import DataError, Interrupted, TrainingError, argument
from bnprune.recovery.recalibrate import recalibrate
from bnprune.training.distill import Teacher
from bnprune.training.distributed.ddp import accumulating, average_statistics, wrap
from bnprune.training.distributed.processes import SINGLE_PROCESS, Processes
from bnprune.training.distributed.sync_bn import SyncedBatchNorm
from bnprune.training.ema import Average
from bnprune.training.evaluate import Score, evaluate, logits_of
from bnprune.training.lr_schedule import learning_rate
from bnprune.training.mixup import make_mix
from bnprune.training.penalties.gamma import Penalty
from bnprune.training.state import Progress, State

_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

_RECALIBRATED = 20
"""Batches that statistics of averaged weights are taken over."""


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One finished epoch."""

    epoch: int
    """Counted from 1."""
    lr: float
    train: Score
    """Running averages while the network was trained."""
    validation: Score
    is_best: bool


class Log(Protocol):
    """What training tells the outside world; only the leader of several processes has one that does anything."""

    def on_step(self, state: State, steps: int, loss: float) -> None:
        """Report progress within an epoch: micro-batches per epoch and the mean loss so far."""
        ...

    def on_epoch(self, record: EpochRecord, state: State) -> None:
        """Report a finished epoch; write checkpoints here."""
        ...

    def wants_state(self) -> bool:
        """Tell whether it is time to save the state within an epoch."""
        ...

    def on_state(self, saved: dict[str, Any]) -> None:
        """Save the state: after every epoch, when it is wanted, and when training is stopped."""
        ...


@dataclass(frozen=True)
class Task:
    """What to train on and how."""

    splits: Splits
    batch_size: int
    """Of all processes together."""
    config: OptimisationConfig
    device: torch.device
    seed: int
    """Of this stage; stages of one run use different ones."""
    processes: Processes = SINGLE_PROCESS
    teacher: Teacher | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Micro-batches per epoch; an incomplete last one is left out where there is another."""
        return max(1, len(self.splits.train) // self.batch_size)

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return math.ceil(self.steps_per_epoch / self.config.accumulate)


def begin(model: nn.Module, task: Task) -> State:
    """Put the network on its device and build its optimizer."""
    config = task.config
    model.to(task.device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    scaler = torch.amp.GradScaler(task.device.type, enabled=config.precision == "fp16")
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


def train(state: State, task: Task, penalty: Penalty | None, log: Log, stopping: Callable[[], bool]) -> None:
    """Train to the last epoch, from wherever `state` stands.

    Args:
        state: Changed in place.
        task: Data, configuration and device.
        penalty: On scale factors, once per optimizer step.
        log: Told about steps and epochs.
        stopping: Whether the user has asked to stop; looked at after every step.

    Raises:
        TrainingError: The loss is not finite.
        Interrupted: The user asked to stop; the state was saved.
    """
    config = task.config
    mix = make_mix(config, task.splits.classes)
    network = _parallel(state, task)
    forward = torch.compile(network) if config.compile else network
    while state.progress.epoch < config.epochs:
        progress = state.progress
        state.model.train()
        for images, labels in _batches(task, progress):
            _seed(task, mixed(task.seed, progress.epoch, progress.step, *task.processes.tag))
            lr = _set_rate(state, task)
            completes = _completes_update(task, progress.step)
            images, targets = mix(images, labels)
            with accumulating(network, completes), _synced(task):
                with _precision(task):
                    logits = logits_of(forward(images))
                    loss = _loss(task, logits, targets, images)
                state.scaler.scale(loss / _window(task, progress.step)).backward()
            if completes:
                update(state, task, penalty, lr)
            progress.count(loss, logits, targets)
            if completes:
                _look_up(state, task, log, stopping)
        _finish_epoch(state, task, log)


def update(state: State, task: Task, penalty: Penalty | None, lr: float) -> None:
    """Take one optimizer step: unscale, clip, add the penalty, step, shrink, average.

    In fp16, an overflow skips all of it.
    """
    state.scaler.unscale_(state.optimizer)
    if task.config.clip_norm is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), task.config.clip_norm)
    if penalty is not None:
        penalty.at(_updates_done(state, task))
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


def _look_up(state: State, task: Task, log: Log, stopping: Callable[[], bool]) -> None:
    """Between two optimizer steps: is the loss finite, is the state to be saved, has the user asked to stop?"""
    progress, steps = state.progress, task.steps_per_epoch
    # Reading the loss makes the host wait for an accelerator, and asking the others takes time: not in every step.
    regular = task.device.type == "cpu" or progress.step // task.config.accumulate % 20 == 0 or progress.step == steps
    if not (regular or (task.processes.size == 1 and stopping())):
        return
    broken, stop, save = task.processes.any(not math.isfinite(progress.loss), stopping(), log.wants_state())
    where = f"epoch {progress.epoch + 1}, step {progress.step} of {steps}"
    if broken:  # what would be saved now would replace the last good state
        raise _diverged(progress, f"the loss is not finite in {where}")
    log.on_step(state, steps, progress.loss)
    if stop or save:
        if not all(parameter.isfinite().all() for parameter in state.model.parameters()):
            raise _diverged(progress, f"a weight is not finite after {where}")
        log.on_state(state.to_dict(task.processes))
    if stop:
        raise Interrupted(f"stopped in {where}. Go on with {argument('resume')}.")


def _diverged(progress: Progress, what: str) -> TrainingError:
    kept = "The last good checkpoint is kept. " if progress.epoch else ""
    return TrainingError(f"{what}. {kept}Lower the learning rate (lr), or set clip_norm.")


def epoch_order(count: int, batch_size: int, seed: int, epoch: int) -> list[torch.Tensor]:
    """Return the sample indices of every micro-batch of an epoch, shuffled by seed and epoch."""
    generator = torch.Generator().manual_seed(mixed(seed, epoch))
    order = torch.randperm(count, generator=generator)
    batches = list(order.split(batch_size))
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) < batch_size else batches


def _batches(task: Task, progress: Progress, most: int | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    split: Split = task.splits.train
    order = epoch_order(len(split), task.batch_size, task.seed, progress.epoch)[progress.step :][:most]
    order = [batch.tensor_split(task.processes.size)[task.processes.rank] for batch in order]
    served = split.serve(order, task.device, seed=mixed(task.seed, progress.epoch))
    if not task.config.channels_last:
        return served
    return ((images.contiguous(memory_format=torch.channels_last), labels) for images, labels in served)


def _seed(task: Task, seed: int) -> None:
    """Seed what a step draws from: not every kind of device, as `torch.manual_seed` does in half a millisecond."""
    torch.default_generator.manual_seed(seed)
    if task.device.type != "cpu":
        torch.get_device_module(task.device).manual_seed(seed)


def _set_rate(state: State, task: Task) -> float:
    lr = learning_rate(task.config, _updates_done(state, task), task.updates_per_epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    return lr


def _updates_done(state: State, task: Task) -> int:
    """Optimizer steps before the one that the present micro-batch belongs to."""
    return state.progress.epoch * task.updates_per_epoch + state.progress.step // task.config.accumulate


def _loss(task: Task, logits: torch.Tensor, targets: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    if targets.dim() > 1:  # shares of the classes of the data; a network may have scores for more
        targets = F.pad(targets, (0, logits.shape[1] - targets.shape[1]))
    loss = F.cross_entropy(logits, targets, label_smoothing=task.config.label_smoothing)
    return loss if task.teacher is None else task.teacher.add_to(loss, logits, images)


def _window(task: Task, step: int) -> int:
    """Micro-batches of the optimizer step that a micro-batch belongs to; the last one of an epoch may be short."""
    first = step - step % task.config.accumulate
    return min(task.config.accumulate, task.steps_per_epoch - first)


def _completes_update(task: Task, step: int) -> bool:
    return (step + 1) % task.config.accumulate == 0 or step + 1 == task.steps_per_epoch


def _parallel(state: State, task: Task) -> nn.Module:
    return wrap(state.model, task.processes, torch.zeros(2, *task.splits.shape, device=task.device))


def _synced(task: Task) -> contextlib.AbstractContextManager[Any]:
    shared = task.config.sync_bn and task.processes.size > 1
    return SyncedBatchNorm(task.processes) if shared else contextlib.nullcontext()


def _precision(task: Task) -> contextlib.AbstractContextManager[Any]:
    dtype = _PRECISIONS[task.config.precision]
    return contextlib.nullcontext() if dtype is None else torch.autocast(task.device.type, dtype=dtype)


def _finish_epoch(state: State, task: Task, log: Log) -> None:
    progress = state.progress
    if not progress.seen:
        raise DataError("the training split holds no images.")
    fitted = _fitted(progress, task.processes)
    average_statistics(state.model, task.processes)
    if state.average is not None:
        with _synced(task), _precision(task):
            again = _batches(task, Progress(progress.epoch), _RECALIBRATED)
            recalibrate(state.network, (images for images, _ in again))
        average_statistics(state.network, task.processes)
    held = evaluate(state.network, task.splits.validation, task.device, max(task.batch_size, 256), task.processes)
    if not math.isfinite(held.loss):  # the last step of an epoch is seen here only
        raise _diverged(progress, f"the validation loss is not finite after epoch {progress.epoch + 1}")
    # Of equal accuracies the lower loss counts: on a small validation set many epochs tie, and the first is no better.
    is_best = (held.top1, -held.loss) > (progress.best, -progress.best_loss)
    lr = state.optimizer.param_groups[0]["lr"]
    record = EpochRecord(progress.epoch + 1, lr, fitted, held, is_best)
    state.progress = Progress(
        epoch=progress.epoch + 1,
        best=held.top1 if is_best else progress.best,
        best_loss=held.loss if is_best else progress.best_loss,
        best_epoch=progress.epoch if is_best else progress.best_epoch,
    )
    log.on_epoch(record, state)
    log.on_state(state.to_dict(task.processes))


def _fitted(progress: Progress, processes: Processes) -> Score:
    seen = torch.tensor(progress.seen, device=progress.correct.device)
    processes.add(progress.loss_sum, progress.correct, seen)
    count = int(seen)
    return Score(float(progress.loss_sum) / count, int(progress.correct) / count, count)
