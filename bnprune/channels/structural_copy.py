"""Copies of somebody else's network: the same structure, with other tensors in it.

Whatever has to change a network works on a copy, so that the given one stays as it is at every moment: other threads
may use it, and Ctrl-C may come.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from bnprune.channels.modules import walk
from bnprune.errors import PruningError


def twin(model: nn.Module, tensors: Mapping[int, torch.Tensor]) -> nn.Module:
    """Copy a network, with other parameters and buffers.

    Args:
        model: Any network.
        tensors: What stands in the place of each parameter and buffer, by the `id` of the original.

    Raises:
        PruningError: The network cannot be copied.
    """
    try:
        return _twin(model, dict(tensors))
    except Exception as error:
        why = _computed_tensor(model) or f"{type(error).__name__}: {error}"
        raise PruningError(f"the network cannot be copied: {why}") from error


def like(tensor: torch.Tensor, piece: torch.Tensor) -> torch.Tensor:
    """Wrap a tensor as what the original is: parameter (frozen or not) or buffer."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(piece, requires_grad=tensor.requires_grad)
    return piece.requires_grad_(tensor.requires_grad)


def _twin(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a module as `copy.deepcopy` does, without its price for what every module has: flags, empty containers."""
    cls: Any = type(module)
    before = module.__getstate__() if _is_plain(cls) and id(module) not in memo else None
    if not isinstance(before, dict):
        whole: nn.Module = copy.deepcopy(module, memo)
        return whole
    twin: Any = object.__new__(cls)
    memo[id(module)] = twin
    state = {}
    for name, value in before.items():
        if name == "_modules":
            state[name] = {key: None if child is None else _twin(child, memo) for key, child in value.items()}
        elif type(value) in (dict, OrderedDict, set) and not value:
            state[name] = type(value)()
        elif type(value) in _ATOMS or (type(value) is tuple and all(type(item) in _ATOMS for item in value)):
            state[name] = value
        else:
            state[name] = copy.deepcopy(value, memo)
    twin.__setstate__(state)
    return cast("nn.Module", twin)


_ATOMS = frozenset({bool, int, float, str, type(None)})


@functools.cache
def _is_plain(cls: Any) -> bool:
    """Tell whether a class leaves it to PyTorch what its state is, and to Python how to copy it."""
    object_s = all(getattr(cls, name) is getattr(object, name) for name in ("__new__", "__reduce__", "__reduce_ex__"))
    return object_s and cls.__getstate__ is nn.Module.__getstate__ and not hasattr(cls, "__deepcopy__")


def _computed_tensor(model: nn.Module) -> str:
    """Name a tensor that is the result of a computation, which PyTorch does not copy; empty if there is none."""
    for name, module in walk(model).items():
        for attribute, value in vars(module).items():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                return (
                    f"{name or 'the network'} keeps a computed tensor, '{attribute}'. If it is a weight norm, remove "
                    "it first (torch.nn.utils.remove_weight_norm); otherwise store the tensor with .detach()."
                )
    return ""
