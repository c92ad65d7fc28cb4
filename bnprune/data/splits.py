"""Data sets as the training loop uses them: three splits that serve batches by sample index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bnprune.config.tables import Targets

Batch = tuple[torch.Tensor, Any]
"""Images (N, C, H, W), float and normalised, and what belongs to them (`Splits.targets`): labels (N,), int64; masks
(N, H, W), int64; a list of N mappings with boxes and labels; or anything that a task of the user's own reads."""


Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, of pixel values between 0 and 1."""


class Split(Protocol):
    """Images that can be served in batches."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def serve(self, batches: Sequence[torch.Tensor], device: torch.device, seed: int | None = None) -> Iterator[Batch]:
        """Yield one batch per tensor of sample indices.

        Args:
            batches: Sample indices of each batch.
            device: Where to put images and labels.
            seed: Augment, with random numbers that depend on this seed and the index of the sample only; None for no
                augmentation.
        """
        ...


@dataclass(frozen=True)
class Splits:
    """A data set, ready for training."""

    train: Split
    validation: Split
    """Held out from training; choices are made on it."""
    test: Split
    """Used only once, for the report."""
    shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    classes: int
    """Number of classes, of masks and boxes with the background; 1 if the images have none."""
    notes: tuple[str, ...] = ()
    """Remarks for the user. Data sets of bnprune give `bnprune.notes.Note`; a factory may give plain texts."""
    normalisation: Normalisation | None = None
    """The images are normalised with it; None if that is not known, because the data is the user's own."""
    class_names: tuple[str, ...] = ()
    """The names of the classes; empty if they are not known."""
    labelled: bool = True
    """False if the images have no labels: batches then hold zeros in their place, and there are no test images."""
    targets: Targets = "labels"
    """What belongs to each image."""

    @property
    def example(self) -> torch.Tensor:
        """One image of zeros (1, C, H, W), for tracing and counting."""
        return torch.zeros(1, *self.shape)


def stratified(labels: torch.Tensor, share: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Split sample indices in two, the second with `share` of every class (at least one); both ascending.

    The split depends on `seed` only, not on the run's seed, so that runs can be compared.
    """
    generator = torch.Generator().manual_seed(seed)
    held = [torch.empty(0, dtype=torch.int64)]
    for members in _by_class(labels):
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held.append(members[torch.randperm(len(members), generator=generator)[:count]])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat(held)] = True
    return torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten()


def evenly(labels: torch.Tensor, limit: int | None) -> torch.Tensor:
    """Return the indices of at most `limit` samples, the first ones of every class in equal parts, ascending."""
    if limit is None or limit >= len(labels):
        return torch.arange(len(labels))
    rank = torch.empty_like(labels)
    for members in _by_class(labels):
        rank[members] = torch.arange(len(members))
    order = torch.argsort(rank * (int(labels.max()) + 1) + labels, stable=True)
    return order[:limit].sort().values


def _by_class(labels: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return the indices of the samples of every class, ascending; by one sort, however many classes there are."""
    counts: list[int] = labels.unique(return_counts=True)[1].tolist()
    members: Sequence[torch.Tensor] = torch.argsort(labels, stable=True).split(counts)
    return members


def combined_seed(*numbers: int) -> int:
    """Combine numbers into one seed (FNV-1a over their 8-byte forms), stable across runs and machines."""
    state = 0xCBF29CE484222325
    for number in numbers:
        for byte in (number & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little"):
            state = (state ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return state >> 1
