"""The dispatch mode that all others are made of: it sees the operators of one thread, and changes nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bnprune.channels.modules import same_draws
from bnprune.channels.pytrees import operands

Wrapped = TypeVar("Wrapped", bound=Callable[..., Any])


def contained(function: Wrapped) -> Wrapped:
    """Make a function run outside inference mode, and restore what it changes for its thread and in generators.

    Whatever the function enters it also leaves; this is for Ctrl-C that comes while it does.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        depth = torch._C._len_torch_dispatch_stack()
        try:
            with torch.inference_mode(False), same_draws():
                return function(*args, **kwargs)
        finally:
            while torch._C._len_torch_dispatch_stack() > depth:
                torch._C._pop_torch_dispatch_stack(None)

    return cast("Wrapped", call)


class OperatorMode(TorchDispatchMode):
    """Calls `see` for every operator that the calling thread runs.

    PyTorch's own class also sets flags of the whole process when it is entered and left, which threads leave wrong when
    they overlap (torch.compile then compiles nothing any more). The stack of modes itself belongs to the thread.
    """

    def __init__(self, seed: int = 0) -> None:
        """Take a seed for what the operators draw; see `Draws`."""
        super().__init__()
        self.draws = Draws(seed)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch._dynamo out: it is imported to be told that there is nothing to compile, which takes a second."""
        return False

    def __enter__(self) -> OperatorMode:
        torch._C._push_on_torch_dispatch_stack(self)
        return self

    def __exit__(self, *_: object) -> None:
        torch._C._pop_torch_dispatch_stack(None)

    def see(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the output of an operator call."""
        return self.draws.run(func, args, kwargs)

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() or _traits(func).composite:  # in inference mode, nothing is decomposed
            with torch.inference_mode(False), torch.no_grad(), self:
                return func.decompose(*args, **kwargs) if _traits(func).composite else func(*args, **kwargs)
        return self.see(func, args, kwargs)


class _Traits(NamedTuple):
    composite: bool
    """Whether PyTorch composes an operator of others, and gradients of theirs."""
    random: bool


def _traits(func: torch._ops.OpOverload) -> _Traits:
    known = _KNOWN.get(id(func))
    if known is None:
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
        known = _KNOWN[id(func)] = func, _Traits(composite, torch.Tag.nondeterministic_seeded in func.tags)
    return known[1]


_KNOWN: dict[int, tuple[torch._ops.OpOverload, _Traits]] = {}
"""What is known of operators, which are held, by `id`: their own hash is written in Python."""


class Draws:
    """Runs random operators with generators of its own, so that those of the process stay as they are."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self._given: dict[int, tuple[torch.Generator, torch.Generator]] = {}

    def run(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run any operator."""
        if not _traits(func).random:
            return func(*args, **kwargs)
        device = _device(args, kwargs)
        if device.type == "meta":  # nothing is drawn
            return func(*args, **kwargs)
        if func is _DROPOUT and args[2] is not False:
            return self._dropout(args[0], args[1])
        seeded = _with_generator(func)
        if seeded is None:
            return _restoring(device, func, args, kwargs)
        given = kwargs.get("generator")
        return seeded(*args, **{**kwargs, "generator": self._own(device) if given is None else self._like(given)})

    def _dropout(self, x: torch.Tensor, p: float) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p, generator=self._own(x.device))
        return x * mask * (1 / (1 - p) if p < 1 else 0), mask

    def _own(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

    def _like(self, given: torch.Generator) -> torch.Generator:
        """Return a copy of a generator that the network holds, the same one every time."""
        if id(given) not in self._given:
            self._given[id(given)] = given, given.clone_state()
        return self._given[id(given)][1]


_DROPOUT = torch.ops.aten.native_dropout.default


def _restoring(device: torch.device, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator that takes no generator: recurrent layers and attention of accelerators, which know dropout."""
    if device.type == "cpu":  # on which they do not draw
        return func(*args, **kwargs)
    module = torch.get_device_module(device)
    state = module.get_rng_state(device)
    try:
        return func(*args, **kwargs)
    finally:
        module.set_rng_state(state, device)


def _device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    entering = operands(args, {})
    device = kwargs.get("device")
    return torch.device(device) if device is not None else entering[0].device if entering else torch.device("cpu")


@functools.cache
def _with_generator(func: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """Return the overload of a random operator that takes a generator and otherwise the same; None if there is none."""
    wanted = {*(argument.name for argument in func._schema.arguments), "generator"}
    packet = func._overloadpacket
    for name in (func._overloadname, *packet.overloads()):
        overload: torch._ops.OpOverload = getattr(packet, name)
        arguments = overload._schema.arguments
        if {argument.name for argument in arguments} == wanted and _same_types(func, overload):
            return overload
    return None


def _same_types(func: torch._ops.OpOverload, other: torch._ops.OpOverload) -> bool:
    types = {argument.name: str(argument.type) for argument in other._schema.arguments}
    return all(types[argument.name] == str(argument.type) for argument in func._schema.arguments)
