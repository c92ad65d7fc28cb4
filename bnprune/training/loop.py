"""The training loop, top to bottom. What it needs to resume exactly is in `State`; what it reports goes to a `Log`.

Randomness (order, augmentation, dropout) is a function of the seed, the epoch and the step, never of what ran before.
So a run that was killed at any step and resumed gives the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from bnprune.config import OptimisationConfig
from bnprune.data.splits import Split, Splits, mixed
from bnprune.errors import DataError, Interrupted, TrainingError
from bnprune.training.evaluate import Score, evaluate, logits_of
from bnprune.training.schedule import learning_rate
from bnprune.training.sparsity import Penalty

_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Progress:
    """Where training stands. Counters are those of the next step to take; sums are over this epoch."""

    epoch: int = 0
    step: int = 0
    """Micro-batch within the epoch."""
    best: float = -1.0
    """Best validation accuracy so far."""
    best_epoch: int = -1
    seen: int = 0
    """Images."""
    loss_sum: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    correct: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))

    def count(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a micro-batch; the sums stay on the device."""
        self.loss_sum = self.loss_sum.to(loss.device) + loss.detach() * len(labels)
        self.correct = self.correct.to(loss.device) + (logits.detach().argmax(1) == labels).sum()
        self.seen += len(labels)
        self.step += 1

    @property
    def loss(self) -> float:
        """Mean loss of this epoch so far."""
        return float(self.loss_sum) / max(1, self.seen)

    @property
    def top1(self) -> float:
        """Accuracy of this epoch so far."""
        return int(self.correct) / max(1, self.seen)


@dataclass
class State:
    """Everything that changes while training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers of tensors and numbers."""
        named = self.model.named_parameters()
        return {
            "model": self.model.state_dict(),
            "gradients": {name: p.grad for name, p in named if p.grad is not None},  # of an accumulation under way
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": vars(self.progress).copy(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over what `to_dict` returned."""
        self.model.load_state_dict(saved["model"])
        for name, parameter in self.model.named_parameters():
            gradient = saved["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.progress = Progress(**saved["progress"])


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
    """What training tells the outside world."""

    def on_step(self, state: State, steps: int, loss: float) -> None:
        """Report progress within an epoch: micro-batches per epoch and the mean loss so far."""
        ...

    def on_epoch(self, record: EpochRecord, state: State) -> None:
        """Report a finished epoch; write checkpoints here."""
        ...

    def on_stop(self, state: State) -> None:
        """Save the state of an interrupted training."""
        ...


@dataclass(frozen=True)
class Task:
    """What to train on and how."""

    splits: Splits
    batch_size: int
    config: OptimisationConfig
    device: torch.device
    seed: int
    """Of this stage; stages of one run use different ones."""

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
    return State(model, make_optimizer(model, config), scaler)


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
    while state.progress.epoch < config.epochs:
        progress = state.progress
        state.model.train()
        for images, labels in _batches(task, progress):
            torch.manual_seed(mixed(task.seed, progress.epoch, progress.step))
            lr = _set_rate(state, task)
            with _precision(task):
                logits = logits_of(state.model(images))
                loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            state.scaler.scale(loss / _window(task, progress.step)).backward()
            if _completes_update(task, progress.step):
                update(state, task, penalty, lr)
            progress.count(loss, logits, labels)
            if _reads_loss(task, progress.step):
                _require_finite(task, progress)
                log.on_step(state, task.steps_per_epoch, progress.loss)
            if stopping():
                _require_finite(task, progress)  # what is saved now replaces the last good state
                log.on_stop(state)
                where = f"epoch {progress.epoch + 1}, step {progress.step} of {task.steps_per_epoch}"
                raise Interrupted(f"stopped in {where}. Go on with --resume.")
        _finish_epoch(state, task, log)


def update(state: State, task: Task, penalty: Penalty | None, lr: float) -> None:
    """Take one optimizer step: unscale, clip, add the penalty, step, shrink. In fp16, an overflow skips all of it."""
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
    state.optimizer.zero_grad(set_to_none=True)


def epoch_order(count: int, batch_size: int, seed: int, epoch: int) -> list[torch.Tensor]:
    """Return the sample indices of every micro-batch of an epoch, shuffled by seed and epoch."""
    generator = torch.Generator().manual_seed(mixed(seed, epoch))
    order = torch.randperm(count, generator=generator)
    batches = list(order.split(batch_size))
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) < batch_size else batches


def _batches(task: Task, progress: Progress) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    split: Split = task.splits.train
    order = epoch_order(len(split), task.batch_size, task.seed, progress.epoch)[progress.step :]
    layout = torch.channels_last if task.config.channels_last else torch.preserve_format
    for images, labels in split.serve(order, task.device, seed=mixed(task.seed, progress.epoch)):
        yield images.contiguous(memory_format=layout) if task.config.channels_last else images, labels


def _set_rate(state: State, task: Task) -> float:
    lr = learning_rate(task.config, _updates_done(state, task), task.updates_per_epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    return lr


def _updates_done(state: State, task: Task) -> int:
    """Optimizer steps before the one that the present micro-batch belongs to."""
    return state.progress.epoch * task.updates_per_epoch + state.progress.step // task.config.accumulate


def _window(task: Task, step: int) -> int:
    """Micro-batches of the optimizer step that a micro-batch belongs to; the last one of an epoch may be short."""
    first = step - step % task.config.accumulate
    return min(task.config.accumulate, task.steps_per_epoch - first)


def _completes_update(task: Task, step: int) -> bool:
    return (step + 1) % task.config.accumulate == 0 or step + 1 == task.steps_per_epoch


def _reads_loss(task: Task, done: int) -> bool:
    """Reading the loss makes the host wait for an accelerator, so there only every 20th step."""
    return task.device.type == "cpu" or done % 20 == 0 or done == task.steps_per_epoch


def _precision(task: Task) -> contextlib.AbstractContextManager[Any]:
    dtype = _PRECISIONS[task.config.precision]
    return contextlib.nullcontext() if dtype is None else torch.autocast(task.device.type, dtype=dtype)


def _require_finite(task: Task, progress: Progress) -> None:
    if math.isfinite(progress.loss):
        return
    kept = "The last good checkpoint is kept. " if progress.epoch else ""
    raise TrainingError(
        f"the loss is not finite in epoch {progress.epoch + 1}, step {progress.step} of {task.steps_per_epoch}. "
        f"{kept}Lower the learning rate (lr), or set clip_norm."
    )


def _finish_epoch(state: State, task: Task, log: Log) -> None:
    progress = state.progress
    if not progress.seen:
        raise DataError("the training split holds no images.")
    fitted = Score(progress.loss, progress.top1, progress.seen)
    held = evaluate(state.model, task.splits.validation, task.device, max(task.batch_size, 256))
    is_best = held.top1 > progress.best
    lr = state.optimizer.param_groups[0]["lr"]
    record = EpochRecord(progress.epoch + 1, lr, fitted, held, is_best)
    state.progress = Progress(
        epoch=progress.epoch + 1,
        best=held.top1 if is_best else progress.best,
        best_epoch=progress.epoch if is_best else progress.best_epoch,
    )
    log.on_epoch(record, state)
