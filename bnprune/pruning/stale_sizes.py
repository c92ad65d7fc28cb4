"""Stale sizes: attributes that equal a width before the cut, and that the traced forward pass does not read.

Other code may read them later: another `forward` that an exporter substitutes, a branch that runs in training only.

    class C2f(nn.Module):
        self.c = 16                                    # after a cut of 32 channels to 12, it has to be 6
        forward:        a, b = x.chunk(2, 1)           # traced; does not read self.c
        forward_split:  a, b = x.split((self.c, self.c), 1)

No dry run can tell such an attribute from a number that equals a width by chance. So all modules of a class are
compared. A *place* is a dimension of a tensor, named relative to the module: "dimension 1 of the second output of the
first split". An attribute is taken for the size of a place if it equals that size in every module of the class.

- Several modules with different values: no coincidence. The attribute is set to the new width.
- One value only: it is set if some method reads it, and a note lists it.
- If a place of the same size keeps its width, or two such places shrink differently, it is left as it is. A note lists
  it if some method reads it.

An attribute that the traced pass reads is left as it is, since the slim network runs with that value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import NamedTuple

import numpy as np
from torch import nn

from bnprune.channels.graph import ChannelGraph, Record
from bnprune.channels.labels import Label, lines
from bnprune.channels.modules import modules_by_name
from bnprune.channels.op_context import Count
from bnprune.channels.union_find import Ids
from bnprune.notes import Note
from bnprune.pruning.attribute_reads import (
    Attribute,
    is_recordable,
    read_after_construction,
    set_in_forward,
)
from bnprune.pruning.candidates import Mask


@dataclass(frozen=True, slots=True)
class StaleSize:
    """An attribute of a class that seems to hold a width."""

    attribute: Attribute
    name: str
    """Of the attribute; "sizes[2]" for an element of a list or tuple."""
    counts: tuple[Count, ...]
    """Modules in which there is one possible new value."""
    undecided: tuple[str, ...]
    """Names of modules in which there are several."""
    coincidence: bool
    """True if the attribute has the same value in all modules, so that it may equal the width by chance."""


def find_stale_sizes(
    model: nn.Module,
    graph: ChannelGraph,
    removed: Mask,
    inputs: Sequence[tuple[int, ...]],
    known: Collection[tuple[str, str]],
    reads: Collection[Attribute],
) -> list[StaleSize]:
    """Return attributes that would be wrong after a cut if they hold widths.

    Args:
        model: The network.
        graph: The trace.
        removed: True for units to remove, shape (units,).
        inputs: Shapes of the inputs of the trace.
        known: (module, attribute) of attributes that surgery changes already.
        reads: Those of `possible_sizes` that the traced passes have read.
    """
    places = _Places(model, graph, removed, inputs)
    stale: list[StaleSize] = []
    for attribute, values_by_element in _groups(places, known, reads).items():
        used = read_after_construction(attribute)
        if used or any(len({*values.values()}) > 1 for values in values_by_element.values()):
            stale += _stale_elements(places, attribute, values_by_element, used=used)
    return stale


def stale_size_notes(stale: Sequence[StaleSize]) -> Iterator[Note]:
    """Yield the remarks about attributes that may be wrong after the cut."""
    updated = [size for size in stale if size.counts and size.coincidence]
    if updated:
        text = (
            "these attributes equal a width and were set to its new value, although the forward pass did not read them"
        )
        yield Note("sizes.updated", "note", f"{text}: {_listed(updated)}. Set them back if they mean something else")
    undecided = [size for size in stale if size.undecided]
    if undecided:
        text = "these attributes equal a width that shrank, but may mean something else, and were not changed"
        advice = "The forward pass did not read them; check them before you run other code of these modules"
        yield Note("sizes.undecided", "note", f"{text}: {_listed(undecided)}. {advice}")


def _listed(sizes: Iterable[StaleSize]) -> str:
    attributes = {size.attribute for size in sizes}  # once for all elements of a list
    return ", ".join(sorted(f"{cls.__name__}.{name}" for cls, name in attributes))


def possible_sizes(model: nn.Module) -> frozenset[Attribute]:
    """Return the attributes that may hold widths, and whose reads can be recorded."""
    attributes = ((type(module), name) for module in _user_modules(model).values() for name, _ in _numbers(module))
    return frozenset(key for key in attributes if is_recordable(key) and not set_in_forward(key))


def _user_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules by name, without PyTorch's own, whose attributes surgery knows."""
    return {n: m for n, m in modules_by_name(model).items() if not type(m).__module__.startswith("torch.nn.")}


