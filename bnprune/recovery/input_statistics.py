"""Whether images look to a network like those it was trained on, as its first BatchNorm recorded them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bnprune.channels.modules import temporary_mode
from bnprune.channels.torch_internals import BatchNorm
from bnprune.notes import Note
from bnprune.pruning.calibration import forward_batches

_LARGEST_FACTOR = math.e
"""Between the variance of the images and that of the training images, at the first BatchNorm. On CIFAR-10 (ResNet-20,
VGG-11), it is up to 1.7 for 32 images that are normalised as in training, up to 1.5 for the mean and the standard
deviation of ImageNet, and at least 5.8 for 0.5 in their place."""
_FEWEST_IMAGES = 32
"""Fewer say too little: the brightness of single images varies more than the limits allow."""
_LARGEST_SHIFT = 1.0
"""Of the mean, in standard deviations of the training images."""


def unlike_training(model: nn.Module, batches: Iterable[Any]) -> Note | None:
    """Return a warning if the images differ much from those that a network was trained on, such as by normalisation.

    The mean and variance of the inputs of the first BatchNorm are compared with its running statistics.

    Args:
        model: A trained network; it runs in eval mode, and is left as it was.
        batches: Inputs as for `bnprune.prune`'s `calibrate`; the first ones are used, up to about 32 images. With
            fewer, nothing is said.

    Raises:
        ForwardError: The forward pass fails.
    """
    found = _first_inputs(model, batches)
    if found is None:
        return None
    norm, values = found
    mean, variance = norm.running_mean, norm.running_var
    if len(values) < _FEWEST_IMAGES or mean is None or variance is None or _untouched(mean, variance):
        return None
    by_channel = values.transpose(0, 1).flatten(1).float()
    factor = float(((by_channel.var(1) + norm.eps) / (variance + norm.eps)).log().median().exp())
    shift = float(((by_channel.mean(1) - mean) ** 2 / (variance + norm.eps)).mean().sqrt())
    if 1 / _LARGEST_FACTOR < factor < _LARGEST_FACTOR and shift < _LARGEST_SHIFT:
        return None
    return Note(
        "calibration.unlike",
        "warning",
        f"the images differ from those that the network was trained on: at its first BatchNorm, their variance is "
        f"{factor:.2g} times as large, and their mean is {shift:.2g} standard deviations away. Probably they are not "
        "normalised as the training images were, and a repair or a fine-tuning with them does harm",
    )


def _first_inputs(model: nn.Module, batches: Iterable[Any]) -> tuple[BatchNorm, torch.Tensor] | None:
    """Return the first BatchNorm that runs, and its inputs for as many batches as are needed; None if there is none."""
    first: list[BatchNorm] = []
    parts: list[torch.Tensor] = []
    passes = 0

    def record(norm: BatchNorm, inputs: tuple[Any, ...]) -> None:
        if not first:
            first.append(norm)
        if norm is first[0] and len(parts) == passes:
            parts.append(inputs[0].detach())

    hooks = [module.register_forward_pre_hook(record) for module in model.modules() if isinstance(module, BatchNorm)]
    try:
        with torch.no_grad(), temporary_mode(model, training=False):
            for passes, _ in enumerate(forward_batches(model, batches), 1):
                if len(parts) < passes or sum(map(len, parts)) >= _FEWEST_IMAGES:
                    break
    finally:
        for hook in hooks:
            hook.remove()
    return (first[0], torch.cat(parts)) if parts else None


def _untouched(mean: torch.Tensor, variance: torch.Tensor) -> bool:
    """True if the statistics are those of a new network, which has seen no images."""
    return not bool(mean.any()) and bool((variance == 1).all())
