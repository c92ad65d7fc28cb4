"""Networks side by side: how long they take, in turn, and what they cost otherwise."""

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
from bnprune.timing.backends import Backend, Pass, Setting, forward_pass

_SECONDS = 15.0
_ROUNDS = (20, 500)
"""Rounds per setting: as many as fit into that time, within these bounds."""
_WARMUP = 3
_BLOCK_SECONDS, _BLOCKS = 0.1, 10
"""Passes of either network that go into one ratio: so many seconds' worth, as long as that leaves so many ratios. What
else the machine does comes in slices; passes shorter than those would escape it more often than longer ones."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A measured figure: its median, and the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise repeated measurements."""
        ordered = torch.tensor(sorted(values), dtype=torch.float64)
        p10, median, p90 = (float(torch.quantile(ordered, share)) for share in (0.1, 0.5, 0.9))
        return cls(median, p10, p90)


@dataclass(frozen=True)
class Timing:
    """How long networks take for a batch on one backend."""

    backend: Backend
    batch: int
    rounds: int
    seconds: tuple[Spread, ...]
    """Of a forward pass, per network."""
    ratio: Spread | None
    """The second network's time over the first's, of passes that ran in turn; None for a single network."""


def measure(
    models: Sequence[nn.Module], backend: Backend, setting: Setting, batch: int, rounds: int | None = None
) -> Timing:
    """Run networks in turn.

    Args:
        models: One or two networks; left untouched.
        backend: What runs them.
        setting: How.
        batch: Inputs per pass.
        rounds: Passes per network; None for fifteen seconds' worth.

    Raises:
        BnpruneError: A network does not run.
    """
    if backend == "compiled":
        torch._dynamo.reset()  # it keeps, and checks, whatever was compiled before
    inputs = setting.inputs(batch)
    passes = [forward_pass(model, backend, setting, inputs) for model in models]
    cuda = setting.device.type == "cuda"
    with torch.inference_mode():
        in_turn(passes, _WARMUP, cuda=cuda)
        taken = in_turn(passes, rounds, cuda=cuda) if rounds else _for_a_while(passes, cuda=cuda)
    ratio = Spread.of(ratios(*taken)) if len(taken) == 2 else None
    return Timing(backend, batch, len(taken[0]), tuple(map(Spread.of, taken)), ratio)


def ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Return the second network's time over the first's, for block after block of passes that ran in turn."""
    quickest = max(min(map(statistics.median, (first, second))), 1e-9)
    size = max(min(math.ceil(_BLOCK_SECONDS / quickest), len(first) // _BLOCKS), 1)
    starts = range(0, len(first) - size + 1, size)
    return [sum(second[start : start + size]) / sum(first[start : start + size]) for start in starts]


def _for_a_while(passes: Sequence[Pass], *, cuda: bool) -> list[list[float]]:
    taken: list[list[float]] = [[] for _ in passes]
    low, high = _ROUNDS
    started = time.perf_counter()
    while len(taken[0]) < low or (len(taken[0]) < high and time.perf_counter() - started < _SECONDS):
        for times, one in zip(taken, in_turn(passes, 1, cuda=cuda), strict=True):
            times += one
    return taken


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Use so many CPU threads in the block; None leaves PyTorch's choice. Yields how many there are."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
