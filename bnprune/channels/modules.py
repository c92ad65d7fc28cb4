"""Handling the modules of somebody else's network: which one runs, its mode, and leaving everything as it was."""

from __future__ import annotations

import functools
import operator
import random
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CellType, CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn


def walk(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module once, by its first name, as `named_modules` does; several times as fast."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    stack = [("", model)]
    while stack:
        name, module = stack.pop()
        if id(module) not in seen:
            seen.add(id(module))
            found[name] = module
            prefix = f"{name}." if name else ""
            children = reversed(module._modules.items())
            stack += [(prefix + child_name, child) for child_name, child in children if child is not None]
    return found


def parameter_count(model: nn.Module) -> int:
    """Return the number of elements of all parameters."""
    held = {id(p): p for module in walk(model).values() for p in module._parameters.values() if p is not None}
    return sum(parameter.numel() for parameter in held.values())


def has_hooks(module: nn.Module) -> bool:
    """Tell whether a forward pass of the module runs more than its `forward`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


@contextmanager
def still(model: nn.Module, *, training: bool, norms: bool = True) -> Iterator[dict[str, nn.Module]]:
    """Set a model's mode, as `set_mode` does, and yield its modules; leave everything as it was.

    Undone is whatever the block does to the attributes of the modules (mode, buffers, caches in containers) and to
    random numbers. No gradients are computed. Other threads see the model in that mode, so let it be a copy (`twin`) if
    the model is somebody else's.
    """
    modules = walk(model)
    before = _containers(map(vars, modules.values()))
    try:
        _set_mode(modules.values(), training=training, norms=norms)
        with same_draws(), torch.no_grad():
            yield modules
    finally:
        _restore(before)


@contextmanager
def same_draws() -> Iterator[None]:
    """Restore the generators of the process (Python's, numpy's and torch's on the CPU) after the block.

    With several threads they stay as they are: what other threads draw meanwhile must not come again. What operators
    draw under an `OperatorMode` comes from generators of its own.
    """
    if threading.active_count() > 1:
        yield
        return
    python, array, tensor = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
        torch.set_rng_state(tensor)


def mode_matters(model: nn.Module) -> bool:
    """Tell whether code other than PyTorch's own layers asks for the mode, and so may do other things in train mode."""
    return _own_code_mentions(model, frozenset({"training"}))


def suppresses_boxes(model: nn.Module) -> bool:
    """Tell whether code of the model's classes calls a non-maximum suppression, which no tensor without values can."""
    return _own_code_mentions(model, frozenset({"nms", "batched_nms"}))


def _own_code_mentions(model: nn.Module, names: frozenset[str]) -> bool:
    modules = walk(model).values()
    held = [value for module in modules for value in vars(module).values() if isinstance(value, FunctionType)]
    classes: set[type] = {type(module) for module in modules}
    return any(_class_mentions(cls, names) for cls in classes) or any(_mentions(value, names) for value in held)


@functools.cache
def _class_mentions(cls: type, names: frozenset[str]) -> bool:
    own = (base for base in cls.__mro__ if not base.__module__.startswith(_LIBRARIES))
    return any(_mentions(value, names) for base in own for value in vars(base).values())


_LIBRARIES = ("builtins", "torch.nn.", "torchvision.ops.", "timm.layers.")
"""Packages of layers that do nothing else in train mode than draw masks and take statistics."""


def _mentions(function: Any, names: frozenset[str]) -> bool:
    """Look for one of the names in a function, in those it defines, and in those it closes over."""
    queue, seen = [function], set()
    while queue:
        code = queue.pop()
        if id(code) in seen:
            continue
        seen.add(id(code))
        if isinstance(code, CodeType):
            if not names.isdisjoint(code.co_names):
                return True
            queue += code.co_consts
        elif isinstance(code, FunctionType):
            queue += [code.__code__, *(cell.cell_contents for cell in code.__closure__ or () if _is_filled(cell))]
    return False


def _is_filled(cell: CellType) -> bool:
    return cell != CellType()


_Container = dict[Any, Any] | list[Any]
_HELD = (dict, list)


_HOOKS = {name for name, value in vars(nn.Module()).items() if "hook" in name}
"""Containers of every module that forward passes leave alone."""


def _containers(outer: Iterable[_Container]) -> list[tuple[_Container, tuple[Any, ...], tuple[Any, ...]]]:
    """Return nested builtin containers, each with its keys (none for a list) and values."""
    found: list[tuple[_Container, tuple[Any, ...], tuple[Any, ...]]] = []
    seen: set[int] = set()
    queue = list(outer)
    while queue:
        live = queue.pop()
        if id(live) in seen:
            continue
        seen.add(id(live))
        if isinstance(live, dict):
            found.append((live, tuple(live), tuple(live.values())))
            queue.extend([v for k, v in live.items() if isinstance(v, _HELD) and k not in _HOOKS])
        else:
            found.append((live, (), tuple(live)))
            queue.extend([v for v in live if isinstance(v, _HELD)])
    return found


def _restore(before: Iterable[tuple[_Container, tuple[Any, ...], tuple[Any, ...]]]) -> None:
    """Put everything back, also where one container will not have it."""
    failure: Exception | None = None
    for live, keys, values in before:
        try:
            _restore_one(live, keys, values)
        except Exception as error:  # noqa: BLE001 - it is raised below
            failure = error
    if failure is not None:
        raise failure


def _restore_one(live: _Container, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
    if isinstance(live, list):
        if len(live) != len(values) or not all(map(operator.is_, live, values)):
            live[:] = values
    elif len(live) != len(keys) or tuple(live) != keys or not all(map(operator.is_, live.values(), values)):
        live.clear()
        live.update(zip(keys, values, strict=True))


@contextmanager
def module_stack(modules: Mapping[str, nn.Module], astray: list[str] | None = None) -> Iterator[list[str]]:
    """Yield a list whose last element names the innermost module that is running, out of those of a model (`walk`).

    The modules have hooks meanwhile. Names of modules that run in another thread are added to `astray`.
    """
    stack, thread = [""], threading.get_ident()

    def enter(name: str, *_: Any) -> None:
        if threading.get_ident() == thread:
            stack.append(name)
        elif astray is not None:
            astray.append(name)

    def leave(*_: Any) -> None:
        if threading.get_ident() == thread:
            stack.pop()

    try:
        for name, module in modules.items():
            _hook(module._forward_pre_hooks, functools.partial(enter, name))
            _hook(module._forward_hooks, leave)
            module._forward_hooks_always_called[_HOOK] = True
        yield stack
    finally:
        for module in modules.values():
            for held in (module._forward_pre_hooks, module._forward_hooks, module._forward_hooks_always_called):
                held.pop(_HOOK, None)


_HOOK: Any = "bnprune"
"""Key of hooks that are put in place by hand: `register_forward_hook` takes longer than most modules to run."""


def _hook(hooks: Any, function: Any) -> None:
    """Add a hook before all others."""
    hooks[_HOOK] = function
    hooks.move_to_end(_HOOK, last=False)


def set_mode(model: nn.Module, *, training: bool, norms: bool = True) -> None:
    """Set train or eval mode without calling user code, which may refuse, freeze or print.

    Without `norms`, BatchNorms are in eval mode all the same: they refuse to train on single values per channel.
    """
    _set_mode(walk(model).values(), training=training, norms=norms)


def _set_mode(modules: Iterable[nn.Module], *, training: bool, norms: bool) -> None:
    for module in modules:
        module.training = training and (norms or not isinstance(module, nn.modules.batchnorm._BatchNorm))
