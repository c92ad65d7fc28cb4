"""Measuring latency: several networks in turn, so that a slow phase of the machine affects all of them equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from bnprune.channels.pytrees import Inputs, tensors


def latencies(models: Sequence[nn.Module], inputs: Inputs, runs: int = 20, warmup: int = 3) -> list[float]:
    """Return the median seconds of a forward pass of each network, in eval mode and without gradients.

    Args:
        models: The networks; measured in turn (A B C A B C ...).
        inputs: Positional and keyword arguments of every network.
        runs: Passes counted per network.
        warmup: Passes before them that are not counted.
    """
    args, kwargs = inputs
    for model in models:
        model.eval()
    passes = [lambda model=model: model(*args, **kwargs) for model in models]
    cuda = any(tensor.is_cuda for tensor in tensors(inputs))
    with torch.inference_mode():
        return [statistics.median(taken) for taken in in_turn(passes, runs, warmup, cuda=cuda)]


def in_turn(
    passes: Sequence[Callable[[], object]],
    rounds: int,
    warmup: int = 0,
    *,
    cuda: bool = False,
    clock: Callable[[], float] | None = None,
) -> list[list[float]]:
    """Return the seconds of every pass, (passes, rounds): in each round all of them run once, one after the other.

    Args:
        passes: Functions that run a network once.
        rounds: Rounds that are counted.
        warmup: Rounds before them.
        cuda: True if the networks run on a GPU.
        clock: Returns seconds; default: `time.perf_counter`.
    """
    clock = clock or time.perf_counter
    times: list[list[float]] = [[] for _ in passes]
    for turn in range(warmup + rounds):
        for run, taken in zip(passes, times, strict=True):
            _wait(cuda)
            started = clock()
            run()
            _wait(cuda)
            if turn >= warmup:
                taken.append(clock() - started)
    return times


_FINE = 1e-6
"""Seconds. On some systems, the clock of a thread advances in steps of milliseconds."""


def thread_clock(threads: int) -> Callable[[], float]:
    """Return the clock to measure with: with one thread, its own time, which stands still while other programs run."""
    fine = time.get_clock_info("thread_time").resolution <= _FINE
    return time.thread_time if threads == 1 and fine else time.perf_counter


def _wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()
