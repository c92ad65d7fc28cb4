"""Re-estimating BatchNorm statistics after a cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from bnprune.channels.pytrees import map_tensors
from bnprune.channels.torch_internals import BatchNorm
from bnprune.pruning.calibration import inputs_of


def recalibrate(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Replace running means and variances by the cumulative average over some batches, in place.

    Removing channels changes the inputs of every later BatchNorm, whose moving averages still describe the old network.
    BatchNorms run in train mode, everything else (dropout) in eval mode. Weights do not change. About 100 batches are
    enough (Li et al., "EagleEye", ECCV 2020, section 3.3).

    Args:
        model: The network; its mode and BatchNorm momenta are restored.
        batches: Inputs of the network (a tensor, or a mapping of keyword arguments), or (inputs, ...) pairs as a
            DataLoader yields them, on the model's device.

    Returns:
        The same network.

    Raises:
        ValueError: There is no batch.

    Example::

        slim = bnprune.prune(model, example_inputs, ratio=0.5).model
        bnprune.recalibrate(slim, batches)
    """
    norms = [m for m in model.modules() if isinstance(m, BatchNorm) and m.track_running_stats]
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    try:
        for position in _average(model, norms, batches):
            norms[position].load_state_dict(before[position], strict=False)
    except BaseException:
        for norm, buffers in zip(norms, before, strict=True):
            norm.load_state_dict(buffers, strict=False)
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model


def _average(model: nn.Module, norms: Sequence[BatchNorm], batches: Iterable[Any]) -> list[int]:
    """Average statistics over batches; return the positions of the BatchNorms that did not run in eval mode."""
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    count = 0
    with torch.no_grad():
        for batch in batches:
            args, kwargs = map_tensors(torch.Tensor.clone, inputs_of(batch))  # the network may change them in place
            model(*args, **kwargs)
            count += 1
    if not count:
        raise ValueError("recalibrate: got no batches")
    return [position for position, norm in enumerate(norms) if not norm.num_batches_tracked]
