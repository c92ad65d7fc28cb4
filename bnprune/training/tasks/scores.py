"""The class scores in the output of a network, and sums that do not depend on how samples are batched."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def logits_of(output: object) -> torch.Tensor:
    """Return the class scores in the output of a network: the tensor itself, or the first of several.

    Raises:
        TypeError: There is no tensor.
    """
    while not isinstance(output, torch.Tensor):
        if isinstance(output, dict) and output:
            output = output.get("logits", output.get("out", next(iter(output.values()))))
        elif hasattr(output, "logits"):
            output = output.logits
        elif isinstance(output, tuple | list) and output:
            output = output[0]
        else:
            raise TypeError(f"expected class scores from the network, got {type(output).__name__}")
    return output


def sum_of(losses: torch.Tensor) -> torch.Tensor:
    """Add up losses one after the other, in float64 if the device has it."""
    total = torch.zeros((), dtype=exact_type(losses.device), device=losses.device)
    for loss in losses:
        total += loss
    return total


def means_of(sums: Mapping[str, torch.Tensor], count: int) -> dict[str, float]:
    """Return the means of scalar sums over `count` samples; zeros if there are none."""
    return {name: total.item() / max(count, 1) for name, total in sums.items()}


def exact_type(device: torch.device) -> torch.dtype:
    """Return the type to add up losses in: float64 if the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
