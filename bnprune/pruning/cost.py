"""The cost of a network: parameters and multiply-accumulates (MACs; FLOPs are twice as many)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bnprune.channels.trace import set_mode, untouched
from bnprune.channels.trees import as_inputs, map_tensors


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
    """Count on the meta device, in eval mode, without running any arithmetic.

    Args:
        model: Any network that runs on meta tensors.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword arguments; values do not matter.
    """
    args, kwargs = map_tensors(lambda tensor: tensor.to("meta"), as_inputs(example_inputs))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    stand_ins = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    with untouched(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        set_mode(model, training=False)
        torch.func.functional_call(model, stand_ins, args, kwargs)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return Cost(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=counter.get_total_flops() // 2,
        channels=sum(norm.num_features for norm in norms),
    )
