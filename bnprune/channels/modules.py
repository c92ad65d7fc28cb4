"""Handling the modules of somebody else's network: which one runs, its mode, and leaving everything as it was."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Undo everything the block does to the attributes of the model's modules (mode, buffers, caches in containers)."""
    before = [*_containers([vars(module) for module in model.modules()])]
    try:
        yield
    finally:
        for live, keys, values in before:
            _restore(live, keys, values)


_Container = dict[Any, Any] | list[Any]


def _containers(queue: list[_Container]) -> Iterator[tuple[_Container, tuple[Any, ...], tuple[Any, ...]]]:
    """Yield nested builtin containers, each with its keys (none for a list) and values."""
    seen: set[int] = set()
    while queue:
        live = queue.pop()
        if id(live) in seen:
            continue
        seen.add(id(live))
        keys, values = (tuple(live), tuple(live.values())) if isinstance(live, dict) else ((), tuple(live))
        queue += [value for value in values if isinstance(value, dict | list)]
        yield live, keys, values


def _restore(live: _Container, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
    if isinstance(live, list):
        live[:] = values
    elif len(live) != len(keys) or tuple(live) != keys or not all(map(operator.is_, live.values(), values)):
        live.clear()
        live.update(zip(keys, values, strict=True))


@contextmanager
def module_stack(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list whose last element names the innermost module that is running."""
    names = {id(module): name for name, module in model.named_modules()}
    stack = [""]

    def enter(module: nn.Module, _: Any) -> None:
        stack.append(names.get(id(module), stack[-1]))

    def leave(*_: Any) -> None:
        stack.pop()

    with ExitStack() as hooks:
        hooks.callback(register_module_forward_pre_hook(enter).remove)
        hooks.callback(register_module_forward_hook(leave, always_call=True).remove)
        yield stack


def set_mode(model: nn.Module, *, training: bool) -> None:
    """Set train or eval mode without calling user code, which may refuse, freeze or print."""
    for module in model.modules():
        module.training = training
