"""Torch-Pruning: its own pruner with global ranking, at the pruning ratio whose network has the MACs asked for."""

from __future__ import annotations

import copy
import fnmatch
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnprune.pruning.cost import cost

_STEPS = 50
"""Ratios that are tried first. MACs need not fall as the ratio rises: a layer that is wholly below the threshold is
left at its full width."""
_REFINEMENTS = 8

IGNORED: dict[str, tuple[str, ...]] = {"resnet20": ("conv1", "stages.*.conv2")}
"""Layers that are left out besides the classifier, by network. The shortcuts of this ResNet have no parameters (they
skip pixels and fill channels with zeros). Torch-Pruning does not follow the filling, and networks in which it removes
channels of the streams fail. So the layers that write them are ignored, as its documentation advises."""


class NotReachedError(Exception):
    """No ratio gives a network with at most the MACs asked for."""


@dataclass(frozen=True)
class PeerCut:
    """The network, and how it was found."""

    network: nn.Module
    ratio: float
    ignored: list[str]
    seconds: dict[str, float]
    """Of the one pruning whose result is used, and of the whole search."""


def cut(network: nn.Module, example: torch.Tensor, share: float, importance: str, name: str) -> PeerCut:
    """Prune with the ratio whose MACs are nearest to `share` of those of the network, and not above.

    Args:
        network: The trained network; left as it was.
        example: One input.
        share: Largest share of the MACs.
        importance: "bn", "bn-none" or "l1".
        name: The network's name in the zoo.

    Raises:
        NotReachedError: No ratio gives so few.
    """
    started = time.perf_counter()
    limit = share * cost(network, example).macs
    ignored = [*_ignored(network, name)]

    def pruned(ratio: float) -> tuple[int, nn.Module, float]:
        begun = time.perf_counter()
        slim = _pruned(network, example, ratio, _importance(importance), ignored)
        taken = time.perf_counter() - begun
        try:
            return cost(slim, example).macs, slim, taken
        except Exception:  # noqa: BLE001 - a network that cannot run, whatever it raises, is no result
            return -1, slim, taken

    found = list(_tried(lambda ratio: pruned(ratio)[0], limit))
    if not found:
        raise NotReachedError(f"no pruning ratio gives a network with at most {share:g} of the MACs")
    _, ratio = max(found, key=lambda entry: (entry[0], -entry[1]))
    _, slim, taken = pruned(ratio)
    seconds = {"prune": taken, "search": time.perf_counter() - started}
    return PeerCut(slim, ratio, ignored, seconds)


def _tried(macs_at: Callable[[float], int], limit: float) -> Iterator[tuple[int, float]]:
    """Yield (MACs, ratio) of the networks with at most `limit` MACs: of a grid, and bisected where it is passed."""
    above = 0.0
    for step in range(1, _STEPS):
        ratio = step / _STEPS
        macs = macs_at(ratio)
        if macs > limit:
            above = ratio
        elif macs > 0:
            yield macs, ratio
            if above == (step - 1) / _STEPS:
                yield from _bisected(macs_at, limit, above, ratio)


def _bisected(macs_at: Callable[[float], int], limit: float, low: float, high: float) -> Iterator[tuple[int, float]]:
    for _ in range(_REFINEMENTS):
        middle = (low + high) / 2
        macs = macs_at(middle)
        if 0 < macs <= limit:
            yield macs, middle
            high = middle
        else:
            low = middle


def _ignored(network: nn.Module, name: str) -> Iterator[str]:
    patterns = IGNORED.get(name, ())
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear) or any(fnmatch.fnmatch(path, pattern) for pattern in patterns):
            yield path


def _importance(name: str) -> Any:
    import torch_pruning as tp

    return {
        "bn": lambda: tp.importance.BNScaleImportance(),
        "bn-none": lambda: tp.importance.BNScaleImportance(normalizer=None),
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    }[name]()


def _pruned(network: nn.Module, example: torch.Tensor, ratio: float, importance: Any, ignored: list[str]) -> nn.Module:
    import torch_pruning as tp

    slim = copy.deepcopy(network).eval()
    modules = dict(slim.named_modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            slim,
            example,
            importance,
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=[modules[path] for path in ignored],
        )
        pruner.step()
    return slim
