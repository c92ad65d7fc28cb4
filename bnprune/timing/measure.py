"""Latency of one network, or of two that run in turn."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from bnprune.pruning.latency import in_turn
from bnprune.timing.backends import Backend, ForwardPass, Setting, forward_pass

_SECONDS = 15.0
_ROUNDS = (20, 500)
"""Fewest and most rounds per setting; in between, as many as fit into `_SECONDS`."""
_WARMUP = 3
_BLOCK_SECONDS, _BLOCKS = 0.1, 10
"""One ratio compares the time of several passes of each network: of as many as take `_BLOCK_SECONDS`, but of no more
than leave `_BLOCKS` ratios. The scheduler gives time to other programs in slices. A pass shorter than a slice is seldom
interrupted, a longer one always, so that ratios of single passes would favour the faster network."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of repeated measurements, and their 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the percentiles of measurements."""
        ordered = torch.tensor(sorted(values), dtype=torch.float64)
        p10, median, p90 = (float(torch.quantile(ordered, share)) for share in (0.1, 0.5, 0.9))
        return cls(median, p10, p90)


@dataclass(frozen=True)
class Timing:
    """Latency of one network, or of two, for one batch size on one backend."""

    backend: Backend
    batch: int
    rounds: int
    seconds: tuple[Spread, ...]
    """Seconds per forward pass, of each network."""
    ratio: Spread | None
    """Latency of the second network over that of the first; None for a single network."""


def measure(
    models: Sequence[nn.Module], backend: Backend, setting: Setting, batch: int, rounds: int | None = None
) -> Timing:
    """Run networks in turn.

    Args:
        models: One or two networks; left untouched.
        backend: The backend that runs them.
        setting: Shape, type, memory layout and device of the inputs.
        batch: Batch size.
        rounds: Forward passes per network; None for as many as fit into fifteen seconds.

    Raises:
        ConfigError: The backend cannot run a network.
        ForwardError: The forward pass of a network fails.
        TraceError: A network cannot be exported to the backend.
    """
    if backend == "compiled":
        torch._dynamo.reset()  # otherwise each call checks the guards of all networks compiled before
    inputs = setting.inputs(batch)
    passes = [forward_pass(model, backend, setting, inputs) for model in models]
    cuda = setting.device.type == "cuda"
    with torch.inference_mode():
        in_turn(passes, _WARMUP, cuda=cuda)
        taken = in_turn(passes, rounds, cuda=cuda) if rounds else _for_some_seconds(passes, cuda=cuda)
    ratio = Spread.of(ratios(*taken)) if len(taken) == 2 else None
    return Timing(backend, batch, len(taken[0]), tuple(map(Spread.of, taken)), ratio)


def ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Return the latency of the second network over that of the first, for each block of passes."""
    quickest = max(min(map(statistics.median, (first, second))), 1e-9)
    size = max(min(math.ceil(_BLOCK_SECONDS / quickest), len(first) // _BLOCKS), 1)
    starts = range(0, len(first) - size + 1, size)
    return [sum(second[start : start + size]) / sum(first[start : start + size]) for start in starts]


def _for_some_seconds(passes: Sequence[ForwardPass], *, cuda: bool) -> list[list[float]]:
    taken: list[list[float]] = [[] for _ in passes]
    low, high = _ROUNDS
    started = time.perf_counter()
    while len(taken[0]) < low or (len(taken[0]) < high and time.perf_counter() - started < _SECONDS):
        for times, one in zip(taken, in_turn(passes, 1, cuda=cuda), strict=True):
            times += one
    return taken


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Use `count` CPU threads in the `with` block, or PyTorch's default if it is None; yield the number in use."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
