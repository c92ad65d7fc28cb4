"""Measuring the standard deviation of layers' outputs on data, in place of the estimate (`output_deviation`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bnprune.channels.modules import modules_by_name, temporary_mode
from bnprune.channels.pytrees import as_inputs, map_tensors
from bnprune.channels.torch_internals import Convolution


class _Sums:
    """Sums of the values and squares of each channel of a layer's output."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.count = 0
        self.total = self.squares = torch.zeros(0)

    def add(self, _: nn.Module, __: Any, output: torch.Tensor) -> None:
        """Add an output; a forward hook."""
        channel = output.dim() - 1 if isinstance(self.layer, nn.Linear) else 1
        values = output.detach().double().movedim(channel, 0).flatten(1)
        if not self.count:
            self.total = self.squares = torch.zeros_like(values[:, 0])
        self.count += values.shape[1]
        self.total = self.total + values.sum(1)
        self.squares = self.squares + values.square().sum(1)

    def deviation(self) -> torch.Tensor:
        """Return the standard deviation of each channel, shape (channels,)."""
        variance = self.squares / self.count - (self.total / self.count).square()
        return variance.clamp(min=0).sqrt().cpu()


def measure_output_deviation(
    model: nn.Module, batches: Iterable[Any], layers: Iterable[str]
) -> dict[str, torch.Tensor]:
    """Measure the standard deviation of each output channel of layers, over batches and positions.

    Args:
        model: The network; it runs in eval mode and is left as it was.
        batches: Inputs of the forward pass, on the network's device; of a tuple or list, the first entry.
        layers: Names of convolutions and linear layers. Other modules are left out, and so are layers that never run.

    Returns:
        Standard deviations of shape (channels,), float64, by name of the layer.
    """
    modules = modules_by_name(model)
    measured = {name: modules[name] for name in layers if isinstance(modules.get(name), nn.Linear | Convolution)}
    sums = {name: _Sums(layer) for name, layer in measured.items()}
    hooks = [layer.register_forward_hook(sums[name].add) for name, layer in measured.items()]
    try:
        with temporary_mode(model, training=False), torch.no_grad():
            for batch in batches:
                args, kwargs = as_inputs(batch[0] if isinstance(batch, tuple | list) else batch)
                args, kwargs = map_tensors(torch.clone, (args, kwargs))  # a forward pass may change them in place
                model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total.deviation() for name, total in sums.items() if total.count}
