"""Gradients averaged over processes by torch's DistributedDataParallel (DDP)."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bnprune.training.distributed.processes import Processes

LossOf = Callable[[nn.Module], torch.Tensor]
"""The loss of a network on some training samples."""


def wrap(model: nn.Module, processes: Processes, loss_of: LossOf) -> nn.Module:
    """Return the module to call in training: the network itself or, with several processes, a DDP around it.

    With several processes, the network is put into train mode.

    Args:
        model: On its device; with the same weights in every process.
        processes: The processes.
        loss_of: Runs a forward pass, to find parameters that do not take part in the loss.
    """
    if processes.size == 1:
        return model
    model.train()
    parallel: Any = nn.parallel.DistributedDataParallel
    # Running statistics stay those of each process; they are averaged before they are used.
    known = inspect.signature(parallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch before 2.13
    device = next(model.parameters()).device
    wrapped: nn.Module = parallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        init_sync=False,  # it would also make running statistics the leader's
        find_unused_parameters=_has_unused_parameters(model, loss_of),
        **{buffers: False},
    )
    _build_buckets(wrapped, model, loss_of)
    return wrapped


def _build_buckets(wrapped: nn.Module, model: nn.Module, loss_of: LossOf) -> None:
    """Run one forward and backward pass, after which DDP groups the gradients in their final order.

    The order in which gradients are added changes the last bits of their sum. Without this pass, the first step of a
    resumed run would differ from the same step of a run that was not interrupted.
    """
    buffers = [buffer.clone() for buffer in model.buffers()]
    loss_of(wrapped).backward()
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _has_unused_parameters(model: nn.Module, loss_of: LossOf) -> bool:
    """Return True if some parameter gets no gradient from the loss (an auxiliary head, an unused layer)."""
    trial = copy.deepcopy(model).train()
    loss_of(trial).backward()
    return any(parameter.requires_grad and parameter.grad is None for parameter in trial.parameters())


def accumulating(network: nn.Module, completes: bool) -> contextlib.AbstractContextManager[Any]:
    """Return a context for a micro-batch: only the one that completes an optimizer step averages gradients."""
    if completes or not isinstance(network, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    no_sync: contextlib.AbstractContextManager[Any] = network.no_sync()
    return no_sync


def average_statistics(model: nn.Module, processes: Processes) -> None:
    """Make the running statistics of every process the mean over all of them; each has seen other batches."""
    if processes.size > 1:
        names = ("running_mean", "running_var")
        processes.average([buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] in names])
