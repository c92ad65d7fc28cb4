"""BatchNorm over the batches of all processes (Peng et al., "MegDet", CVPR 2018, section 3.2).

torch's `SyncBatchNorm` is a module that replaces others, and runs on accelerators only. What is needed here is that the
very network that is trained, whatever kind of BatchNorm it holds, normalises over all processes while it is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bnprune.training.distributed.processes import Processes


class SyncedBatchNorm(TorchFunctionMode):
    """While it is entered, every `batch_norm` in train mode takes its statistics over all processes."""

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self.processes = processes

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Replace `torch.nn.functional.batch_norm`; leave the rest alone."""
        if function is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: torch.Tensor,  # the names of F.batch_norm, which callers may use
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        dims = [0, *range(2, input.dim())]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count = input.numel() // input.shape[1] * self.processes.size
        mean: torch.Tensor = _Sum.apply(wide.sum(dims)) / count
        centred = wide - mean.view(shape)
        variance: torch.Tensor = _Sum.apply(centred.square().sum(dims)) / count
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((variance * (count / max(1, count - 1))).to(running_var.dtype), momentum)
        scale = torch.rsqrt(variance + eps)
        scale = scale if weight is None else scale * weight
        output = centred * scale.view(shape)
        return (output if bias is None else output + bias.view(shape)).to(input.dtype)


class _Sum(torch.autograd.Function):
    """Sum over all processes; the gradient of every summand is the sum of all gradients."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total
