"""One forward pass that changes nothing: no statistics, modes, caches or random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from bnprune.channels.modules import still
from bnprune.channels.trees import Inputs, map_tensors

Found = TypeVar("Found")


def lightly(run: Callable[[str], Found]) -> Found:
    """Call a function with the device "meta", where nothing is computed, or with "cpu" where that will not do.

    Networks whose control flow depends on data need real tensors.
    """
    try:
        return run("meta")
    except Exception:  # noqa: BLE001 - whatever meta tensors cannot do, real ones may; if not, that error counts
        return run("cpu")


def forward(model: nn.Module, inputs: Inputs, *, device: str, training: bool = False) -> Any:
    """Run a network on copies of its tensors.

    Args:
        model: Any network.
        inputs: Positional and keyword arguments.
        device: Where to run; on "meta" there are shapes only, no memory and no arithmetic.
        training: In train mode.
    """
    args, kwargs = map_tensors(lambda tensor: tensor.to(device), inputs)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    copies = {name: tensor.detach().to(device, copy=True) for name, tensor in tensors.items()}
    with still(model, training=training):
        return torch.func.functional_call(model, copies, args, kwargs)
