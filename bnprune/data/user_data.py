"""Data sets of the user's own (`data.factory`). Every sample is checked (`data.samples.SampleRequirements`)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from bnprune.config.schema import DataConfig
from bnprune.config.tables import Targets
from bnprune.config.user_code import call_factory, user_code_errors
from bnprune.data.described import described
from bnprune.data.memory import MemorySplit
from bnprune.data.samples import SampleRequirements
from bnprune.data.splits import Batch, Split, Splits, stratified
from bnprune.data.stream import StreamSplit, read, require_read, seeded
from bnprune.data.targets import IGNORED, moved
from bnprune.errors import ConfigError, DataError
from bnprune.notes import Note

_NAMES = ("training", "validation", "test")

_MOST_SAMPLES = 10**8
"""The limit exists because the order of an epoch is kept in memory."""


def own_splits(config: DataConfig, targets: Targets = "labels") -> Splits:
    """Call the factory of a recipe, and return its data as splits.

    The factory returns `bnprune.data.Splits`, or map-style datasets of (image tensor, target) pairs: (train, test) or
    (train, validation, test). A target is a label, or what the task expects in its place. Without a validation set, a
    share of the training set is held out. It is read with the `transform` of the test set, if both sets have one, so
    that validation images are not augmented.

    Raises:
        ConfigError: There is no such factory, it fails, or its result is something else.
        DataError: A dataset is empty, or its samples are not (image tensor, label) pairs.
    """
    assert config.factory is not None
    made = call_factory(config.factory, config.kwargs, "data.factory")
    if isinstance(made, Splits):
        return _checked_splits(made, config.factory, targets)
    if not isinstance(made, tuple | list) or len(made) not in (2, 3):
        count = f" of {len(made)}" if isinstance(made, tuple | list) else ""
        raise ConfigError(
            f"data.factory: {config.factory} must return bnprune.data.Splits, or two or three datasets "
            f"(got {type(made).__name__}{count})."
        )
    names = _NAMES if len(made) == 3 else _NAMES[::2]
    splits = [_opened(dataset, name, config, targets) for dataset, name in zip(made, names, strict=True)]
    if not len(splits[0]):
        raise DataError(f"data.factory: the training set of {config.factory} is empty.")
    splits, strata = _with_common_shape(splits)
    notes: tuple[Note, ...] = ()
    if len(splits) == 2:
        with user_code_errors(f"data.factory: the datasets of {config.factory} cannot be copied", DataError):
            unaugmented = _without_augmentation(*made)
        notes = () if unaugmented is not None else (_AUGMENTED,)
        fit, held = stratified(strata, config.validation)
        splits = [splits[0].subset(fit), replace(splits[0].subset(held), evaluation=unaugmented), splits[1]]
    train, validation, test = splits
    shape, classes = train.requirements.shape, train.requirements.classes
    assert shape is not None
    assert classes is not None
    return Splits(train, validation, test, shape=shape, classes=classes, notes=notes, targets=targets)


_AUGMENTED = Note(
    "data.augmented_validation",
    "note",
    "validation images are training images as the training set gives them; if it augments them, let data.factory "
    "return three datasets (train, validation, test), or give both sets a `transform` attribute",
)


def _opened(dataset: Any, name: str, config: DataConfig, targets: Targets) -> StreamSplit:
    where = f"the {name} set of {config.factory}"
    if isinstance(dataset, type | IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"data.factory: {where} must be a map-style dataset, with __len__ and __getitem__ "
            f"(got {described(dataset)})."
        )
    indices = torch.arange(_length(dataset, where))
    requirements = SampleRequirements(where, targets=targets)
    return StreamSplit(dataset, indices=indices, workers=config.workers, requirements=requirements)


def _length(dataset: Any, where: str) -> int:
    """Return the length. It is computed only once, because `__len__` is user code."""
    with user_code_errors(f"data.factory: {where} has no length", DataError):
        count = len(dataset)
    if count > _MOST_SAMPLES:
        raise DataError(f"data.factory: {where} says it has {count} samples; at most {_MOST_SAMPLES} are possible.")
    return count


def _with_common_shape(splits: list[StreamSplit]) -> tuple[list[StreamSplit], torch.Tensor]:
    """Return the splits with the shape and classes of the training set as requirements, and its strata (N,).

    The strata are its labels; without a label per image, there is only one.

    A wrong sample in the test set would be found only after training. So the first sample of each split is read now,
    and its labels if the data set lists them. The other samples are checked when they are served.
    """
    first = splits[0]
    image, _ = require_read(read(first.dataset, 0, first.requirements))
    shape = (image.shape[0], image.shape[1], image.shape[2])
    shaped = replace(first, requirements=replace(first.requirements, shape=shape))
    labelled = first.requirements.targets == "labels"
    strata = _labels(shaped) if labelled else torch.zeros(len(first), dtype=torch.int64)
    classes = int(strata.max()) + 1 if labelled else _classes(shaped)
    agreed = [
        replace(split, requirements=replace(split.requirements, shape=shape, classes=classes)) for split in splits
    ]
    for split in agreed[1:]:
        if len(split):
            require_read(read(split.dataset, 0, split.requirements))
        listed = _listed(split.dataset, len(split)) if labelled else None
        if listed is not None:
            split.requirements.labels(listed)
    return agreed, strata


def _classes(split: StreamSplit) -> int:
    """Return the number of classes in masks or boxes: that of the list `classes` of the dataset, or of all samples."""
    kind = split.requirements.targets
    if kind == "any":
        return 1
    named = getattr(split.dataset, "classes", None)
    if isinstance(named, Sized) and len(named):
        return len(named)
    most = 0
    with seeded(0):
        for index in range(len(split)):
            target = require_read(read(split.dataset, index, split.requirements))[1]
            values = target[target != IGNORED] if kind == "masks" else target["labels"]
            most = max(most, int(values.max()) if values.numel() else 0)
    return most + 1


def _labels(split: StreamSplit) -> torch.Tensor:
    """Return the labels (N,) of a split: the listed ones, or those of the samples, read one by one."""
    listed = _listed(split.dataset, len(split))
    if listed is None:
        with seeded(0):
            return torch.tensor(
                [require_read(read(split.dataset, index, split.requirements))[1] for index in range(len(split))]
            )
    split.requirements.labels(listed)
    return listed


def _listed(dataset: Any, count: int) -> torch.Tensor | None:
    """Return the labels (N,) that a data set lists (`targets`); None if it lists none, or something else."""
    try:
        if isinstance(dataset, Subset):
            inner = _listed(dataset.dataset, len(dataset.dataset))  # type: ignore[arg-type]
            return None if inner is None else inner[torch.as_tensor(dataset.indices)]
        given = dataset.tensors[-1] if isinstance(dataset, TensorDataset) else getattr(dataset, "targets", None)
        if given is None or getattr(dataset, "target_transform", None) is not None:
            return None
        labels = torch.as_tensor(given if isinstance(given, torch.Tensor) else np.asarray(given))
    except Exception:  # noqa: BLE001 - then the samples are read, and errors in them are reported
        return None
    fits = labels.shape == (count,) and not (labels.is_floating_point() or labels.is_complex())
    return labels.long() if fits else None


def _without_augmentation(train: Dataset[Any], test: Dataset[Any]) -> Dataset[Any] | None:
    """Return the training set with the transform of the test set; None if they have no such attribute."""
    if isinstance(train, TensorDataset):
        return train  # tensors as they are
    if isinstance(test, Subset):
        return _without_augmentation(train, test.dataset)
    copied = copy.copy(train)
    if isinstance(copied, Subset):
        inner = _without_augmentation(copied.dataset, test)
        copied.dataset = inner  # type: ignore[assignment]
        return None if inner is None else copied
    if not (hasattr(train, "transform") and hasattr(test, "transform")):
        return None
    for name in ("transform", "transforms"):  # torchvision keeps both
        if hasattr(train, name) and hasattr(test, name):
            setattr(copied, name, getattr(test, name))
    return copied


def _checked_splits(made: Splits, factory: str, targets: Targets) -> Splits:
    where = f"data.factory: the Splits of {factory}"
    shape, classes = made.shape, made.classes
    if not (isinstance(shape, tuple | list) and len(shape) == 3 and all(_positive(size) for size in shape)):
        raise DataError(f"{where} must have the shape (channels, height, width) of an image (got {described(shape)}).")
    if not _positive(classes):
        raise DataError(f"{where} must have a number of classes (got {described(classes)}).")
    if not (isinstance(made.notes, tuple | list) and all(isinstance(note, str) for note in made.notes)):
        raise DataError(f"{where} must have a tuple of texts as notes (got {described(made.notes)}).")
    sizes = (shape[0], shape[1], shape[2])
    given = zip((made.train, made.validation, made.test), _NAMES, strict=True)
    train, validation, test = (
        _checked_split(split, SampleRequirements(f"the {name} set of {factory}", sizes, classes, targets))
        for split, name in given
    )
    return Splits(
        train,
        validation,
        test,
        shape=sizes,
        classes=classes,
        notes=tuple(_as_note(note) for note in made.notes),
        targets=targets,
    )


def _as_note(text: str) -> Note:
    return text if isinstance(text, Note) else Note("data.factory", "note", text)


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _checked_split(split: Any, requirements: SampleRequirements) -> Split:
    if not callable(getattr(split, "serve", None)):
        raise DataError(
            f"data.factory: {requirements.where} must have a method serve(batches, device, seed) "
            f"(got {described(split)})."
        )
    count = _length(split, requirements.where)
    if isinstance(split, StreamSplit):  # checks every sample when it is read
        split = replace(split, requirements=requirements)
    if isinstance(split, MemorySplit) and requirements.targets == "labels":
        with user_code_errors(f"data.factory: the labels of {requirements.where} cannot be read", DataError):
            requirements.labels(split.labels)
    return CheckedSplit(split, count, requirements)


@dataclass(frozen=True)
class CheckedSplit:
    """A split of the user's own, whose batches are checked."""

    split: Split
    count: int
    requirements: SampleRequirements

    def __len__(self) -> int:
        return self.count

    def serve(self, batches: Sequence[torch.Tensor], device: torch.device, seed: int | None = None) -> Iterator[Batch]:
        """Yield batches; see `Split.serve`."""
        failed = f"data: {self.requirements.where} cannot be read"
        served: Iterator[Any] | None = None
        try:
            for indices in batches:
                with user_code_errors(failed, DataError):
                    served = iter(self.split.serve(batches, device, seed)) if served is None else served
                    batch = next(served, None)
                images, targets = self.requirements.batch(batch, indices)
                yield images.to(device), moved(targets, device)
        finally:
            del served  # ends loader processes, if it has any
