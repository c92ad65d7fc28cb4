"""Recovering a cut network without training: compensation, recalibration, both or neither, whatever does best."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from bnprune.data.splits import Split, Splits
from bnprune.pruning.compensate import Compensation, compensate
from bnprune.pruning.plan import PruningPlan
from bnprune.training.evaluate import Score, evaluate
from bnprune.training.recalibrate import recalibrate

_IMAGES = 512
"""Images whose mean activations compensation takes; more change little."""


@dataclass(frozen=True)
class Recovery:
    """The network that did best on validation, and what the others did."""

    model: nn.Module
    chosen: str
    """"plain", "compensated", "recalibrated" or "both"."""
    scores: dict[str, Score]
    """On validation, of every network that was tried."""
    compensation: tuple[Compensation, ...]


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
        compensated: Whether to try `bnprune.pruning.compensate`, with data.
        batches: Batches to recalibrate BatchNorms with (`bnprune.recalibrate`); 0 not to try it.
        batch_size: Images per batch.
    """
    networks, done = attempts(
        dense, slim, plan, splits, device, compensated=compensated, batches=batches, batch_size=batch_size
    )
    scores = {name: evaluate(network, splits.validation, device) for name, network in networks.items()}
    chosen = max(scores, key=lambda name: (scores[name].top1, -scores[name].loss))
    return Recovery(networks[chosen], chosen, scores, done)


def attempts(
    dense: nn.Module,
    slim: nn.Module,
    plan: PruningPlan,
    splits: Splits,
    device: torch.device,
    *,
    compensated: bool = True,
    batches: int = 100,
    batch_size: int = 128,
) -> tuple[dict[str, nn.Module], tuple[Compensation, ...]]:
    """Return the cut network "plain", "compensated", "recalibrated" and with "both", and what compensation did."""
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
    return networks, done


def _has_statistics(model: nn.Module) -> bool:
    kind = nn.modules.batchnorm._BatchNorm
    return any(isinstance(module, kind) and module.track_running_stats for module in model.modules())


def _images(split: Split, device: torch.device, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield whole batches of training images in a fixed random order."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    size = min(batch_size, len(split))
    for images, _ in split.serve(order[: len(order) // size * size].split(size), device):
        yield images
