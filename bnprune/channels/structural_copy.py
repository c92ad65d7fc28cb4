"""Copies of the user's network with other tensors in it.

The given network is never changed, not even for a moment: other threads may use it, and Ctrl-C may come at any time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from bnprune.errors import PruningError


def copy_with_tensors(model: nn.Module, tensors: Mapping[int, torch.Tensor]) -> nn.Module:
    """Copy a network, with other parameters and buffers.

    Args:
        model: Any network.
        tensors: The replacement of each parameter and buffer, by the `id` of the original.

    Raises:
        PruningError: The network cannot be copied.
    """
    try:
        return copy.deepcopy(model, dict(tensors))  # deepcopy takes what is in its memo for copies already made
    except Exception as error:
        why = _computed_tensor(model) or f"{type(error).__name__}: {error}"
        raise PruningError(f"the network cannot be copied: {why}") from error


def wrap_like(original: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Make a tensor what the original is: a parameter or a buffer, with the same `requires_grad`."""
    if isinstance(original, nn.Parameter):
        return nn.Parameter(values, requires_grad=original.requires_grad)
    return values.requires_grad_(original.requires_grad)


def _computed_tensor(model: nn.Module) -> str:
    """Name an attribute that is the result of a computation, which deepcopy refuses; "" if there is none."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                return (
                    f"{name or 'the network'} keeps a computed tensor, '{attribute}'. If it is a weight norm, remove "
                    "it first (torch.nn.utils.remove_weight_norm); otherwise store the tensor with .detach()."
                )
    return ""
