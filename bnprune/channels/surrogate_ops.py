"""Sketches: cheap stand-ins for weighted operators, where values do no more than steer a network's control flow.

A sketched convolution reads one input channel through one tap of its kernel, a sketched matrix product one input
feature, each scaled by the square root of the fan-in. The very same network computes that with all other weights at
zero. So code that holds for any weights holds for a sketched forward pass, and it decides nothing that the network
could not decide; it takes a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from bnprune.channels.ops.spec import spec_of
from bnprune.channels.torch_internals import OpOverload


class EndlessLoopError(Exception):
    """A sketched forward pass asks for values without end: sketched values do not lead out of a loop."""


class SurrogateOps:
    """Stands in for the operators that multiply by the parameters of one network."""

    def __init__(self, parameters: Iterable[torch.Tensor], questions: int = 1000) -> None:
        """Take the parameters, and how many values Python code may ask for in one forward pass."""
        self._owned = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self._left = questions

    def run(self, func: OpOverload, args: tuple[Any, ...]) -> torch.Tensor | None:
        """Return a substitute for the output of an operator call; None if the operator has to run itself."""
        spec = spec_of(func)
        if spec.surrogate is None or spec.weight is None or not self._is_weight(args[spec.weight]):
            return None
        return spec.surrogate(*args)

    def _is_weight(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._owned

    def see(self, output: Any) -> None:
        """Count what Python code asks for.

        Raises:
            LostError: It was asked too often.
        """
        if isinstance(output, bool | int | float):
            self._left -= 1
            if self._left < 0:
                raise EndlessLoopError
