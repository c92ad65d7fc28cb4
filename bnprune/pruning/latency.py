"""Measuring latency: several networks in turn, so that a machine that slows down slows all of them down."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from bnprune.channels.trees import Inputs, tensors


def latencies(models: Sequence[nn.Module], inputs: Inputs, runs: int = 20, warmup: int = 3) -> list[float]:
    """Return the median seconds of a forward pass of each network, in eval mode and without gradients.

    Args:
        models: The networks; measured in turn (A B C A B C ...).
        inputs: Positional and keyword arguments of every network.
        runs: Passes counted per network.
        warmup: Passes before them that are not counted.
    """
    args, kwargs = inputs
    times: list[list[float]] = [[] for _ in models]
    for model in models:
        model.eval()
    with torch.inference_mode():
        for turn in range(warmup + runs):
            for model, taken in zip(models, times, strict=True):
                _wait(inputs)
                started = time.perf_counter()
                model(*args, **kwargs)
                _wait(inputs)
                if turn >= warmup:
                    taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in times]


def _wait(inputs: Inputs) -> None:
    if any(tensor.is_cuda for tensor in tensors(inputs)):
        torch.cuda.synchronize()
