"""Recovering a cut network without training: compensation, recalibration, both or neither, whatever does best."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from bnprune.channels.torch_internals import BatchNorm
from bnprune.data.splits import Split, Splits
from bnprune.pruning.plan import PruningPlan
from bnprune.recovery.compensate import Compensation, compensate
from bnprune.recovery.recalibrate import recalibrate
from bnprune.training.evaluate import Score, evaluate

_IMAGES = 512
"""Images whose mean activations compensation takes."""


@dataclass(frozen=True)
class Recovery:
    """What was tried after a cut, and what did best on validation."""

    networks: dict[str, nn.Module]
    """"plain" and, as far as they were tried, "compensated", "recalibrated" and with "both"."""
    scores: dict[str, Score]
    """Of each, on validation."""
    compensation: tuple[Compensation, ...]

    @property
    def chosen(self) -> str:
        """The name of the network that did best; of equals, by loss."""
        return max(self.scores, key=lambda name: (self.scores[name].top1, -self.scores[name].loss))

    @property
    def model(self) -> nn.Module:
        """That network."""
        return self.networks[self.chosen]


def recover(
    dense: nn.Module,
    slim: nn.Module,
    plan: PruningPlan,
    splits: Splits,
    device: torch.device,
    *,
    compensated: bool = True,
    batches: int = 100,
    batch_size: int = 128,
) -> Recovery:
    """Try what may help a network that has just been cut, and keep the best, so that it can only help.

    Args:
        dense: The network before the cut; left as it is, like the next.
        slim: The network after it.
        plan: The cut.
        splits: Training images serve for means and statistics, without augmentation; validation images decide.
        device: Where to run.
        compensated: Whether to try `bnprune.recovery.compensate`, with data.
        batches: Batches to recalibrate BatchNorms with (`bnprune.recalibrate`); 0 not to try it.
        batch_size: Images per batch.
    """
    networks = {"plain": copy.deepcopy(slim).to(device)}
    done: tuple[Compensation, ...] = ()
    if compensated:
        networks["compensated"] = copy.deepcopy(networks["plain"])
        images = itertools.islice(_images(splits.train, device, batch_size), max(1, _IMAGES // batch_size))
        done = compensate(
            copy.deepcopy(dense).to(device), networks["compensated"], plan, splits.example.to(device), batches=images
        )
    for name, start in (("recalibrated", "plain"), ("both", "compensated")):
        if batches and start in networks and _has_statistics(slim):
            images = itertools.islice(_images(splits.train, device, batch_size), batches)
            networks[name] = recalibrate(copy.deepcopy(networks[start]), images)
    scores = {name: evaluate(network, splits.validation, device) for name, network in networks.items()}
    return Recovery(networks, scores, done)


def _has_statistics(model: nn.Module) -> bool:
    kind = BatchNorm
    return any(isinstance(module, kind) and module.track_running_stats for module in model.modules())


def _images(split: Split, device: torch.device, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield whole batches of training images in a fixed random order."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    size = min(batch_size, len(split))
    for images, _ in split.serve(order[: len(order) // size * size].split(size), device):
        yield images
