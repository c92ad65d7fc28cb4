"""Running somebody else's network for a proof: in float64 and eval mode, the same way every time.

A tensor of random real numbers holds one number throughout, so that networks of different widths, which would draw
different ones, stay comparable; and BatchNorms may use the statistics of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from bnprune.channels.modules import still
from bnprune.channels.operator_mode import Draws, OperatorMode
from bnprune.channels.pytrees import Inputs, map_tensors, operands, tensors

aten = torch.ops.aten

Watch = Callable[[torch._ops.OpOverload, tuple[Any, ...], dict[str, Any], Any], Any]
"""Sees every operator call and its output, and returns the output to go on with."""


def run(
    model: nn.Module, inputs: Inputs, seed: int, watch: Watch, *, batch_statistics: bool = False
) -> list[torch.Tensor]:
    """Run a network in eval mode and float64; return its output tensors.

    If `batch_statistics` is true, BatchNorms use the statistics of the batch (if it has several values per channel).
    """
    args, kwargs = map_tensors(torch.clone, inputs)  # a forward pass may change them in place
    double = _Double(seed, watch, batch_statistics=batch_statistics)
    with still(model, training=False), double:
        return [double.widened(tensor) for tensor in tensors(model(*args, **kwargs))]


def feeds(inputs: Inputs, seed: int) -> Iterator[Inputs]:
    """Yield inputs to try, best first: normal noise, uniform noise (images, arguments of a logarithm), those given.

    Integers and booleans (tokens, masks) stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(draw: Callable[..., torch.Tensor]) -> Inputs:
        def replaced(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            drawn = draw(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
            return drawn.to(tensor.device)

        drawn: Inputs = map_tensors(replaced, inputs)
        return drawn

    yield noise(torch.randn)
    yield noise(torch.rand)
    yield map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, inputs)


_WIDE = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    **dict.fromkeys((torch.complex64, torch.complex32), torch.complex128),
}


class _Double(OperatorMode):
    """Computes everything in float64, whatever the default type and the types that models write down as literals.

    Tensors of lower precision that come in (constants that Python made) are replaced by wide copies of theirs, which
    also take what is written into them; what an operator makes out of nothing or out of integers is cast.
    """

    def __init__(self, seed: int, watch: Watch, *, batch_statistics: bool) -> None:
        super().__init__(seed)
        self.batch_statistics = batch_statistics
        self.watch = watch
        self._wide: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._spent = Draws(seed)
        self._numbers = torch.Generator().manual_seed(seed)

    def see(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator in float64."""
        dtype = kwargs.get("dtype")
        if isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex):
            kwargs = {**kwargs, "dtype": torch.complex128 if dtype.is_complex else torch.float64}
        if any(tensor.dtype in _WIDE for tensor in operands(args, kwargs)):
            args, kwargs = map_tensors(self.widened, (args, kwargs))
        if self.batch_statistics and func is aten.native_batch_norm.default and not args[5]:
            args = _with_batch_statistics(*args)
        output = self._draw(func, args, kwargs) if func._schema.name in _DRAWS else super().see(func, args, kwargs)
        if any(tensor.dtype in _WIDE for tensor in operands((output,), {})):
            output = map_tensors(_cast, output)
        return self.watch(func, args, kwargs, output)

    def widened(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor, or the wide copy that stands in its place."""
        if tensor.dtype not in _WIDE:
            return tensor
        if id(tensor) not in self._wide:
            self._wide[id(tensor)] = tensor, _cast(tensor)  # held, so that no other tensor gets its id
        return self._wide[id(tensor)][1]

    def _draw(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """Return what a random operator would, with one number throughout."""
        output: torch.Tensor = self._spent.run(func, args, kwargs)  # how far its generator goes depends on the width
        number = float(torch.rand((), generator=self._numbers, dtype=torch.float64, device="cpu"))
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


def _cast(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(_WIDE[tensor.dtype]) if tensor.dtype in _WIDE else tensor


def _with_batch_statistics(x: torch.Tensor, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> tuple[Any, ...]:
    dims = [dim for dim in range(x.dim()) if dim != 1]
    if x.numel() > x.shape[1]:
        mean, var = x.mean(dims), x.var(dims, correction=0)
    return x, weight, bias, mean, var, *rest
