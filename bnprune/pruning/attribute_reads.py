"""Reads of module attributes: those of one forward pass, and those of any code that runs after construction."""

from __future__ import annotations

import dis
import functools
import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType, FunctionType
from typing import Any

from torch import nn

Attribute = tuple[type, str]
"""A class and the name of an attribute of its objects."""


@contextmanager
def recorded_reads(attributes: Collection[Attribute]) -> Iterator[set[Attribute]]:
    """Yield a set that receives those of the attributes that this thread reads in a `with` block.

    For the duration of the block, the classes have a descriptor of that name. It returns what the object holds, so
    code behaves as before, in other threads too. One thread at a time can record.

    Args:
        attributes: Attributes that objects hold and that the class itself does not define: see `is_recordable`.
    """
    reads: set[Attribute] = set()
    with _RECORDING, ExitStack() as undo:
        for cls, name in attributes:
            setattr(cls, name, _Recorder((cls, name), reads))
            undo.callback(delattr, cls, name)
        yield reads


_RECORDING = threading.RLock()


def is_recordable(attribute: Attribute) -> bool:
    """True if the class itself does not define the name, for example with a default or a property."""
    cls, name = attribute
    return not hasattr(cls, name)


class _Recorder:
    """A descriptor of an attribute that is stored in the object's `__dict__`."""

    def __init__(self, attribute: Attribute, reads: set[Attribute]) -> None:
        self.attribute = attribute
        self._reads = reads
        self._thread = threading.get_ident()

    def __get__(self, module: nn.Module | None, _: type) -> Any:
        name = self.attribute[1]
        if module is None or name not in vars(module):
            raise AttributeError(name)  # Python then calls `Module.__getattr__`, which finds parameters and children
        if threading.get_ident() == self._thread:
            self._reads.add(self.attribute)
        return vars(module)[name]

    def __set__(self, module: nn.Module, value: Any) -> None:
        vars(module)[self.attribute[1]] = value

    def __delete__(self, module: nn.Module) -> None:
        del vars(module)[self.attribute[1]]


def read_after_construction(attribute: Attribute) -> bool:
    """Return True if a method of the class reads an attribute, other than those for construction and printing."""
    return attribute[1] in _names_read(attribute[0])


def set_in_forward(attribute: Attribute) -> bool:
    """Return True if `forward`, or a method that it calls, sets an attribute, as it does with a counter."""
    return attribute[1] in _names_set(attribute[0])


@functools.cache
def _names_read(cls: type) -> frozenset[str]:
    methods = _methods(cls)
    return _names(methods, methods.keys() - _only_for_construction(methods), "LOAD_ATTR")


@functools.cache
def _names_set(cls: type) -> frozenset[str]:
    methods, reached, calls = _methods(cls), set[str](), {"forward"}
    while not calls <= reached:
        reached |= calls
        calls = set(_names(methods, reached & methods.keys(), "LOAD_ATTR"))
    return _names(methods, reached & methods.keys(), "STORE_ATTR")


_Methods = dict[str, list[CodeType]]


def _methods(cls: type) -> _Methods:
    """Return the code of all methods and properties of a class, of inherited ones too, without PyTorch's own."""
    methods: _Methods = {}
    for base in cls.__mro__:
        if not base.__module__.startswith(("builtins", "torch.nn.")):
            for name, value in vars(base).items():
                parts = (value, *(getattr(value, part, None) for part in ("__func__", "__wrapped__", "fget")))
                methods.setdefault(name, []).extend(part.__code__ for part in parts if isinstance(part, FunctionType))
    return methods


_CONSTRUCTION = frozenset({"__init__", "__repr__", "__str__", "extra_repr"})


def _only_for_construction(methods: _Methods) -> set[str]:
    """Return the methods for construction and printing, with the methods that only these call (`_make_layer`)."""
    construction = set(_CONSTRUCTION & methods.keys())
    while True:
        others = methods.keys() - construction
        called_by_others = set[str]().union(*(_names(methods, {name}, "LOAD_ATTR") - {name} for name in others))
        further = (_names(methods, construction, "LOAD_ATTR") & others) - called_by_others - {"forward"}
        if not further:
            return construction
        construction |= further


def _names(methods: _Methods, of: Collection[str], instruction: str) -> frozenset[str]:
    """Return the names of attributes, of any object, that some of the methods read or set."""
    return frozenset(name for method in of for code in methods[method] for name in _names_in(code, instruction))


def _names_in(code: CodeType, instruction: str) -> Iterator[str]:
    """Yield the names in attribute instructions of a function, and of the functions inside it."""
    for step in dis.get_instructions(code):
        kind = "LOAD_ATTR" if step.opname == "LOAD_METHOD" else step.opname
        if kind == instruction and isinstance(step.argval, str):
            yield step.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names_in(inner, instruction)
