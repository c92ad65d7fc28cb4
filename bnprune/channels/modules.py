"""Handling the modules of somebody else's network: which one runs, its mode, and leaving everything as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Undo everything the block does to the attributes of the model's modules (mode, buffers, caches in containers)."""
    before = [(vars(module), _snapshot(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for live, saved in before:
            _restore(live, saved)


def _snapshot(container: Any) -> Any:
    """Copy nested builtin containers, remembering each live one beside its contents."""
    if isinstance(container, dict):
        return [(key, value, _snapshot(value)) for key, value in container.items()]
    if isinstance(container, list):
        return [(None, value, _snapshot(value)) for value in container]
    return None


def _restore(live: Any, saved: Any) -> None:
    for _, value, inner in saved:
        if inner is not None:
            _restore(value, inner)
    if isinstance(live, dict):
        if len(live) != len(saved) or any(live.get(key) is not value for key, value, _ in saved):
            live.clear()
            live.update((key, value) for key, value, _ in saved)
    else:
        live[:] = [value for _, value, _ in saved]


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
