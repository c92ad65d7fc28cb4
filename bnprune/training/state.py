"""The state of a training: everything that is needed to stop, and to resume with the same bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bnprune.errors import CheckpointError, ConfigError
from bnprune.training.distributed.processes import SINGLE_PROCESS, Processes
from bnprune.training.ema import Average
from bnprune.training.tasks.scores import exact_type
from bnprune.training.tasks.task import Loss


@dataclass
class Progress:
    """Position in the training. Counters are those of the next step; sums are over this epoch."""

    epoch: int = 0
    step: int = 0
    """Micro-batch within the epoch."""
    best: float = -math.inf
    """Best main value on the validation images so far."""
    best_loss: float = math.inf
    """The validation loss of that epoch."""
    best_epoch: int = -1
    """Counted from 0; -1 if no epoch is better than the network before training, or none was compared yet."""
    seen: int = 0
    """Images."""
    loss_sum: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    correct: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))

    def count(self, loss: Loss) -> None:
        """Add a micro-batch; the sums stay on the device."""
        value = loss.value.detach()
        self.loss_sum = self.loss_sum.to(value.device, exact_type(value.device)) + value * loss.count
        if loss.correct is not None:
            self.correct = self.correct.to(value.device) + loss.correct
        self.seen += loss.count
        self.step += 1

    @property
    def is_start(self) -> bool:
        """True before the first step, while no network was judged yet."""
        return self.epoch == self.step == 0 and self.best == -math.inf

    @property
    def loss(self) -> float:
        """Mean loss of this epoch so far."""
        return float(self.loss_sum) / max(1, self.seen)


@dataclass
class State:
    """Everything that changes while training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average | None = None
    progress: Progress = field(default_factory=Progress)

    @property
    def network(self) -> nn.Module:
        """The network to validate and save: the average of the weights, if there is one."""
        return self.model if self.average is None else self.average.network

    def to_dict(self, processes: Processes = SINGLE_PROCESS) -> dict[str, Any]:
        """Return plain containers of tensors and numbers, equal in every process. Call between optimizer steps."""
        buffers = {name: buffer.cpu() for name, buffer in self.model.named_buffers()}
        progress = vars(self.progress) | {name: getattr(self.progress, name).cpu() for name in ("loss_sum", "correct")}
        own = {"buffers": buffers, "progress": progress}
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "own": processes.gather(own),  # these differ between processes
        }

    def restore(self, saved: dict[str, Any], processes: Processes = SINGLE_PROCESS) -> None:
        """Restore a state that `to_dict` returned.

        Raises:
            ConfigError: It was saved by another number of processes.
            CheckpointError: It is not the state of this training; nothing was changed.
        """
        require_processes(saved, processes)
        own, buffers = saved["own"][processes.rank], dict(self.model.named_buffers())
        average = None if self.average is None else self.average.state_dict()
        _require_like(own, {"buffers": buffers, "progress": vars(Progress())}, "own")
        _require_like(saved.get("model"), self.model.state_dict(), "model")
        _require_like(saved.get("scaler"), self.scaler.state_dict(), "scaler")
        _require_like(saved.get("average"), average, "average")
        optimizer = _fitting(saved.get("optimizer"), self.optimizer)
        self.model.load_state_dict(saved["model"])
        for name, value in own["buffers"].items():
            buffers[name].copy_(value)
        self.optimizer.load_state_dict(optimizer)
        self.scaler.load_state_dict(saved["scaler"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.progress = Progress(**own["progress"])


def _require_like(saved: Any, expected: Any, name: str) -> None:
    """Refuse a saved value that differs in names, types or shapes from the one it replaces."""
    if isinstance(expected, Mapping):
        if not isinstance(saved, Mapping) or saved.keys() != expected.keys():
            raise CheckpointError(f"'{name}' does not have the parts that this training has.")
        for key, value in expected.items():
            _require_like(saved[key], value, f"{name}.{key}")
    elif isinstance(expected, torch.Tensor):
        _require_tensor(saved, expected, name)
    elif isinstance(expected, float):
        if isinstance(saved, bool) or not isinstance(saved, int | float):
            raise CheckpointError(f"'{name}' is not a number.")
    elif type(saved) is not type(expected):
        raise CheckpointError(f"'{name}' has the wrong type.")


def _require_tensor(saved: Any, like: torch.Tensor, name: str) -> None:
    if not isinstance(saved, torch.Tensor) or saved.is_meta or saved.layout != torch.strided:
        raise CheckpointError(f"'{name}' is not a tensor with values.")
    kinds = [(tensor.shape, tensor.is_floating_point(), tensor.is_complex()) for tensor in (saved, like)]
    if kinds[0] != kinds[1]:
        raise CheckpointError(
            f"'{name}' is {saved.dtype} of shape {tuple(saved.shape)}, not {like.dtype} of shape {tuple(like.shape)}."
        )


def _fitting(saved: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the saved state of an optimizer after checking every part of it.

    Of the settings, only the learning rate is taken; the others do not change while training.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = optimizer.state_dict()["param_groups"]
    states, rates = _parts(saved)
    if len(rates) != len(groups) or not states.keys() <= set(range(len(parameters))):
        raise CheckpointError("'optimizer' does not have the parts that this training has.")
    for index, state in states.items():
        _require_like(state, _slots(optimizer, parameters[index]), f"optimizer.state.{index}")
    return {"state": states, "param_groups": [{**group, "lr": lr} for group, lr in zip(groups, rates, strict=True)]}


def _parts(saved: Any) -> tuple[dict[int, Any], list[float]]:
    try:
        states, rates = dict(saved["state"]), [group["lr"] for group in saved["param_groups"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError("'optimizer' is not the state of an optimizer.") from error
    for rate in rates:
        _require_like(rate, 0.0, "optimizer.lr")
    return states, rates


def _slots(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    if isinstance(optimizer, torch.optim.SGD):
        return {"momentum_buffer": parameter}
    return {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}


def require_processes(saved: dict[str, Any] | None, processes: Processes) -> None:
    """Refuse to resume with another number of processes, which would share batches and statistics differently.

    Raises:
        ConfigError: With both numbers.
        CheckpointError: The number is not in the state.
    """
    if saved is not None and not isinstance(saved.get("own"), list):
        raise CheckpointError("'own' is not a list with one entry per process.")
    count = processes.size if saved is None else len(saved["own"])
    if count != processes.size:
        raise ConfigError(
            f"the run was stopped in {count} process(es), and can only be resumed exactly with as many (got "
            f"{processes.size}).",
            argument="resume",
        )