def _groups(
    places: _Places, known: Collection[tuple[str, str]], reads: Collection[Attribute]
) -> dict[Attribute, dict[str, dict[str, float]]]:
    """Return the numbers in the attributes of each class: by attribute, by element of it ("sizes[2]"), by module."""
    groups: dict[Attribute, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    possible = possible_sizes(places.model) - frozenset(reads)
    for name, module in _user_modules(places.model).items():
        for attribute, elements in _numbers(module) if name in places.ran else ():
            for element, value in elements.items():
                if (type(module), attribute) in possible and (name, element) not in known:
                    groups[type(module), attribute][element][name] = value
    return groups


def _numbers(module: nn.Module) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the attributes of a module that may be widths, or lists of widths."""
    for name, value in vars(module).items():
        items = (
            {f"{name}[{i}]": item for i, item in enumerate(value)} if isinstance(value, list | tuple) else {name: value}
        )
        if not name.startswith("_") and items and all(map(_may_be_width, items.values())):
            yield name, items


def _may_be_width(value: object) -> bool:
    return isinstance(value, int | float) and value > 1 and float(value).is_integer()  # `True > 1` is false


def _stale_elements(
    places: _Places, attribute: Attribute, values_by_element: Mapping[str, Mapping[str, float]], *, used: bool
) -> list[StaleSize]:
    """Return what is known about the elements of an attribute; a list is one of widths if all of its elements are."""
    elements = []
    for element, values in values_by_element.items():
        equal = _common_places(places, values)
        if not any(equal.values()):
            return []
        elements.append(_stale_element(attribute, element, values, equal, used=used))
    if any(size.undecided for size in elements):
        elements = [
            replace(size, counts=(), undecided=size.undecided or tuple(values_by_element[size.name]))
            for size in elements
        ]
    return [size for size in elements if size.counts or size.undecided]


def _common_places(places: _Places, values: Mapping[str, float]) -> dict[str, list[_Width]]:
    """Return the dimensions that equal an attribute in every module, up to the nearest one that shrinks in a module."""
    common: dict[str, list[_Width]] = {module: [] for module in values}
    for distance in range(_FAR if len({*values.values()}) > 1 else _NEAR):
        equal = {module: places.equal(module, distance, value) for module, value in values.items()}
        for key in set[_Key].intersection(*map(set, equal.values())):
            for module, widths in equal.items():
                common[module].append(widths[key])
        if any(width.before != width.after for widths in common.values() for width in widths):
            break
    return common


def _stale_element(
    attribute: Attribute, name: str, values: Mapping[str, float], equal: Mapping[str, list[_Width]], *, used: bool
) -> StaleSize:
    """Return the new values of an attribute, as far as the dimensions that equal it agree."""
    coincidence = len({*values.values()}) < 2
    counts, undecided = [], []
    for module, value in values.items() if used or not coincidence else ():
        after = {width.after for width in equal[module]}
        if len(after) == 1 and isinstance(value, int):
            counts += [Count(module, name, w.ids) for w in equal[module][:1] if w.ids is not None and w.after != value]
        elif after != {value} and used:
            undecided.append(module)
    return StaleSize(attribute, name, tuple(counts), tuple(undecided), coincidence)


_NEAR, _FAR = 3, 4
"""Numbers of distances that are searched: for an attribute with one value only, and for others. See `_Places.equal`."""

_Key = tuple[str | int, ...]


class _Width(NamedTuple):
    """The size of a dimension."""

    before: int
    after: int
    ids: Ids | None
    """Channel ids along it; None if it has none."""


class _Places:
    """The dimensions of all tensors of a network, by module."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, removed: Mask, inputs: Sequence[tuple[int, ...]]) -> None:
        self.model = model
        self.modules = modules_by_name(model)
        self._graph = graph
        self._inputs = inputs
        self._stays = ~removed[graph.unit_of]  # by channel id
        self._dims_of: dict[int, list[tuple[int, _Width]]] = {}

    @cached_property
    def ran(self) -> set[str]:
        """Names of the modules that ran, with their parents."""
        names: set[str] = set()
        for site in self._records:
            while site not in names:
                names.add(site)
                site = site.rpartition(".")[0]
        return names

    def equal(self, module: str, distance: int, size: float) -> dict[_Key, _Width]:
        """Return the dimensions of a size, at a distance from a module.

        0: operators of the module that take sizes as arguments: split, slice, view; 1: its other operators and its
        tensors; 2: its children (the elements of a container instead of the container); 3: their children.
        """
        return dict(self._at(module, distance, size))

    def _at(self, module: str, distance: int, size: float) -> Iterator[tuple[_Key, _Width]]:
        if distance == 0:
            yield from self._of_operators(module, size, sizing=True)
        elif distance == 1:
            yield from self._of_operators(module, size, sizing=False)
            yield from self._of_tensors(module, size)
            for index, shape in enumerate(self._inputs):
                yield from ((("input", index, dim), _Width(n, n, None)) for dim, n in enumerate(shape) if n == size)
        else:
            for child in self._children(module):
                relative = child[len(module) :].lstrip(".")
                for nearer in (0, 1) if distance == 2 else (distance - 1,):
                    yield from (((relative, *place), width) for place, width in self._at(child, nearer, size))

    def _children(self, module: str) -> Iterator[str]:
        for name, child in self.modules[module].named_children():
            path = f"{module}.{name}".lstrip(".")
            if path in self.modules:  # else it is one module under two names
                yield from self._children(path) if isinstance(child, _CONTAINERS) else (path,)

    @cached_property
    def _records(self) -> dict[str, list[tuple[_Key, Record]]]:
        """Operator calls by module, each with a name that the same call has in another module of the class."""
        calls: dict[str, list[tuple[_Key, Record]]] = defaultdict(list)
        for mode, traced in self._graph.traces.items():
            numbers: dict[tuple[str, str], count[int]] = defaultdict(count)
            for record in traced.records:
                calls[record.site].append(((mode, record.op, next(numbers[record.site, record.op])), record))
        return calls

    def _of_operators(self, module: str, size: float, *, sizing: bool) -> Iterator[tuple[_Key, _Width]]:
        for key, record in self._records.get(module, ()):
            if sizing == (record.kind in ("split", "slice", "view")):
                yield from (((*key, *place), width) for place, width in self._of_record(record, size))

    def _of_record(self, record: Record, size: float) -> Iterator[tuple[_Key, _Width]]:
        if record.kind not in ("split", "slice", "view"):
            yield from ((("in", *place), width) for place, width in self._of_labels(record.inputs, size))
        for index, (shape, labels) in enumerate(record.outputs):
            yield from ((("out", index, *place), width) for place, width in self._of_labels(labels, size))
            if record.kind not in ("split", "slice") and size in shape:  # these have one size
                labelled = {dim for label in labels for dim, _ in self._dims(label)}
                others = (dim for dim, n in enumerate(shape) if n == size and dim not in labelled)
                yield from ((("out", index, dim), _Width(shape[dim], shape[dim], None)) for dim in others)

    def _of_labels(self, labels: Iterable[Label], size: float) -> Iterator[tuple[_Key, _Width]]:
        for index, label in enumerate(labels):
            for dim, width in self._dims(label):
                if width.before == size:
                    yield (index, dim), width

    def _dims(self, label: Label) -> list[tuple[int, _Width]]:
        """Return the dimensions along which a label varies; many operators pass the label of their input on."""
        if id(label) not in self._dims_of:
            self._dims_of[id(label)] = [(dim, self._width(ids)) for dim, ids in lines(label)]
        return self._dims_of[id(label)]

    @cached_property
    def _tensors(self) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
        shapes: dict[str, list[tuple[str, tuple[int, ...]]]] = defaultdict(list)
        for name, shape in self._graph.shapes.items():
            shapes[name.rpartition(".")[0]].append((name, shape))
        return shapes

    def _of_tensors(self, module: str, size: float) -> Iterator[tuple[_Key, _Width]]:
        for name, shape in self._tensors.get(module, ()):
            for dim in (dim for dim, n in enumerate(shape) if n == size):
                ids = self._graph.axes.get((name, dim))
                width = _Width(shape[dim], shape[dim], None) if ids is None else self._width(ids)
                yield (name.rpartition(".")[2], dim), width

    def _width(self, ids: Ids) -> _Width:
        return _Width(len(ids), int(np.count_nonzero(self._stays[ids])), ids)


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
