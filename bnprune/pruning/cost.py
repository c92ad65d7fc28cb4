"""The cost of a network: parameters and multiply-accumulates (MACs; FLOPs are twice as many)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from bnprune.channels.forward_pass import forward, on_meta_or_cpu
from bnprune.channels.modules import parameter_count
from bnprune.channels.operator_mode import OperatorMode, preserve_thread_state
from bnprune.channels.ops.spec import macs_of
from bnprune.channels.pytrees import Inputs, as_inputs
from bnprune.channels.torch_internals import BatchNorm, OpOverload


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters and MACs of a network for one input."""

    params: int
    """Elements of its parameters; buffers (BatchNorm statistics) do not count."""
    macs: int
    """Multiply-accumulates of convolutions and matrix products; normalisation and activations do not count."""
    channels: int
    """BatchNorm channels."""


@preserve_thread_state
def cost(model: nn.Module, example_inputs: Any) -> Cost:
    """Count parameters and MACs in eval mode, on the meta device if the network runs there.

    Args:
        model: Any network.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword arguments; values do not matter.
    """
    inputs = as_inputs(example_inputs)
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    return Cost(
        params=parameter_count(model),
        macs=on_meta_or_cpu(lambda device: _macs(model, inputs, device)),
        channels=sum(norm.num_features for norm in norms),
    )


class _MacCounter(OperatorMode):
    """Adds up MACs."""

    macs = 0

    def run_operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, and count it."""
        output = super().run_operator(func, args, kwargs)
        self.macs += macs_of(func, args, kwargs, output)
        return output


def _macs(model: nn.Module, inputs: Inputs, device: str) -> int:
    counter = _MacCounter()
    with counter:
        forward(model, inputs, device=device)
    return counter.macs
