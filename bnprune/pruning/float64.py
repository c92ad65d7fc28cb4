"""Running somebody else's network for a proof: in float64 and eval mode, the same way every time.

A tensor of random real numbers holds one number throughout, so that networks of different widths, which would draw
different ones, stay comparable; and BatchNorms may use the statistics of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bnprune.channels.modules import still
from bnprune.channels.trees import Inputs, map_tensors, tensors

aten = torch.ops.aten

Watch = Callable[[torch._ops.OpOverload, tuple[Any, ...], dict[str, Any], Any], Any]
"""Sees every operator call and its output, and returns the output to go on with."""


def run(model: nn.Module, inputs: Inputs, seed: int, watch: Watch, *, lively: bool = False) -> list[torch.Tensor]:
    """Run a network in eval mode and float64; return its output tensors.

    With `lively`, BatchNorms use the statistics of the batch (where it has more than one value per channel).
    """
    args, kwargs = inputs
    with still(model, training=False), _double_defaults(), _Double(seed, watch, lively=lively):
        torch.manual_seed(seed)
        return list(tensors(model(*args, **kwargs)))


def feeds(inputs: Inputs, seed: int) -> Iterator[Inputs]:
    """Yield inputs to try, best first: normal noise, uniform noise (images, arguments of a logarithm), those given.

    Integers and booleans (tokens, masks) stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(draw: Callable[..., torch.Tensor]) -> Inputs:
        def replaced(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            return draw(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)

        drawn: Inputs = map_tensors(replaced, inputs)
        return drawn

    yield noise(torch.randn)
    yield noise(torch.rand)
    yield map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, inputs)


@contextmanager
def _double_defaults() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Double(TorchDispatchMode):
    """Turns casts to lower precision, which models write down as literals, into casts to float64."""

    def __init__(self, seed: int, watch: Watch, *, lively: bool) -> None:
        super().__init__()
        self.lively = lively
        self.watch = watch
        self._numbers = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        dtype = kwargs.get("dtype")
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            kwargs = {**kwargs, "dtype": torch.float64}
        if self.lively and func is aten.native_batch_norm.default and not args[5]:
            args = _with_batch_statistics(*args)
        output = self._draw(func, args, kwargs) if func._schema.name in _DRAWS else func(*args, **kwargs)
        return self.watch(func, args, kwargs, output)

    def _draw(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """Return what a random operator would, with one number throughout."""
        state = torch.get_rng_state()
        output: torch.Tensor = func(*args, **kwargs)
        torch.set_rng_state(state)  # how far it went depends on the width
        number = float(torch.rand((), generator=self._numbers))
        floats = [arg for arg in (*args[1:], *kwargs.values()) if isinstance(arg, float)]
        match func._schema.name.removeprefix("aten::").rstrip("_"):
            case "bernoulli":  # its mean: together with dropout's factor 1 / (1 - p), the identity
                return output.fill_(floats[0]) if floats else output.copy_(args[0])
            case "uniform":
                low, high = floats if len(floats) == 2 else (0.0, 1.0)
                return output.fill_(low + (high - low) * number)
            case _:
                return output.fill_(number)


_DRAWS = {
    f"aten::{name}"
    for name in (
        *("bernoulli", "bernoulli_", "exponential_", "normal", "normal_"),
        *("rand", "rand_like", "randn", "randn_like", "uniform_"),
    )
}


def _with_batch_statistics(x: torch.Tensor, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> tuple[Any, ...]:
    dims = [dim for dim in range(x.dim()) if dim != 1]
    if x.numel() > x.shape[1]:
        mean, var = x.mean(dims), x.var(dims, correction=0)
    return x, weight, bias, mean, var, *rest
