"""Small images, all in memory as one uint8 tensor, augmented in batches on the device."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from bnprune.config.schema import DataConfig
from bnprune.data.splits import Batch, Normalisation, Splits, combined_seed, evenly, stratified
from bnprune.errors import ConfigError

_MOST_BYTES_ON_DEVICE = 2**31
"""Images of up to this size are kept on the accelerator as a whole; others are copied batch by batch."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images."""

    shift: int
    """Largest shift in pixels, up, down, left and right; edges are filled with zeros."""
    flip: bool
    """Mirror half of the images left to right."""


@dataclass(frozen=True)
class MemorySplit:
    """Images in memory."""

    images: torch.Tensor
    """(N, C, H, W), uint8."""
    labels: torch.Tensor
    """(N,), int64."""
    mean: torch.Tensor
    """(C,), of pixel values between 0 and 1."""
    std: torch.Tensor
    """(C,)"""
    augmentation: Augmentation | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def serve(self, batches: Sequence[torch.Tensor], device: torch.device, seed: int | None = None) -> Iterator[Batch]:
        """Yield normalised batches; see `Split.serve`."""
        mean = (self.mean * 255).view(-1, 1, 1).to(device)
        scale = (1 / (self.std * 255)).view(-1, 1, 1).to(device)
        storage = device if self.images.nbytes <= _MOST_BYTES_ON_DEVICE else self.images.device
        images, labels = self.images.to(storage), self.labels.to(storage)
        for indices in batches:
            positions = indices.to(storage)
            chosen = images[positions].to(device)
            if seed is not None and self.augmentation is not None:
                chosen = augment(chosen, self.augmentation, uniforms(seed, indices, 3).to(device))
            yield chosen.float().sub_(mean).mul_(scale), labels[positions].to(device)


def uniforms(seed: int, indices: torch.Tensor, count: int) -> torch.Tensor:
    """Return random numbers in [0, 1), (N, count), that depend on the seed and each sample's index only.

    So the augmentation of a sample does not depend on its batch and process. SplitMix64 (Steele, Lea & Flood, OOPSLA
    2014): hashed counters, all samples at once.
    """
    counters = indices.numpy().astype(np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
    state: Any = np.uint64(combined_seed(seed)) + (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return torch.from_numpy((state >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24))


def augment(images: torch.Tensor, change: Augmentation, drawn: torch.Tensor) -> torch.Tensor:
    """Shift and mirror each image of a batch (N, C, H, W) by its own random amounts, from `uniforms` (N, 3)."""
    count, _, height, width = images.shape
    device = images.device
    if change.flip:
        mirrored = drawn[:, 0] < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
    if not change.shift:
        return images
    padded = F.pad(images, [change.shift] * 4)
    down, right = (drawn[:, 1:] * (2 * change.shift + 1)).long().T
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, shifts, shifts, H, W), a view
    return windows[torch.arange(count, device=device), :, down, right]


def statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation per channel, (C,) each, of uint8 images (N, C, H, W) scaled to [0, 1]."""
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.transpose(0, 1)])
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts.double() / counts.sum(1, keepdim=True)
    mean = share @ values
    std = (share @ values.square() - mean.square()).clamp_min(0).sqrt()
    return mean.float(), std.clamp_min(1e-3).float()


def require_room(count: int, size: int) -> None:
    """Check that images fit into memory, before it is allocated: a system may promise more than it has.

    Raises:
        ConfigError: They take more than half of it.
    """
    if not hasattr(os, "sysconf"):
        return
    needed, available = 3 * count * size**2, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available / 2:
        raise ConfigError(
            f"data.image_size: {count} images of {size}x{size} take up to {needed / 1e9:.3g} GB of memory, and there "
            f"are {available / 1e9:.3g} GB. Choose smaller or fewer images (data.limit), or data.in_memory=false."
        )


Labelled = tuple[torch.Tensor, torch.Tensor]
"""uint8 images (N, C, H, W) and int64 labels (N,)."""


def in_memory(
    config: DataConfig,
    train: Labelled,
    test: Labelled,
    classes: int,
    *,
    flip: bool,
    normalisation: Normalisation | None = None,
) -> Splits:
    """Limit, resize, split, normalise and augment images kept in memory.

    Without a `normalisation`, mean and standard deviation are those of the training images.

    Raises:
        ConfigError: They do not fit into memory.
    """
    train, test = _limited(train, config.limit), _limited(test, config.held_out_limit)
    if config.image_size is not None:
        require_room(len(train[1]) + len(test[1]), config.image_size)
    images, labels = _resized(train, config.image_size)
    test_images, test_labels = _resized(test, config.image_size)
    fit, held = stratified(labels, config.validation)
    mean, std = statistics(images[fit]) if normalisation is None else map(torch.tensor, normalisation)
    change = Augmentation(shift=images.shape[-1] // 8, flip=flip) if config.augment else None
    return Splits(
        train=MemorySplit(images[fit], labels[fit], mean, std, change),
        validation=MemorySplit(images[held], labels[held], mean, std),
        test=MemorySplit(test_images, test_labels, mean, std),
        shape=(images.shape[1], images.shape[2], images.shape[3]),
        classes=classes,
        normalisation=(tuple(mean.tolist()), tuple(std.tolist())),
    )


def _limited(data: Labelled, limit: int | None) -> Labelled:
    chosen = evenly(data[1], limit)
    return data[0][chosen], data[1][chosen]


def _resized(data: Labelled, size: int | None) -> Labelled:
    images, labels = data
    if size is None or images.shape[-2:] == (size, size):
        return data
    shape, together = (size, size), max(1, 2**24 // size**2)
    chunks = (F.interpolate(chunk.float(), shape, mode="bilinear", antialias=True) for chunk in images.split(together))
    return torch.cat([chunk.round().clamp(0, 255).to(torch.uint8) for chunk in chunks]), labels
