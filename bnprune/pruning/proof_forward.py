"""Running somebody else's network for a proof: in float64 and eval mode, the same way every time.

A tensor of random real numbers holds one number throughout, so that networks of different widths, which would draw
different ones, stay comparable; and BatchNorms may use the statistics of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from bnprune.channels.modules import temporary_mode
from bnprune.channels.operator_mode import OperatorMode, OwnGenerators
from bnprune.channels.ops import spec_of
from bnprune.channels.pytrees import Inputs, map_tensors, operands, tensors
from bnprune.channels.torch_internals import OpOverload, argument_types

Watch = Callable[[OpOverload, tuple[Any, ...], dict[str, Any], Any], Any]
"""Sees every operator call and its output, and returns the output to go on with."""


def run(
    model: nn.Module, inputs: Inputs, seed: int, watch: Watch, *, batch_statistics: bool = False
) -> list[torch.Tensor]:
    """Run a network in eval mode and float64; return its output tensors.

    If `batch_statistics` is true, BatchNorms use the statistics of the batch (if it has several values per channel).
    """
    args, kwargs = map_tensors(torch.clone, inputs)  # a forward pass may change them in place
    double = _Double(seed, watch, batch_statistics=batch_statistics)
    with temporary_mode(model, training=False), double:
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
        self._spent = OwnGenerators(seed)
        self._numbers = torch.Generator().manual_seed(seed)

    def run_operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator in float64."""
        dtype = kwargs.get("dtype")
        if isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex):
            kwargs = {**kwargs, "dtype": torch.complex128 if dtype.is_complex else torch.float64}
        if any(tensor.dtype in _WIDE for tensor in operands(args, kwargs)):
            args, kwargs = map_tensors(self.widened, (args, kwargs))
        spec = spec_of(func)
        if self.batch_statistics and spec.kind == "batch_norm":
            args = _with_batch_statistics(func, args)
        output = (
            super().run_operator(func, args, kwargs) if spec.constant_draw is None else self._draw(func, args, kwargs)
        )
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

    def _draw(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """Return what a random operator would, with one number throughout."""
        constant_draw = spec_of(func).constant_draw
        output: torch.Tensor = self._spent.run(func, args, kwargs)  # how far its generator goes depends on the width
        number = float(torch.rand((), generator=self._numbers, dtype=torch.float64, device="cpu"))
        assert constant_draw is not None
        return constant_draw(output, number, (*args, *kwargs.values()))


def _cast(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(_WIDE[tensor.dtype]) if tensor.dtype in _WIDE else tensor


def _with_batch_statistics(op: OpOverload, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replace the running statistics among the arguments of a BatchNorm operator by those of the batch.

    All of them (native, cuDNN's, MIOpen's) take (input, weight, bias, running_mean, running_var, ...); those without
    running statistics, and those in train mode, use the batch's anyway.
    """
    given = dict(zip(argument_types(op), args, strict=False))
    x = args[0]
    if "running_mean" not in given or given.get("training") or x.numel() <= x.shape[1]:
        return args
    dims = [dim for dim in range(x.dim()) if dim != 1]
    return *args[:3], x.mean(dims), x.var(dims, correction=0), *args[5:]
