"""Recovering accuracy after a cut without training: the best of several repairs, or none if none helps."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import nn

from bnprune.data.splits import Split, Splits
from bnprune.pruning.plan import PruningPlan
from bnprune.recovery.compensate import Compensation
from bnprune.recovery.repaired_networks import Batches, repaired_networks

_IMAGES = 512
"""Images over which compensation averages activations."""


class Score(Protocol):
    """A measure of a network by which networks are compared."""

    @property
    def value(self) -> float:
        """The main value of the task; larger is better."""
        ...

    @property
    def name(self) -> str:
        """Name of the main value."""
        ...

    @property
    def loss(self) -> float:
        """Lower is better; it decides between networks of equal value."""
        ...


S = TypeVar("S", bound=Score)


@dataclass(frozen=True)
class Recovery(Generic[S]):
    """The networks that were tried after a cut, and their scores."""

    networks: dict[str, nn.Module]
    """The networks, by the name of the repair method; see `RepairedNetworks`."""
    scores: dict[str, S]
    """Score of each network."""
    compensation: tuple[Compensation, ...]

    @property
    def chosen(self) -> str:
        """The name of the network with the best score."""
        return max(self.scores, key=lambda name: (self.scores[name].value, -self.scores[name].loss))

    @property
    def model(self) -> nn.Module:
        """The network with the best score."""
        return self.networks[self.chosen]


def recover(
    dense: nn.Module,
    slim: nn.Module,
    plan: PruningPlan,
    splits: Splits,
    device: torch.device,
    *,
    score: Callable[[nn.Module], S],
    compensated: bool = True,
    reconstruct_images: int = 512,
    batches: int = 100,
    batch_size: int = 128,
) -> Recovery[S]:
    """Compensate, reconstruct and recalibrate copies of a slim network, and keep the best.

    The unchanged network is one of the candidates, so that the result is never worse by the score.

    Args:
        dense: The network before the cut; left as it was, like the next.
        slim: The network after the cut.
        plan: The cut.
        splits: Training images, without augmentation, serve for means and statistics.
        device: Device to run on.
        score: Evaluates a network on `device`, for example on the validation split
            (`bnprune.training.evaluate.validation_score`).
        compensated: True to try `bnprune.recovery.compensate` with data.
        reconstruct_images: Images for `bnprune.reconstruct`; 0 not to try it.
        batches: Batches to recalibrate BatchNorms with (`bnprune.recalibrate`); 0 not to try it.
        batch_size: Images per batch.
    """

    def images(count: int) -> Batches | None:
        return (lambda: itertools.islice(_images(splits.train, device, batch_size), count)) if count else None

    made = repaired_networks(
        copy.deepcopy(dense).to(device),
        copy.deepcopy(slim).to(device),
        plan,
        splits.example.to(device),
        compensate_with=images(max(1, _IMAGES // batch_size) if compensated else 0),
        reconstruct_with=images(max(1, reconstruct_images // batch_size) if reconstruct_images else 0),
        recalibrate_with=images(batches),
    )
    scores = {name: score(network) for name, network in made.networks.items()}
    return Recovery(made.networks, scores, made.compensation)


def _images(split: Split, device: torch.device, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield full batches of training images in a fixed random order."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    size = min(batch_size, len(split))
    for images, _ in split.serve(order[: len(order) // size * size].split(size), device):
        yield images
