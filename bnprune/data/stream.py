"""Images that do not fit into memory, and data sets of the user's own: torch datasets behind loader processes."""

from __future__ import annotations

import copy
import random
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from bnprune.config import DataConfig
from bnprune.data.splits import Batch, Splits, mixed, stratified
from bnprune.errors import BnpruneError, ConfigError, DataError
from bnprune.factories import call_factory


@dataclass(frozen=True)
class StreamSplit:
    """A map-style dataset of (image tensor, label) pairs, read by worker processes."""

    dataset: Dataset[Any]
    evaluation: Dataset[Any] | None = None
    """The same samples without augmentation; default: `dataset`."""
    indices: torch.Tensor | None = None
    """Which samples belong to this split, (N,); default all."""
    workers: int = 0

    def __len__(self) -> int:
        return len(self.dataset) if self.indices is None else len(self.indices)  # type: ignore[arg-type]

    def subset(self, indices: torch.Tensor) -> StreamSplit:
        """Return a part of this split."""
        return replace(self, indices=indices if self.indices is None else self.indices[indices])

    def serve(self, batches: Sequence[torch.Tensor], device: torch.device, seed: int | None = None) -> Iterator[Batch]:
        """Yield batches; see `Split.serve`. Every sample is augmented with a seed of its own."""
        source = self.dataset if seed is not None or self.evaluation is None else self.evaluation
        picked = [(batch if self.indices is None else self.indices[batch]).tolist() for batch in batches]
        loader = DataLoader(
            _Seeded(source, seed),
            batch_sampler=picked,
            num_workers=min(self.workers, len(picked)),
            collate_fn=_collated,
            pin_memory=device.type == "cuda",
        )
        for images, labels in _received(loader):
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


@dataclass(frozen=True)
class _Broken:
    """What went wrong in a loader process. An exception would arrive as the text of its traceback."""

    message: str
    trace: str


def _broken(what: str, error: Exception) -> _Broken:
    message = str(error) if isinstance(error, BnpruneError) else f"data: {what}: {type(error).__name__}: {error}"
    return _Broken(message, traceback.format_exc())


def _collated(samples: list[Any]) -> Any:
    broken = next((sample for sample in samples if isinstance(sample, _Broken)), None)
    if broken is not None:
        return broken
    try:
        return default_collate(samples)
    except Exception as error:  # noqa: BLE001 - it may come from another process; see `_Broken`
        return _broken("samples cannot be put into one batch (are all of one shape?)", error)


def _received(loader: DataLoader[Any]) -> Iterator[Any]:
    try:
        for batch in loader:
            if isinstance(batch, _Broken):
                failure = DataError(batch.message)
                failure.add_note(batch.trace)  # shown by --debug
                raise failure
            yield batch
    except (RuntimeError, OSError) as error:  # the process itself died: killed, or out of shared memory
        raise DataError(f"a loader process failed: {str(error).strip().splitlines()[-1]}") from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed every generator that transforms draw from (torch's, Python's and numpy's), and restore them."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed & 0xFFFFFFFF)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


class _Seeded(Dataset[Any]):
    """Seeds the random number generators before every sample, so that no sample depends on the ones before it."""

    def __init__(self, dataset: Dataset[Any], seed: int | None) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, index: int) -> Any:
        with _seeded(mixed(self.seed or 0, index)):
            try:
                return self.dataset[index]
            except Exception as error:  # noqa: BLE001 - see `_Broken`
                return _broken(f"sample {index} cannot be read", error)


def own_splits(config: DataConfig) -> Splits:
    """Call a factory of the user's own.

    It returns `bnprune.data.Splits`, or map-style datasets of (image tensor, label) pairs: (train, test) or
    (train, validation, test). Without a validation set, a share of the training set is held out, and seen through the
    `transform` of the test set where both have one.

    Raises:
        ConfigError: There is no such factory, it fails, or it returns something else.
        DataError: A dataset is empty, or its samples are not (image tensor, label) pairs.
    """
    assert config.factory is not None
    made = call_factory(config.factory, config.kwargs, "data.factory")
    if isinstance(made, Splits):
        return made
    if not isinstance(made, tuple | list) or len(made) not in (2, 3):
        raise ConfigError(
            f"data.factory: {config.factory} must return bnprune.data.Splits, or two or three datasets "
            f"(got {type(made).__name__})."
        )
    splits = [StreamSplit(dataset, workers=config.workers) for dataset in made]
    image, labels = _inspected(splits[0], config.factory), _labels(splits[0])
    notes: tuple[str, ...] = ()
    if len(splits) == 2:
        calm = _without_augmentation(*made)
        notes = () if calm is not None else (_AUGMENTED,)
        fit, held = stratified(labels, config.validation)
        splits = [splits[0].subset(fit), replace(splits[0].subset(held), evaluation=calm), splits[1]]
    shape = (image.shape[0], image.shape[1], image.shape[2])
    train, validation, test = splits
    return Splits(train, validation, test, shape=shape, classes=int(labels.max()) + 1, notes=notes)


_AUGMENTED = (
    "validation images are training images as the training set gives them; if it augments them, let data.factory "
    "return three datasets (train, validation, test), or give both sets a `transform` attribute"
)


def _without_augmentation(train: Dataset[Any], test: Dataset[Any]) -> Dataset[Any] | None:
    """Return the training set with the transform of the test set; None where it is not known how."""
    if isinstance(train, TensorDataset):
        return train  # tensors as they are
    if isinstance(test, Subset):
        return _without_augmentation(train, test.dataset)
    calm = copy.copy(train)
    if isinstance(calm, Subset):
        inner = _without_augmentation(calm.dataset, test)
        calm.dataset = inner  # type: ignore[assignment]
        return None if inner is None else calm
    if not (hasattr(train, "transform") and hasattr(test, "transform")):
        return None
    for name in ("transform", "transforms"):  # torchvision keeps both
        if hasattr(train, name) and hasattr(test, name):
            setattr(calm, name, getattr(test, name))
    return calm


def _inspected(split: StreamSplit, factory: str) -> torch.Tensor:
    if not len(split):
        raise DataError(f"data.factory: the training set of {factory} is empty.")
    sample = split.dataset[0]
    if not (isinstance(sample, tuple | list) and len(sample) == 2 and isinstance(sample[0], torch.Tensor)):
        raise DataError(f"data.factory: samples of {factory} must be (image tensor, label) pairs.")
    if sample[0].dim() != 3:
        raise DataError(f"data.factory: images of {factory} must have shape (C, H, W), got {tuple(sample[0].shape)}.")
    return sample[0]


def _labels(split: StreamSplit) -> torch.Tensor:
    known = getattr(split.dataset, "targets", None)
    if known is not None:
        return torch.as_tensor(known).long()
    return torch.tensor([int(split.dataset[index][1]) for index in range(len(split))])
