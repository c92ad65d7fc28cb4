"""Copies of the user's network with other tensors in it.

The given network is never changed, not even for a moment: other threads may use it, and Ctrl-C may come at any time.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

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
        return _copy(model, dict(tensors))  # deepcopy takes what is in its memo for copies already made
    except Exception as error:
        why = _computed_tensor(model) or f"{type(error).__name__}: {error}"
        raise PruningError(f"the network cannot be copied: {why}") from error


def _copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a module as `copy.deepcopy` does, but without a visit to each empty container and number.

    A module without parameters has 17 of these (hooks, flags). Pruning takes a fifth longer without this.
    """
    cls: Any = type(module)
    before = module.__getstate__() if _has_default_copy(cls) and id(module) not in memo else None
    if not isinstance(before, dict):
        whole: nn.Module = copy.deepcopy(module, memo)
        return whole
    copied: nn.Module = object.__new__(cls)
    memo[id(module)] = copied
    state = {}
    for name, value in before.items():
        if name == "_modules":
            state[name] = {key: None if child is None else _copy(child, memo) for key, child in value.items()}
        elif type(value) in _CONTAINERS and not value:
            state[name] = type(value)()
        elif type(value) in _ATOMS or (type(value) is tuple and all(type(item) in _ATOMS for item in value)):
            state[name] = value
        else:
            state[name] = copy.deepcopy(value, memo)
    copied.__setstate__(state)
    return copied


_ATOMS = frozenset({bool, int, float, str, type(None)})
_CONTAINERS = frozenset({dict, OrderedDict, set})


@functools.cache
def _has_default_copy(cls: Any) -> bool:
    """True if a class overrides neither what its state is nor how it is copied."""
    from_object = all(
        getattr(cls, name) is getattr(object, name) for name in ("__new__", "__reduce__", "__reduce_ex__")
    )
    return from_object and cls.__getstate__ is nn.Module.__getstate__ and not hasattr(cls, "__deepcopy__")


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
