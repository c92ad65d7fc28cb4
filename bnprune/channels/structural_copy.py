"""Copies of the user's network with other tensors in it.

The given network is never changed, not even for a moment: other threads may use it, and Ctrl-C may come at any time.
"""

from __future__ import annotations

import copy
import functools
import pickle
from collections import OrderedDict
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import torch
from torch import nn

from bnprune.channels.outside_state import Cache
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
        why = _computed_tensor(model) or _uncopyable(model) or f"{type(error).__name__}: {error}"
        raise PruningError(f"the network cannot be copied: {why}") from error


def _copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a module as `copy.deepcopy` does, but without calling it for each empty container and number.

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
            state[name] = _copy_value(value, memo)
    copied.__setstate__(state)
    return copied


def _copy_value(value: Any, memo: dict[int, Any]) -> Any:
    """Copy an attribute. What cannot be copied (a lock, a generator, an open file) is shared with the original."""
    if id(value) in memo:
        return memo[id(value)]
    if type(value) in _ATOMS:
        return value
    if isinstance(value, nn.Module):
        return _copy(value, memo)
    copied = _copy_part_by_part(value, memo)
    if copied is not None:
        memo[id(value)] = copied
        return copied
    known = len(memo)
    try:
        return copy.deepcopy(value, memo)
    except (TypeError, copy.Error, pickle.PicklingError):
        for key in list(memo)[known:]:  # copies that were begun
            del memo[key]
        return value


def _copy_part_by_part(value: Any, memo: dict[int, Any]) -> Any:
    """Copy a container or view whose items may not be copied whole, or a cache; None for anything else.

    `deepcopy` shares what `functools.lru_cache` returns: the copy of a network would use the cached tensors of the
    original.
    """
    if type(value) is dict:
        copied: dict[Any, Any] = {}
        memo[id(value)] = copied  # before its items: it may contain itself
        copied.update(_copy_items(value, memo))
        return copied
    if type(value) is list:
        items: list[Any] = []
        memo[id(value)] = items
        items += [_copy_value(item, memo) for item in value]
        return items
    if type(value) is tuple:
        return tuple(_copy_value(item, memo) for item in value)
    if isinstance(value, Cache):
        return functools.lru_cache(**value.cache_parameters())(_copy_value(value.__wrapped__, memo))
    for view, method in _VIEWS.items():
        if isinstance(value, view) and isinstance(getattr(value, "mapping", None), Mapping):
            return getattr(dict(_copy_items(value.mapping, memo)), method)()
    return None


def _copy_items(mapping: Mapping[Any, Any], memo: dict[int, Any]) -> Iterator[tuple[Any, Any]]:
    return ((_copy_value(key, memo), _copy_value(item, memo)) for key, item in mapping.items())


_VIEWS: dict[Any, str] = {KeysView: "keys", ValuesView: "values", ItemsView: "items"}


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


def _uncopyable(model: nn.Module) -> str:
    """Name a module that its own class copies, and an attribute that cannot be copied; "" if there is none."""
    for name, module in model.named_modules():
        cls: Any = type(module)
        for attribute, value in () if _has_default_copy(cls) else vars(module).items():
            try:
                copy.deepcopy(value)
            except Exception as error:  # noqa: BLE001 - whatever made the copy of the network fail
                return (
                    f"{name or 'the network'} keeps a {type(value).__name__}, '{attribute}' ({error}). Make it in "
                    "forward(), or delete it before pruning."
                )
    return ""
