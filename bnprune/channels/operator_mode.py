"""OperatorMode: the base of all dispatch modes here; it runs every operator of one thread, and changes nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch

from bnprune.channels.modules import preserve_rng_state
from bnprune.channels.pytrees import operands
from bnprune.channels.torch_internals import (
    OpOverload,
    TorchDispatchMode,
    argument_types,
    is_composite,
    mode_depth,
    overloads_of,
    pop_mode,
    push_mode,
)

Wrapped = TypeVar("Wrapped", bound=Callable[..., Any])


def preserve_thread_state(function: Wrapped) -> Wrapped:
    """Decorate a function: it runs outside inference mode, and restores the dispatch modes and random generators.

    Every `with` in the function already restores what it changes. But Ctrl-C may come between entering a mode and the
    `try` that leaves it, and would then leave the mode on the thread's stack for good.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        depth = mode_depth()
        try:
            with torch.inference_mode(False), preserve_rng_state():
                return function(*args, **kwargs)
        finally:
            while mode_depth() > depth:
                pop_mode()

    return cast("Wrapped", call)


class OperatorMode(TorchDispatchMode):
    """Calls `run_operator` for every operator that the calling thread runs.

    Operators that PyTorch composes of others arrive as those others, in inference mode, too.
    """

    def __init__(self, seed: int = 0) -> None:
        """Take a seed for random operators; see `OwnGenerators`."""
        super().__init__()
        self.generators = OwnGenerators(seed)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Avoid the import of torch._dynamo, which takes a second, only to find that nothing is to be compiled."""
        return False

    def __enter__(self) -> OperatorMode:
        push_mode(self)
        return self

    def __exit__(self, *_: object) -> None:
        pop_mode()

    def run_operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the output of an operator call."""
        return self.generators.run(func, args, kwargs)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        is_composite = _traits(func).is_composite
        if torch.is_inference_mode_enabled() or is_composite:  # inference mode decomposes nothing by itself
            with torch.inference_mode(False), torch.no_grad(), self:
                return func.decompose(*args, **kwargs) if is_composite else func(*args, **kwargs)
        return self.run_operator(func, args, kwargs)


class _Traits(NamedTuple):
    is_composite: bool
    is_random: bool


@functools.cache
def _traits(func: OpOverload) -> _Traits:
    return _Traits(is_composite(func), torch.Tag.nondeterministic_seeded in func.tags)


class OwnGenerators:
    """Runs random operators with generators of its own, so that those of the process stay as they are."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._by_device: dict[torch.device, torch.Generator] = {}
        self._copies: dict[int, tuple[torch.Generator, torch.Generator]] = {}
        """Generator of the network, and our copy of it, by the `id` of the first."""

    def run(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run any operator."""
        if not _traits(func).is_random:
            return func(*args, **kwargs)
        device = _device(args, kwargs)
        if device.type == "meta":  # there are no values to draw
            return func(*args, **kwargs)
        if func is _DROPOUT and args[2] is not False:
            return self._dropout(args[0], args[1])
        seeded = _with_generator(func)
        if seeded is None:
            return _run_and_restore_rng(device, func, args, kwargs)
        own = kwargs.get("generator")
        generator = self._of_device(device) if own is None else self._copy_of(own)
        return seeded(*args, **{**kwargs, "generator": generator})

    def _dropout(self, x: torch.Tensor, p: float) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p, generator=self._of_device(x.device))
        return x * mask * (1 / (1 - p) if p < 1 else 0), mask

    def _of_device(self, device: torch.device) -> torch.Generator:
        if device not in self._by_device:
            self._by_device[device] = torch.Generator(device).manual_seed(self._seed)
        return self._by_device[device]

    def _copy_of(self, generator: torch.Generator) -> torch.Generator:
        """Return a copy of a generator that the network holds, the same one every time."""
        if id(generator) not in self._copies:
            self._copies[id(generator)] = generator, generator.clone_state()
        return self._copies[id(generator)][1]


_DROPOUT = torch.ops.aten.native_dropout.default  # random, and has no overload that takes a generator


def _run_and_restore_rng(device: torch.device, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator that takes no generator: fused recurrent layers and attention on accelerators, with dropout."""
    if device.type == "cpu":  # on the CPU, these draw nothing
        return func(*args, **kwargs)
    module = torch.get_device_module(device)
    state = module.get_rng_state(device)
    try:
        return func(*args, **kwargs)
    finally:
        module.set_rng_state(state, device)


def _device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    inputs = operands(args, {})
    device = kwargs.get("device")
    return torch.device(device) if device is not None else inputs[0].device if inputs else torch.device("cpu")


@functools.cache
def _with_generator(func: OpOverload) -> OpOverload | None:
    """Return the overload with the same arguments and a generator; None if there is none.

    "aten::rand" has "aten::rand.generator"; "aten::bernoulli_.float" takes a generator itself.
    """
    arguments = argument_types(func)
    for overload in overloads_of(func):
        types = argument_types(overload)
        if types.keys() == {*arguments, "generator"} and types.items() >= arguments.items():
            return overload
    return None
