"""The cost of a network: parameters and multiply-accumulates (MACs; FLOPs are twice as many)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bnprune.channels.forward import forward, lightly
from bnprune.channels.modules import parameter_count
from bnprune.channels.trees import Inputs, as_inputs


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs for one input."""

    params: int
    """Elements of its parameters; buffers (BatchNorm statistics) do not count."""
    macs: int
    """Multiply-accumulates of convolutions and matrix products; normalisation and activations do not count."""
    channels: int
    """BatchNorm channels."""


def cost(model: nn.Module, example_inputs: Any) -> Cost:
    """Count in eval mode, on the meta device where the network runs there.

    Args:
        model: Any network.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword arguments; values do not matter.
    """
    inputs = as_inputs(example_inputs)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return Cost(
        params=parameter_count(model),
        macs=lightly(lambda device: _macs(model, inputs, device)),
        channels=sum(norm.num_features for norm in norms),
    )


def _macs(model: nn.Module, inputs: Inputs, device: str) -> int:
    with FlopCounterMode(display=False) as counter:
        forward(model, inputs, device=device)
    return int(counter.get_total_flops()) // 2
