"""The log of a training stage: metrics, checkpoints, state, and lines for the display."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

from torch import nn

from bnprune.config.metrics import metric_of
from bnprune.config.schema import OptimisationConfig, SparsityConfig
from bnprune.notes import Note
from bnprune.runs.checkpoint import Header, save_checkpoint
from bnprune.runs.directory import RunDirectory
from bnprune.runs.display import Display
from bnprune.runs.tensorboard_log import TensorBoardLog
from bnprune.training.evaluate import Score
from bnprune.training.loop import EpochRecord
from bnprune.training.penalties.gamma import GammaStatistics, gamma_statistics, scale_factors
from bnprune.training.state import State
from bnprune.training.warnings import collapse

_GAMMA_EVERY_S = 1.0
"""Interval between two updates of the scale factors in the display."""
_SAVE_EVERY_S = 600.0
"""Interval between two saved states within an epoch."""


class TrainingLog:
    """The `Log` of a training stage."""

    def __init__(
        self,
        directory: RunDirectory,
        display: Display,
        stage: str,
        config: OptimisationConfig,
        header: Header,
        sparsity: SparsityConfig | None,
        classes: int,
    ) -> None:
        self.directory = directory
        self.display = display
        self.stage = stage
        self.config = config
        self.header = header
        self.sparsity = sparsity if sparsity and sparsity.penalty != "none" else None
        self.classes = classes
        self.tensorboard_log: TensorBoardLog | None = None
        self.seconds = 0.0
        """Time that earlier, interrupted runs have spent in this stage."""
        self._started = time.monotonic()
        self._save_time = self._started
        self._gamma_time = -math.inf
        self._last_gamma: GammaStatistics | None = None
        self._collapsed = False

    def on_step(self, state: State, steps: int, loss: float) -> None:
        """Show progress."""
        if time.monotonic() - self._gamma_time > _GAMMA_EVERY_S:
            self._last_gamma = self._gamma(state.network)
            self._gamma_time = time.monotonic()
        position, lr = state.progress, state.optimizer.param_groups[0]["lr"]
        self.display.step(position.epoch, position.step, steps, loss, self._last_gamma, lr)

    def on_start(self, validation: Score, state: State) -> None:
        """Keep the network as the best one so far, and show its score."""
        header = replace(self.header, metrics={**_values(validation), "epoch": 0})
        save_checkpoint(self.directory.checkpoint("best"), state.network, header)
        metric = metric_of(validation.name)
        self.display.note(f"  before training: validation {metric.label} {metric.text(validation.value)}")

    def on_epoch(self, record: EpochRecord, state: State) -> None:
        """Write metrics and checkpoints; the state follows, so that a crash in between repeats the epoch."""
        gamma = self._gamma(state.network)
        metrics = {**_values(record.validation), "epoch": record.epoch}
        self.directory.append_metrics(self._line(record, gamma))
        header = replace(self.header, metrics=metrics)
        save_checkpoint(self.directory.checkpoint("last"), state.network, header)
        if record.is_best:
            save_checkpoint(self.directory.checkpoint("best"), state.network, header)
        self.display.epoch(record, self.config.epochs, gamma)
        if self.tensorboard_log is not None:
            self.tensorboard_log.epoch(record, gamma, state.network)
        self._warn(record, state)

    def wants_state(self) -> bool:
        """Return True if the last saved state is older than ten minutes."""
        return time.monotonic() - self._save_time > _SAVE_EVERY_S

    def on_state(self, saved: dict[str, Any]) -> None:
        """Save the state from which training resumes exactly."""
        self._save_time = time.monotonic()
        spent = self.seconds + self._save_time - self._started
        self.directory.save_state(self.stage, {**saved, "seconds": spent})

    def _warn(self, record: EpochRecord, state: State) -> None:
        """Warn once per stage if accuracy collapses, with the likely causes."""
        problem = collapse(state.progress.best, record.validation, self.classes)
        if problem and not self._collapsed:
            self._collapsed = True
            causes = "the learning rate may be too high: lower lr, set clip_norm, or add warmup_epochs"
            if self.sparsity:
                causes += "; or the penalty too strong: lower sparsity.target, sparsity.travel or sparsity.lambda"
            best = state.progress.best_epoch + 1
            where = f"epochs {best} and {record.epoch}" if best else f"before training and in epoch {record.epoch}"
            text = (
                f"{problem} ({where}). If it stays there, "
                f"{causes}. The better network is in {self.directory.checkpoint('best')}."
            )
            self.display.note(Note(problem.code, problem.level, text))

    def gamma_figures(self, model: nn.Module) -> dict[str, Any]:
        """Return the statistics of the scale factors at the end, for the result."""
        gamma = self._gamma(model)
        return {} if gamma is None else {"below": gamma.below, "split": gamma.split, "quantiles": list(gamma.quantiles)}

    def _gamma(self, model: nn.Module) -> GammaStatistics | None:
        return gamma_statistics(scale_factors(model), self.sparsity.epsilon) if self.sparsity else None

    def _line(self, record: EpochRecord, gamma: GammaStatistics | None) -> dict[str, Any]:
        line: dict[str, Any] = {
            "stage": self.stage,
            "epoch": record.epoch,
            "lr": record.lr,
            "train": {"loss": record.train.loss, "top1": None, record.validation.name: record.train.value},
            "validation": _values(record.validation),
        }
        if record.validation.name != "top1":
            line["metric"] = record.validation.name
        if gamma is not None:
            line["gamma"] = {"quantiles": list(gamma.quantiles), "below": gamma.below, "split": gamma.split}
        return line


def _values(score: Score) -> dict[str, float | None]:
    """Return the values of a score by name; "top1" is None if the network is not judged by its accuracy."""
    return {"loss": None, "top1": None, **score.values}
