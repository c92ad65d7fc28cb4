"""The TensorBoard log of one stage. Needs the extra `tensorboard`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bnprune.config.schema import PipelineConfig
from bnprune.runs.directory import RunDirectory
from bnprune.training.loop import EpochRecord
from bnprune.training.penalties.gamma import GammaStatistics, scale_factors


class TensorBoardLog:
    """Writes the metrics of each epoch."""

    def __init__(self, writer: torch.utils.tensorboard.SummaryWriter) -> None:
        self._writer = writer

    def epoch(self, record: EpochRecord, gamma: GammaStatistics | None, network: nn.Module) -> None:
        """Write losses, accuracies, the learning rate, and with a penalty the distribution of γ."""
        kind = "accuracy" if record.validation.name == "top1" else record.validation.name
        measured = {
            "loss/train": record.train.loss,
            "loss/validation": record.validation.values.get("loss"),
            f"{kind}/train": record.train.value,
            f"{kind}/validation": record.validation.value,
            "lr": record.lr,
        }
        curves = {name: value for name, value in measured.items() if value is not None}
        if gamma is not None:
            curves |= {"gamma/below": gamma.below, "gamma/median": gamma.quantiles[2]}
            values = torch.cat([values.detach().abs().flatten() for values in scale_factors(network)])
            self._writer.add_histogram("gamma", values.float().cpu(), record.epoch)
        for name, value in curves.items():
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()


@contextmanager
def open_tensorboard_log(
    config: PipelineConfig, directory: RunDirectory, stage: str, epochs: int
) -> Iterator[TensorBoardLog | None]:
    """Open the log of a stage for the duration of a `with` block; None if the recipe does not ask for it.

    Args:
        config: The recipe.
        directory: The run directory.
        stage: The name of the stage; each has a folder of its own.
        epochs: Number of finished epochs. Later ones, which an interrupted run has logged, are hidden.
    """
    if not config.tensorboard:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(directory.tensorboard_log(stage)), purge_step=epochs + 1 if epochs else None) as writer:
        yield TensorBoardLog(writer)
