"""Finding and replacing the tensors in the inputs and outputs of models and operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from bnprune.channels.torch_internals import pytree

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def as_inputs(example_inputs: Any) -> Inputs:
    """Return (args, kwargs) of a forward call.

    A tensor is the only argument; a tuple holds positional arguments, a mapping keyword arguments. Anything else (a
    list of images, say) is passed as the only argument; wrap a mapping in a tuple to pass it whole.
    """
    if isinstance(example_inputs, tuple):
        return example_inputs, {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (example_inputs,), {}


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """Return the tree with every tensor replaced."""
    return pytree.tree_map_only(torch.Tensor, function, tree)


def operands(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the tensor arguments of an operator: plain or in a list; ATen operators take no other containers."""
    tensor_arguments: list[torch.Tensor] = []
    for arg in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(arg, torch.Tensor):
            tensor_arguments.append(arg)
        elif isinstance(arg, _LISTED):
            tensor_arguments += [item for item in arg if isinstance(item, torch.Tensor)]
    return tensor_arguments


_LISTED = (list, tuple)


def tensors(tree: Any, depth: int = 8) -> Iterator[torch.Tensor]:
    """Yield every tensor in nested containers, dataclasses and plain objects."""
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif depth and dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from tensors([getattr(leaf, f.name) for f in dataclasses.fields(leaf)], depth - 1)
        elif depth and isinstance(leaf, Mapping):
            yield from tensors(list(leaf.values()), depth - 1)
        elif depth and not isinstance(leaf, type | torch.nn.Module):
            yield from tensors(_attributes(leaf), depth - 1)


def _attributes(leaf: Any) -> list[Any]:
    """Return the attributes of a plain object, in its dictionary or in slots."""
    slots = [name for cls in type(leaf).__mro__ for name in getattr(cls, "__slots__", ())]
    return [*getattr(leaf, "__dict__", {}).values(), *(getattr(leaf, name, None) for name in slots)]
