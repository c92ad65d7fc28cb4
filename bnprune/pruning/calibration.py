"""Calibration data: a few batches of inputs, with or without labels, for criteria and repairs that need data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bnprune.channels.pytrees import Inputs, as_inputs, map_tensors, tensors
from bnprune.config.user_code import user_code_errors
from bnprune.errors import BnpruneError, ConfigError, ForwardError, first_line

Loss = Callable[[Any, Any], torch.Tensor]
"""Returns the loss (a scalar) of the output of a network, given the labels of the batch."""

DEFAULT_IMAGES = 512


@dataclass(frozen=True)
class Calibration:
    """Batches of calibration data, and the loss by which criteria with labels judge outputs."""

    batches: tuple[Any, ...]
    """Inputs of the network (a tensor, or a mapping of keyword arguments), or (inputs, labels, ...) pairs."""
    loss: Loss = field(default=F.cross_entropy)
    images: int = 0
    """Number of images in all batches."""

    @classmethod
    def of(cls, batches: Iterable[Any], images: int = DEFAULT_IMAGES, loss: Loss | None = None) -> Calibration:
        """Keep the first batches of an iterable, as many as have `images` images; the last one is shortened.

        Args:
            batches: See `batches` of this class; a single tensor or mapping is one batch.
            images: Number of images to keep.
            loss: Returns the loss of outputs, given labels; default: cross-entropy.

        Raises:
            ConfigError: There are no batches, or one holds no tensor.
        """
        kept: list[Any] = []
        count = 0
        for batch in _Reader([batches] if isinstance(batches, torch.Tensor | Mapping) else batches):
            size = min(batch_size(batch), images - count)
            kept.append(rows(batch, 0, size))
            count += size
            if count >= images:
                break
        if not count:
            raise ConfigError("there are no images.", argument="calibrate")
        return cls(tuple(kept), loss or F.cross_entropy, count)

    def parts(self, share: float) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Divide the images in two, by rows of each batch: the last `share` of every batch is the second part.

        A batch of one image is in both parts.
        """
        first, second = [], []
        for batch in self.batches:
            size = batch_size(batch)
            border = min(max(1, round(size * (1 - share))), max(size - 1, 1))
            first.append(rows(batch, 0, border))
            second.append(rows(batch, border if size > 1 else 0, size))
        return tuple(first), tuple(second)


class _Reader:
    """Iterates over batches; an error of the user's iterator becomes a ConfigError."""

    def __init__(self, batches: Any) -> None:
        with user_code_errors("reading the calibration data failed"):
            self.batches = iter(batches)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with user_code_errors("reading the calibration data failed"):
            batch = next(self.batches, _END)
        if batch is _END:
            raise StopIteration
        return batch


_END = object()


def inputs_of(batch: Any, device: torch.device | None = None) -> Inputs:
    """Return the (args, kwargs) of a forward pass on a batch, on a device if one is given."""
    inputs = as_inputs(batch[0] if isinstance(batch, tuple | list) else batch)
    if device is None:
        return inputs
    moved: Inputs = map_tensors(lambda tensor: tensor.to(device), inputs)
    return moved


def labels_of(batch: Any) -> Any:
    """Return the labels of a batch; None if it has none."""
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None


def batch_size(batch: Any) -> int:
    """Return the number of images: the size of the first dimension of the first tensor among the inputs.

    Raises:
        ConfigError: There is no tensor, or it has no dimension.
    """
    first = next(tensors(inputs_of(batch)), None)
    if first is None or not first.dim():
        got = type(batch).__name__
        raise ConfigError(
            f"a batch must be a tensor (N, ...), a mapping of keyword arguments, or a pair of inputs and labels (got "
            f"{got}).",
            argument="calibrate",
        )
    return int(first.shape[0])


def rows(batch: Any, start: int, stop: int) -> Any:
    """Return some of the images of a batch.

    Tensors whose first dimension is that of the images are sliced, and so are lists of labels with one entry per image
    (the boxes of a detector).
    """
    size = batch_size(batch)

    def sliced(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[start:stop] if tensor.dim() and tensor.shape[0] == size else tensor

    if not isinstance(batch, tuple | list):
        return map_tensors(sliced, batch)
    inputs, *labels = batch
    cut = (item[start:stop] if isinstance(item, list) and len(item) == size else item for item in labels)
    return type(batch)([map_tensors(sliced, inputs), *(map_tensors(sliced, item) for item in cut)])


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a network's first tensor; the CPU if it has none."""
    first = next(iter([*model.parameters(), *model.buffers()]), None)
    return torch.device("cpu") if first is None else first.device


def forward_batches(model: nn.Module, batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the output of a network for each batch.

    Raises:
        ForwardError: The forward pass fails.
    """
    device = device_of(model)
    for batch in batches:
        with forward_errors():
            args, kwargs = map_tensors(torch.Tensor.clone, inputs_of(batch, device))  # may be changed in place
            output = model(*args, **kwargs)
        yield output


@contextmanager
def forward_errors() -> Iterator[None]:
    """Turn errors of a forward pass into a ForwardError."""
    try:
        yield
    except BnpruneError:
        raise
    except Exception as error:
        raise ForwardError(f"the forward pass fails on the calibration data: {first_line(error)}") from error
