"""State outside of a network that its forward code reaches: caches of functions, variables of modules and classes.

A forward pass on the meta device or in float64 must not leave tensors in it, and must not read those of another pass::

    @functools.lru_cache
    def positions(n): ...              cleared before and after the pass: its tensors are computed again on demand

    _GRIDS = {}                        gets its contents back
    class Anchors(nn.Module):
        _cached = None                 gets its value back
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

Cache: Any = type(functools.lru_cache(int))
"""Type of the functions that `functools.lru_cache` and `functools.cache` return."""

_LIBRARIES = frozenset({"torch", "numpy", "bnprune", *sys.stdlib_module_names})
"""Packages whose code keeps no state that a network's forward pass could change, or restores it itself."""

_MISSING = object()
_ATOMS = frozenset({bool, int, float, str, type(None)})
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes of every module, which hold no caches."""


@dataclass(frozen=True, slots=True)
class _Variable:
    """A global variable, or one of a class."""

    owner: dict[str, Any] | type
    name: str

    def get(self) -> Any:
        return (self.owner if isinstance(self.owner, dict) else vars(self.owner)).get(self.name, _MISSING)

    def set(self, value: Any) -> None:
        if isinstance(self.owner, dict):
            self.owner[self.name] = value
        else:
            setattr(self.owner, self.name, value)

    def __hash__(self) -> int:
        return hash((id(self.owner), self.name))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Variable) and self.owner is other.owner and self.name == other.name


class OutsideState:
    """The caches and variables that the forward code of some modules reaches, with their present values.

    Other threads that run the same code meanwhile may see a cache emptied, or lose an entry they add to a dictionary.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        reached: set[Any] = set()
        modules = list(modules)
        classes: set[Any] = {type(module) for module in modules}
        for cls in classes:
            reached |= _reached_by_class(cls)
        for module in modules:
            for name, value in vars(module).items():
                if type(value) in _ATOMS or name in _OF_EVERY_MODULE:
                    continue
                if isinstance(value, FunctionType):
                    reached |= _reached([value], type(module))
                reached.update(_caches_in(value))
        self._caches = [item for item in reached if isinstance(item, Cache)]
        variables = ((item, item.get()) for item in reached if isinstance(item, _Variable))
        self._before = [(variable, value) for variable, value in variables if value is not _MISSING]

    def clear_caches(self) -> None:
        """Empty all caches of functions."""
        for cache in self._caches:
            cache.cache_clear()

    @property
    def containers(self) -> list[dict[Any, Any] | list[Any]]:
        """Dictionaries and lists among the variables."""
        return [value for _, value in self._before if isinstance(value, dict | list)]

    def restore(self) -> None:
        """Give all variables their values back (but not to numbers, such as counters), and empty the caches."""
        self.clear_caches()
        for variable, value in self._before:
            now = variable.get()
            if now is not value and not (type(now) in _ATOMS and type(value) in _ATOMS):
                variable.set(value)


def _caches_in(value: Any) -> Iterator[Any]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
    return (item for item in items if isinstance(item, Cache))


@functools.cache
def _reached_by_class(cls: type) -> frozenset[Any]:
    return _reached([inspect.getattr_static(cls, "forward", None)], cls)


def _reached(start: Sequence[Any], cls: type) -> frozenset[Any]:
    """Return the caches and variables that functions reach, as methods of a class, through the names they mention."""
    queue: list[Any] = list(start)
    seen: set[int] = set()
    reached: set[Any] = set()
    while queue:
        value = _function_of(queue.pop())
        if id(value) in seen or _is_library(getattr(value, "__module__", None)):
            continue
        seen.add(id(value))
        if isinstance(value, Cache):
            reached.add(value)
            queue.append(value.__wrapped__)
        elif isinstance(value, FunctionType):
            queue += [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
            queue.append(getattr(value, "__wrapped__", None))
            for variable in _mentioned(value, cls):
                named = variable.get()
                if isinstance(_function_of(named), FunctionType | Cache):
                    queue.append(named)
                elif not isinstance(named, ModuleType | type):
                    reached.add(variable)
    return frozenset(reached)


def _function_of(value: Any) -> Any:
    """Return the function that a method or a property wraps."""
    if isinstance(value, staticmethod | classmethod | MethodType):
        return value.__func__
    if isinstance(value, property):
        return value.fget
    return value.func if isinstance(value, functools.partial | functools.cached_property) else value


def _mentioned(function: FunctionType, cls: type) -> Iterator[_Variable]:
    """Yield the global variables and the attributes of classes that the names in a function stand for."""
    names = sorted(_names_in(function.__code__))
    owners: list[dict[str, Any] | type] = [function.__globals__, *cls.__mro__]
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType) and not _is_library(value.__name__):
            owners.append(vars(value))
        elif isinstance(value, type):
            owners += value.__mro__
    for owner in owners:
        if isinstance(owner, dict) or not _is_library(owner.__module__):
            namespace: Mapping[str, Any] = owner if isinstance(owner, dict) else vars(owner)
            yield from (_Variable(owner, name) for name in names if name in namespace)


def _names_in(code: CodeType) -> set[str]:
    nested = (_names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*nested)


def _is_library(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in _LIBRARIES
