"""The distance between the outputs of a slim network and those of the dense one: a measure that needs no labels."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bnprune.channels.modules import temporary_mode
from bnprune.channels.pytrees import tensors
from bnprune.pruning.calibration import forward_batches


def output_distance(dense: nn.Module, slim: nn.Module, batches: Iterable[Any]) -> float:
    """Return ‖slim(x) - dense(x)‖ / ‖dense(x)‖, the root mean square of it if there are several outputs.

    Outputs count if they are real numbers and have one shape in both networks: others may lose channels. The distance
    is infinity if no output counts, or if it is not finite.

    Args:
        dense: The network before the cut.
        slim: The network after the cut. Both run in eval mode and are left as they were.
        batches: Inputs of the networks, or (inputs, ...) pairs.

    Raises:
        ForwardError: A forward pass fails.
    """
    given = list(batches)
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    with temporary_mode(dense, training=False), temporary_mode(slim, training=False):
        for slim_output, dense_output in zip(forward_batches(slim, given), forward_batches(dense, given), strict=True):
            for index, (a, b) in enumerate(zip(_numbers(slim_output), _numbers(dense_output), strict=False)):
                if a.shape == b.shape:
                    sums[index][0] += float((a - b).square().sum())
                    sums[index][1] += float(b.square().sum())
    squares = [difference / size if size else math.inf for difference, size in sums.values()]
    distance = math.sqrt(sum(squares) / len(squares)) if squares else math.inf
    return distance if math.isfinite(distance) else math.inf


def _numbers(output: Any) -> list[torch.Tensor]:
    return [tensor.double() for tensor in tensors(output) if tensor.is_floating_point()]
