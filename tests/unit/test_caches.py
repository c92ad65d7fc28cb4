"""Caches that a network's code keeps: tensors of our passes never reach them, theirs never reach our passes."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import bnprune
from bnprune.channels.structural_copy import copy_with_tensors
from tests.nets import Net, conv_bn, head, noise, randomized

X = noise(2, 3, 8, 8).float()
_TABLES: dict[Any, torch.Tensor] = {}
_LAST: torch.Tensor | None = None


def ramp(x: torch.Tensor) -> torch.Tensor:
    """Values that depend on the width of an image, on its device, and on whether something is float64."""
    return torch.linspace(0, 1, x.shape[-1], device=x.device, dtype=x.dtype).cumsum(0)


@functools.lru_cache(maxsize=4)
def table(width: int, device: torch.device) -> torch.Tensor:
    return torch.linspace(0, 1, width, device=device).sin()


def table_of(x: torch.Tensor) -> torch.Tensor:
    return table(x.shape[-1], x.device)


class OfMethod(nn.Module):
    """The cache is made when it is needed, around a bound method."""

    def make(self, width: int) -> torch.Tensor:
        return torch.arange(width, device=self.where.device).sin() * self.scale

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("where", torch.zeros(1))
        self.scale = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "_cached"):
            self._cached = functools.lru_cache(maxsize=1)(self.make)
        return x + self._cached(x.shape[-1])


class OfClass(OfMethod):
    @functools.lru_cache(maxsize=2)  # noqa: B019 - what is tested
    def made(self, width: int) -> torch.Tensor:
        return self.make(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.made(x.shape[-1])


class OfStaticMethod(nn.Module):
    @staticmethod
    @functools.cache
    def made(width: int, device: torch.device) -> torch.Tensor:
        return torch.linspace(0, 1, width, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.made(x.shape[-1], x.device)


class OfFunction(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + table_of(x)


class InDictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[int, torch.Tensor] = {}

    def kept(self) -> dict[int, torch.Tensor]:
        return self.tables

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tables, width = self.kept(), x.shape[-1]
        if width not in tables:
            tables[width] = ramp(x)
        return x + tables[width]


class InDictionaryOfClass(InDictionary):
    shared: ClassVar[dict[int, torch.Tensor]] = {}

    def kept(self) -> dict[int, torch.Tensor]:
        return self.shared


class InGlobalDictionary(InDictionary):
    def kept(self) -> dict[int, torch.Tensor]:
        return _TABLES


class InGlobal(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        global _LAST
        if _LAST is None:
            _LAST = ramp(x)
        return x + _LAST


class InClass(nn.Module):
    last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if InClass.last is None:
            InClass.last = ramp(x)
        return x + InClass.last


KEEPERS = [OfMethod, OfClass, OfStaticMethod, OfFunction, InDictionary, InDictionaryOfClass, InGlobalDictionary,
           InGlobal, InClass]  # fmt: skip


@pytest.fixture(autouse=True)
def _start_empty() -> None:
    empty()


def empty() -> None:
    global _LAST
    _LAST = InClass.last = None
    _TABLES.clear()
    InDictionaryOfClass.shared.clear()
    for cache in (table, OfClass.made, OfStaticMethod.made):
        cache.cache_clear()


def network(keeper: Callable[[], nn.Module]) -> nn.Module:
    """The cached tensor is added to a stream that is cut."""
    net = Net(lambda n, x: n.out(n.b(n.keeper(n.a(x)))), a=conv_bn(3, 16), b=conv_bn(16, 8), out=head(8))
    net.keeper = keeper()
    return randomized(net).eval()


@pytest.mark.parametrize("keeper", KEEPERS)
@pytest.mark.parametrize("warm", [False, True])
def test_the_original_computes_what_it_did(keeper: Callable[[], nn.Module], warm: bool) -> None:
    """Its tensors are neither on the meta device afterwards nor in float64, also if it has never run."""
    with torch.no_grad():
        net = network(keeper)
        expected = copy.deepcopy(net)(X)
        empty()
        if warm:
            net(X)
        result = bnprune.prune(net, X, ratio=0.5)
        assert result.report.channels_before == 24, [str(why) for why in result.report.refusals]
        assert result.report.max_relative_error < 1e-12
        for tensor in (net(X), net(X)):
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected)
        assert result.model(X).dtype == torch.float32


def test_a_copy_has_caches_of_its_own() -> None:
    original = OfMethod()
    original(X)
    original.listed = [original._cached, {"by name": original._cached}]
    copied = copy_with_tensors(original, {})
    copied.scale = 3
    assert copied._cached.cache_info().currsize == 0
    assert copied._cached.cache_parameters() == original._cached.cache_parameters()
    assert torch.equal(copied._cached(8), original.make(8) / 2 * 3)
    assert copied.listed[0] is copied.listed[1]["by name"] is copied._cached
    assert original._cached.cache_info().currsize == 1


def test_the_slim_network_starts_with_empty_caches() -> None:
    net = network(OfMethod)
    net(X)
    slim = bnprune.prune(net, X, ratio=0.5).model
    assert slim.keeper._cached.cache_info().currsize == 0
    assert slim.keeper._cached.__wrapped__.__self__ is slim.keeper


class Keeper(nn.Module):
    """Attributes that deepcopy refuses, plain and inside others."""

    def __init__(self) -> None:
        super().__init__()
        scales = {"a": nn.Parameter(torch.ones(1)), "b": nn.Parameter(torch.ones(1))}
        self.scales = nn.ParameterDict(scales)
        self.names, self.used = scales.keys(), scales.values()
        self.lock = threading.Lock()
        self.steps = (step for step in range(3))
        self.many = {"lock": self.lock, "list": [1, torch.ones(2)], "pair": (self.lock, 2)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            return x * sum(self.used) / len(self.names)


def test_a_network_may_hold_what_cannot_be_copied() -> None:
    net = network(Keeper)
    result = bnprune.prune(net, X, ratio=0.5)
    assert result.report.max_relative_error < 1e-12
    before, after = net.keeper, result.model.keeper
    assert after.lock is before.lock
    assert after.steps is before.steps
    assert [*after.names] == ["a", "b"]
    assert [*map(id, after.used)] == [*map(id, after.scales.values())], "the copy's own parameters"
    assert after.many["list"][1] is not before.many["list"][1]
    assert after.many["pair"] == (before.lock, 2)
    assert next(before.steps) == 0, "nothing was taken from it"


def test_a_class_with_a_copy_of_its_own_names_what_it_cannot_copy() -> None:
    class Own(Keeper):
        def __getstate__(self) -> dict[str, Any]:
            return self.__dict__

    with pytest.raises(bnprune.PruningError, match=r"keeper keeps a .*'names'.*delete it before pruning"):
        bnprune.prune(network(Own), X, ratio=0.5)
