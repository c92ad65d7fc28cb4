"""Building a network that a file names: on the meta device first, within bounds, with torch's generators untouched.

A few hundred bytes of a file can ask for a network of any size. Its constructor is therefore stopped if it creates many
more tensors, or larger ones, than the file that it belongs to can account for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bnprune.errors import BnpruneError

_OPERATORS_PER_TENSOR = 20
"""Constructors of torchvision and timm call 2 to 7 operators for each tensor of the state dict."""
_SPARE_TENSORS = 200
_ELEMENTS_OUTSIDE_META = 2**24
"""Constructors that run on the meta device compute small tables on the CPU."""


class TooLarge(BnpruneError):
    """The network that is being built is larger than the file that names it can account for."""


class Construction(TorchDispatchMode):
    """While active in this thread, bounds what is created, and draws random numbers from a generator of its own.

    A dispatch mode is local to its thread, so that the generators that other threads draw from stay as they are.

    Args:
        tensors: Number of tensors the file holds.
        elements: Largest number of elements of all new tensors together.
    """

    def __init__(self, tensors: int, elements: int) -> None:
        super().__init__()
        self._calls_left = _OPERATORS_PER_TENSOR * (tensors + _SPARE_TENSORS)
        self._elements = self._elements_left = elements
        self._generator = torch.Generator().manual_seed(0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        self._calls_left -= 1
        if self._calls_left < 0:
            raise TooLarge("it has far more layers than the file has tensors")
        self._count(func, args, kwargs)
        func = self._drawing(func, kwargs)
        return func(*args, **kwargs)

    def _count(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.name == "size" and not any(isinstance(other, torch.Tensor) for other in args):
                kind = kwargs.get("device")
                if kind is None or torch.device(kind).type != "meta":
                    self._elements_left -= math.prod(value)
        if self._elements_left < 0:
            raise TooLarge(f"it has more than {self._elements:,} values")

    def _drawing(self, func: Any, kwargs: dict[str, Any]) -> Any:
        """Return the operator that draws from the generator in `kwargs`, if this one draws random numbers."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func
        if any(argument.name == "generator" for argument in func._schema.arguments):
            if kwargs.get("generator") is None:
                kwargs["generator"] = self._generator
            return func
        overload = func._schema.overload_name
        name = f"{overload}_generator" if overload else "generator"
        if name not in func.overloadpacket.overloads():
            return func
        kwargs["generator"] = self._generator
        return getattr(func.overloadpacket, name)


def construct(make: Callable[[], nn.Module], tensors: int, elements: int) -> nn.Module:
    """Build a network within the bounds of `Construction`.

    Raises:
        TooLarge: The network exceeds them.
    """
    with Construction(tensors, elements):
        return make()


def construct_on_meta(make: Callable[[], nn.Module], tensors: int) -> nn.Module:
    """Build a network on the meta device: shapes without memory.

    Raises:
        TooLarge: The network has many more tensors than `tensors`.
        Exception: The constructor needs values (`.item()`), or fails for another reason.
    """
    with torch.device("meta"), Construction(tensors, _ELEMENTS_OUTSIDE_META):
        return make()
