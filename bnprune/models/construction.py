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

from bnprune.channels.operator_mode import OperatorMode
from bnprune.channels.pytrees import operands
from bnprune.channels.torch_internals import OpOverload
from bnprune.errors import BnpruneError

_OPERATORS_PER_TENSOR = 20
"""Constructors of torchvision and timm call 2 to 7 operators for each tensor of the state dict."""
_SPARE_TENSORS = 200
_ELEMENTS_OUTSIDE_META = 2**24
"""Constructors that run on the meta device compute small tables on the CPU."""


class TooLarge(BnpruneError):
    """The network that is being built is larger than the file that names it can account for."""


class Construction(OperatorMode):
    """While active in this thread, bounds what is created. Random numbers come from generators of its own.

    Args:
        tensors: Number of tensors the file holds.
        elements: Largest number of elements of all new tensors together, those on the meta device apart.
    """

    def __init__(self, tensors: int, elements: int) -> None:
        super().__init__()
        self._calls_left = _OPERATORS_PER_TENSOR * (tensors + _SPARE_TENSORS)
        self._elements = self._elements_left = elements

    def run_operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, unless the network has become too large."""
        self._calls_left -= 1
        if self._calls_left < 0:
            raise TooLarge("it has far more layers than the file has tensors")
        self._elements_left -= _new_elements(func, args, kwargs)
        if self._elements_left < 0:
            raise TooLarge(f"it has more than {self._elements:,} values")
        return super().run_operator(func, args, kwargs)


def _new_elements(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return how many elements an operator that makes a tensor of a given size allocates."""
    device = kwargs.get("device")
    if (device is not None and torch.device(device).type == "meta") or operands(args, {}):
        return 0
    sizes = [value for argument, value in zip(func._schema.arguments, args, strict=False) if argument.name == "size"]
    return math.prod(sizes[0]) if sizes else 0


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
