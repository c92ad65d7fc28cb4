"""Surrogates: cheap substitutes for layers, for networks whose values only decide which branch the code takes.

A surrogate convolution reads one input channel at one kernel position, a surrogate matrix product reads one input
feature; both are scaled by the square root of the fan-in, so that the variance stays about the same. It is what the
layer computes if all its other weights are zero. So code that works for any weights works for surrogates: they lead to
no branch that the network could not take with other weights, in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from bnprune.channels.ops.spec import spec_of
from bnprune.channels.torch_internals import OpOverload


class EndlessLoopError(Exception):
    """The code reads values endlessly: with surrogate values, a loop never reaches its exit condition."""


class SurrogateOps:
    """Computes surrogates for the operators that multiply by the parameters of one network."""

    def __init__(self, parameters: Iterable[torch.Tensor], max_reads: int = 1000) -> None:
        """Take the parameters, and how many values Python code may read in one forward pass."""
        self._storages = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self._reads_left = max_reads

    def run(self, func: OpOverload, args: tuple[Any, ...]) -> torch.Tensor | None:
        """Return a substitute for the output of an operator call; None if the operator has to run itself."""
        spec = spec_of(func)
        if spec.surrogate is None or spec.weight is None or not self._is_parameter(args[spec.weight]):
            return None
        return spec.surrogate(*args)

    def _is_parameter(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._storages  # `weight.t()` has the storage of the weight

    def count_read(self, output: Any) -> None:
        """Count an operator call whose output is a Python number (`.item()`, `bool(x)`).

        Raises:
            EndlessLoopError: There have been too many.
        """
        if isinstance(output, bool | int | float):
            self._reads_left -= 1
            if self._reads_left < 0:
                raise EndlessLoopError
