"""Running a network for a proof: in eval mode and one precision, in the same way every time.

Random operators fill their whole output with one random number, so that networks of different widths, which would draw
different numbers, stay comparable. BatchNorms may use the statistics of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnprune.channels.modules import temporary_mode
from bnprune.channels.network_outputs import counted_outputs
from bnprune.channels.operator_mode import OperatorMode, OwnGenerators
from bnprune.channels.ops import spec_of
from bnprune.channels.pytrees import Inputs, map_tensors, operands
from bnprune.channels.torch_internals import OpOverload, argument_types
from bnprune.config.prune_options import Outputs

Watch = Callable[[OpOverload, tuple[Any, ...], dict[str, Any], Any], Any]
"""Called with every operator call and its output; returns the output to use instead."""


def unchanged(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Return the output of an operator as it is (a `Watch` without effect)."""
    return output


@dataclass(frozen=True, slots=True)
class Setting:
    """The conditions under which a network is run for a proof."""

    seed: int = 0
    """Of the random numbers that the network draws."""
    dtype: torch.dtype = torch.float64
    """float64: everything is computed in float64, whatever types the code names; float32: in those types."""
    batch_statistics: bool = False
    """True if BatchNorms use the statistics of the batch (if it has several values per channel)."""
    outputs: Outputs | None = None
    """The outputs that are compared; None for all."""


DEFAULT_SETTING = Setting()
"""A proof in float64 that compares all outputs."""


def run(
    model: nn.Module, inputs: Inputs, setting: Setting = DEFAULT_SETTING, watch: Watch = unchanged
) -> list[torch.Tensor]:
    """Run a network in eval mode; return the output tensors that count.

    Args:
        model: The network; its type and that of the inputs is `setting.dtype`.
        inputs: Positional and keyword arguments.
        setting: The precision, and what else is fixed.
        watch: Called with every operator call and its output; returns the output to use instead.

    Raises:
        ConfigError: The network does not return `setting.outputs`.
    """
    args, kwargs = map_tensors(torch.clone, inputs)  # a forward pass may change them in place
    mode = _ProofMode(setting, watch)
    with temporary_mode(model, training=False), mode:
        return [mode.widened(tensor) for tensor in counted_outputs(model(*args, **kwargs), setting.outputs)]


def trial_inputs(inputs: Inputs, seed: int, dtype: torch.dtype = torch.float64) -> Iterator[Inputs]:
    """Yield inputs to try, best first: normal noise, uniform noise (images, arguments of a logarithm), those given.

    Floating-point numbers are of the type `dtype`. Integers and booleans (tokens, masks) stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(draw: Callable[..., torch.Tensor]) -> Inputs:
        def replaced(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            drawn = draw(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
            return drawn.to(tensor.device, dtype)

        drawn: Inputs = map_tensors(replaced, inputs)
        return drawn

    yield noise(torch.randn)
    yield noise(torch.rand)
    yield map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, inputs)


_WIDE = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    **dict.fromkeys((torch.complex64, torch.complex32), torch.complex128),
}


class _ProofMode(OperatorMode):
    """Computes everything in float64, whatever the default type and the types that models write down as literals.

    Tensors of lower precision that come in (constants that Python made) are replaced by float64 copies, which also
    receive what is written into them; outputs that an operator computes from nothing or from integers are cast. With
    the dtype float32, all types stay as they are.
    """

    def __init__(self, setting: Setting, watch: Watch) -> None:
        super().__init__(setting.seed)
        self.batch_statistics = setting.batch_statistics
        self.watch = watch
        self._to_wide = _WIDE if setting.dtype == torch.float64 else {}
        self._wide: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._width_dependent = OwnGenerators(setting.seed)
        self._numbers = torch.Generator().manual_seed(setting.seed)

    def run_operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator in the precision of the proof."""
        dtype = kwargs.get("dtype")
        if self._to_wide and isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex):
            kwargs = {**kwargs, "dtype": torch.complex128 if dtype.is_complex else torch.float64}
        if any(tensor.dtype in self._to_wide for tensor in operands(args, kwargs)):
            args, kwargs = map_tensors(self.widened, (args, kwargs))
        spec = spec_of(func)
        if self.batch_statistics and spec.kind == "batch_norm":
            args = _with_batch_statistics(func, args)
        output = (
            super().run_operator(func, args, kwargs) if spec.constant_draw is None else self._draw(func, args, kwargs)
        )
        if any(tensor.dtype in self._to_wide for tensor in operands((output,), {})):
            output = map_tensors(_cast, output)
        return self.watch(func, args, kwargs, output)

    def widened(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor, or the float64 copy that replaces it."""
        if tensor.dtype not in self._to_wide:
            return tensor
        if id(tensor) not in self._wide:
            self._wide[id(tensor)] = tensor, _cast(tensor)  # kept alive, so that no other tensor gets its id
        return self._wide[id(tensor)][1]

    def _draw(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """Return the output of a random operator, filled with one random number."""
        constant_draw = spec_of(func).constant_draw
        output: torch.Tensor = self._width_dependent.run(func, args, kwargs)  # the number of draws depends on the width
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
