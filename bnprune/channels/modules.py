"""Modules of the user's network: their names and mode, which of them is running, and restoring what a pass changes."""

from __future__ import annotations

import functools
import operator
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import CellType, CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from bnprune.channels.outside_state import OutsideState
from bnprune.channels.torch_internals import BatchNorm, children_of, forward_hooks


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module once, by its first name."""
    return dict(model.named_modules())


def parameter_count(model: nn.Module) -> int:
    """Return the number of elements of all parameters; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def has_hooks(module: nn.Module) -> bool:
    """True if a forward pass of the module runs more than its `forward`."""
    return bool(forward_hooks(module))


@contextmanager
def temporary_mode(model: nn.Module, *, training: bool, norms: bool = True) -> Iterator[dict[str, nn.Module]]:
    """Set a model's mode for the duration of a `with` block, and yield its modules by name.

    Afterwards, everything has its former value: the attributes of the modules (mode, buffers, caches in containers),
    the variables outside of them that their code reaches (`outside_state`), and the state of the random generators of
    the process. No gradients are computed. Other threads see the model in that mode, so use a copy
    (`copy_with_tensors`) of a model that belongs to the user.

    Args:
        model: Any network.
        training: True for train mode.
        norms: If False, BatchNorms stay in eval mode; see `set_mode`.
    """
    modules = modules_by_name(model)
    outside = OutsideState(modules.values())
    before = _containers([*map(vars, modules.values()), *outside.containers])
    try:
        outside.clear_caches()
        _set_mode(modules.values(), training=training, norms=norms)
        with preserve_rng_state(), torch.no_grad():
            yield modules
    finally:
        outside.restore()
        _restore(before)


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restore the generators of the process (Python's, NumPy's and torch's on the CPU) after the block.

    If there are several threads, nothing is restored: the numbers that other threads draw meanwhile must not be drawn
    again.
    Operators under an `OperatorMode` use generators of its own.
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


def reads_training_flag(model: nn.Module) -> bool:
    """True if code other than PyTorch's own layers reads `training`, and so may run other operators in train mode."""
    return _own_code_mentions(model, frozenset({"training"}))


def uses_nms(model: nn.Module) -> bool:
    """True if code of the model's classes calls non-maximum suppression, which does not run on the meta device."""
    return _own_code_mentions(model, frozenset({"nms", "batched_nms"}))


def _own_code_mentions(model: nn.Module, names: frozenset[str]) -> bool:
    modules = modules_by_name(model).values()
    functions = [value for module in modules for value in vars(module).values() if isinstance(value, FunctionType)]
    classes: set[type] = {type(module) for module in modules}
    return any(_class_mentions(cls, names) for cls in classes) or any(_mentions(value, names) for value in functions)


@functools.cache
def _class_mentions(cls: type, names: frozenset[str]) -> bool:
    own = (base for base in cls.__mro__ if not base.__module__.startswith(_LIBRARIES))
    return any(_mentions(value, names) for base in own for value in vars(base).values())


_LIBRARIES = ("builtins", "torch.nn.", "torchvision.ops.", "timm.layers.")
"""Packages whose layers only draw masks and update statistics in train mode."""


def _mentions(function: Any, names: frozenset[str]) -> bool:
    """True if the code of a function, of functions in it or in its closure mentions one of the names."""
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
_CONTAINERS = (dict, list)
_Saved = tuple[_Container, tuple[Any, ...], tuple[Any, ...]]
"""A container, its keys (none for a list) and its values."""


_HOOKS = {name for name, value in vars(nn.Module()).items() if "hook" in name}
"""Attributes of every module for its hooks, which forward passes do not change."""


def _containers(outer: Iterable[_Container]) -> list[_Saved]:
    """Return containers and all containers inside them, with a copy of their present contents."""
    saved: list[_Saved] = []
    seen: set[int] = set()
    queue = list(outer)
    while queue:
        container = queue.pop()
        if id(container) in seen:
            continue
        seen.add(id(container))
        if isinstance(container, dict):
            saved.append((container, tuple(container), tuple(container.values())))
            queue.extend([v for k, v in container.items() if isinstance(v, _CONTAINERS) and k not in _HOOKS])
        else:
            saved.append((container, (), tuple(container)))
            queue.extend([v for v in container if isinstance(v, _CONTAINERS)])
    return saved


def _restore(before: Iterable[_Saved]) -> None:
    """Restore all containers, even if one of them raises."""
    failure: Exception | None = None
    for container, keys, values in before:
        try:
            _restore_one(container, keys, values)
        except Exception as error:  # noqa: BLE001 - it is raised below
            failure = error
    if failure is not None:
        raise failure


def _restore_one(container: _Container, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
    if isinstance(container, list):
        if len(container) != len(values) or not all(map(operator.is_, container, values)):
            container[:] = values
    elif (
        len(container) != len(keys)
        or tuple(container) != keys
        or not all(map(operator.is_, container.values(), values))
    ):
        container.clear()
        container.update(zip(keys, values, strict=True))


def unwrapped(model: Any) -> Any:
    """Return the network inside DistributedDataParallel, DataParallel, AveragedModel and torch.compile."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            model = model.module
        elif isinstance(model, nn.Module) and isinstance(vars(model).get("_modules", {}).get("_orig_mod"), nn.Module):
            model = model._orig_mod  # torch.compile
        else:
            return model


@contextmanager
def module_stack(modules: Mapping[str, nn.Module], in_other_threads: list[str] | None = None) -> Iterator[list[str]]:
    """Yield a list whose last element names the innermost module that is running.

    Layers of PyTorch get another `forward` for the time being: with hooks, calling a module takes 20 µs longer.
    All other modules get two hooks each. Two hooks for all modules of the process would be simpler, but they would run
    in the models of other threads as well.

    Args:
        modules: Modules of a model, by name. They have hooks during the `with` block.
        in_other_threads: A list to which the names of modules that run in another thread are added.
    """
    stack, thread = [""], threading.get_ident()

    def enter(name: str, *_: Any) -> None:
        if threading.get_ident() == thread:
            stack.append(name)
        elif in_other_threads is not None:
            in_other_threads.append(name)

    def leave(*_: Any) -> None:
        if threading.get_ident() == thread:
            stack.pop()

    def run(name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        enter(name)
        try:
            return forward(*args, **kwargs)
        finally:
            leave()

    with ExitStack() as undo:
        for name, module in modules.items():
            if _is_plain_layer(module):
                undo.callback(vars(module).pop, "forward")
                vars(module)["forward"] = functools.partial(run, name, module.forward)
            else:
                undo.callback(module.register_forward_pre_hook(functools.partial(enter, name), prepend=True).remove)
                undo.callback(module.register_forward_hook(leave, prepend=True, always_call=True).remove)
        yield stack


def _is_plain_layer(module: nn.Module) -> bool:
    """True for a layer of PyTorch without children and hooks.

    Layers with children may look for hooks: a transformer layer runs one fused operator if there are none.
    """
    is_layer = type(module).__module__.startswith("torch.nn.modules.") and "forward" not in vars(module)
    return is_layer and not has_hooks(module) and not children_of(module)


def set_mode(model: nn.Module, *, training: bool, norms: bool = True) -> None:
    """Set train or eval mode without calling user code, which may raise, freeze parameters or print.

    If `norms` is False, BatchNorms stay in eval mode: in train mode, they raise an error if there is one value per
    channel, as after global pooling of a batch of one.
    """
    _set_mode(modules_by_name(model).values(), training=training, norms=norms)


def _set_mode(modules: Iterable[nn.Module], *, training: bool, norms: bool) -> None:
    for module in modules:
        module.training = training and (norms or not isinstance(module, BatchNorm))
