"""Images that do not fit into memory: torch datasets, read by loader processes."""

from __future__ import annotations

import random
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bnprune.config.tables import Targets
from bnprune.config.user_code import exception_text, user_code_errors
from bnprune.data.samples import SampleRequirements
from bnprune.data.splits import Batch, combined_seed
from bnprune.data.targets import collated, moved
from bnprune.errors import BnpruneError, DataError


@dataclass(frozen=True)
class StreamSplit:
    """A map-style dataset of (image tensor, target) pairs, read by worker processes."""

    dataset: Dataset[Any]
    evaluation: Dataset[Any] | None = None
    """The same samples without augmentation; default: `dataset`."""
    indices: torch.Tensor | None = None
    """Indices of the samples of this split, (N,); default: all samples."""
    workers: int = 0
    requirements: SampleRequirements = field(default_factory=SampleRequirements)
    """Requirements on every sample; an error names the first sample that violates them."""

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
            _Seeded(source, seed, self.requirements),
            batch_sampler=picked,
            num_workers=min(self.workers, len(picked)),
            collate_fn=partial(_collated, self.requirements.targets),
            pin_memory=device.type == "cuda",
        )
        for images, targets in _received(loader):
            yield images.to(device, non_blocking=True), moved(targets, device)


@dataclass(frozen=True)
class _Failure:
    """An error in a loader process, as data: an exception would arrive as the text of its traceback."""

    message: str
    trace: str


def _failure(what: str, error: BaseException) -> _Failure:
    message = str(error) if isinstance(error, BnpruneError) else f"data: {what}: {exception_text(error)}"
    return _Failure(message, traceback.format_exc())


def read(dataset: Dataset[Any], index: int, requirements: SampleRequirements) -> tuple[torch.Tensor, Any] | _Failure:
    """Return a checked sample, or the error."""
    try:
        return requirements.pair(dataset[index], index)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - it may come from another process; see `_Failure`
        return _failure(f"sample {index} of {requirements.where} cannot be read", error)


def _collated(kind: Targets, samples: list[Any]) -> Any:
    failure = next((sample for sample in samples if isinstance(sample, _Failure)), None)
    if failure is not None:
        return failure
    try:
        images, targets = zip(*samples, strict=True)
        return torch.stack(images), collated(list(targets), kind)
    except Exception as error:  # noqa: BLE001 - it may come from another process; see `_Failure`
        return _failure("samples cannot be put into one batch (are all of one shape?)", error)


def require_read(result: Any) -> Any:
    """Return a result of `read`, or raise its error as a DataError."""
    if isinstance(result, _Failure):
        failure = DataError(result.message)
        failure.add_note(result.trace)  # part of the traceback that is shown for debugging
        raise failure
    return result


def _received(loader: DataLoader[Any]) -> Iterator[Any]:
    batches = None
    try:
        while True:
            # The process itself may die (killed, out of shared memory), or the data set may not be sent to it.
            with user_code_errors("data: a loader process failed", DataError):
                batches = _started(loader) if batches is None else batches
                batch = next(batches, None)
            if batch is None:
                return
            yield require_read(batch)
    finally:
        del batches  # ends the processes now; if the garbage collector did it later, it would wait seconds for each


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the loader processes without torch's handler of SIGCHLD.

    That handler raises an error at any place in the main thread when a process dies. Without it, the error is raised
    when the next batch is requested.
    """
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    batches = iter(loader)
    if before is not None and signal.getsignal(signal.SIGCHLD) is not before:
        signal.signal(signal.SIGCHLD, before)
    return batches


@contextmanager
def seeded(seed: int) -> Iterator[None]:
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

    def __init__(self, dataset: Dataset[Any], seed: int | None, requirements: SampleRequirements) -> None:
        self.dataset = dataset
        self.seed = seed
        self.requirements = requirements

    def __getitem__(self, index: int) -> Any:
        with seeded(combined_seed(self.seed or 0, index)):
            return read(self.dataset, index, self.requirements)
