"""Everything that changes while training: what it takes to stop, and to go on to the same bits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bnprune.errors import ConfigError
from bnprune.training.ema import Average
from bnprune.training.evaluate import exact_type
from bnprune.training.world import ALONE, World


@dataclass
class Progress:
    """Where training stands. Counters are those of the next step to take; sums are over this epoch."""

    epoch: int = 0
    step: int = 0
    """Micro-batch within the epoch."""
    best: float = -1.0
    """Best validation accuracy so far."""
    best_loss: float = math.inf
    """The validation loss that goes with it."""
    best_epoch: int = -1
    seen: int = 0
    """Images."""
    loss_sum: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    correct: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))

    def count(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a micro-batch; the sums stay on the device. Of a mixed image, the class with the larger share counts."""
        if labels.dim() > 1:
            labels = labels.argmax(1)
        self.loss_sum = self.loss_sum.to(loss.device, exact_type(loss.device)) + loss.detach() * len(labels)
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
    average: Average | None = None
    progress: Progress = field(default_factory=Progress)

    @property
    def network(self) -> nn.Module:
        """What is validated and saved: the average of the weights where there is one."""
        return self.model if self.average is None else self.average.network

    def to_dict(self, world: World = ALONE) -> dict[str, Any]:
        """Return plain containers of tensors and numbers, the same ones in every process. Between optimizer steps."""
        buffers = {name: buffer.cpu() for name, buffer in self.model.named_buffers()}
        progress = vars(self.progress) | {name: getattr(self.progress, name).cpu() for name in ("loss_sum", "correct")}
        own = {"buffers": buffers, "progress": progress}
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "own": world.gather(own),  # what differs between processes
        }

    def restore(self, saved: dict[str, Any], world: World = ALONE) -> None:
        """Take over what `to_dict` returned.

        Raises:
            ConfigError: It was saved by another number of processes.
        """
        require_processes(saved, world)
        own = saved["own"][world.rank]
        self.model.load_state_dict(saved["model"])
        buffers = dict(self.model.named_buffers())
        for name, value in own["buffers"].items():
            buffers[name].copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.progress = Progress(**own["progress"])


def require_processes(saved: dict[str, Any] | None, world: World) -> None:
    """Refuse to go on with another number of processes: batches would be shared, and statistics kept, otherwise.

    Raises:
        ConfigError: With both numbers.
    """
    count = world.size if saved is None else len(saved["own"])
    if count != world.size:
        raise ConfigError(
            f"--resume: the run was stopped in {count} process(es), and can only go on exactly in as many (got "
            f"{world.size})."
        )
