"""Integer attributes of modules, some of which hold widths (`self.num_heads`, `self.sizes`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TypeGuard

from torch import nn

from bnprune.channels.modules import modules_by_name
from bnprune.channels.op_context import Count
from bnprune.channels.union_find import Ids


class Attributes:
    """Integer attributes of the modules of a network.

    Args:
        model: The network.
        known: (module, attribute) of attributes not to return.
    """

    def __init__(self, model: nn.Module, known: set[tuple[str, str]]) -> None:
        self.modules = modules_by_name(model)
        self.known = known

    def holding(self, site: str, sizes: Sequence[Ids], parts: Sequence[Ids], dims: Collection[int]) -> list[Count]:
        """Return attributes of a module, or else of its parent, whose value is one of these sizes before the cut.

        If the operator splits a tensor, a list of the sizes of all `parts`, in order, is preferred. Other lists count
        only if each element is one of `dims`, the sizes of all tensors of the module: a list of positions has others.
        """
        listed = self._list_of(site, parts)
        if listed:
            return listed
        by_size: dict[int, Ids] = {}
        for ids in sizes:
            by_size.setdefault(len(ids), ids)
        for name in (site, site.rpartition(".")[0]):
            counts = [
                Count(name, attribute, by_size[value])
                for attribute, value in self._integers(name, {*dims, *by_size})
                if value in by_size and (name, attribute) not in self.known
            ]
            if counts:
                return counts
        return []

    def _list_of(self, site: str, parts: Sequence[Ids]) -> list[Count]:
        sizes = [len(ids) for ids in parts]
        for name, value in vars(self.modules[site]).items() if site in self.modules and parts else ():
            if isinstance(value, list | tuple) and list(value) == sizes and (site, f"{name}[0]") not in self.known:
                return [Count(site, f"{name}[{index}]", ids) for index, ids in enumerate(parts)]
        return []

    def _integers(self, name: str, dims: Collection[int]) -> Iterator[tuple[str, int]]:
        """Yield integers of a module, and elements of lists whose elements are all in `dims`, or changed already."""
        for attribute, value in vars(self.modules[name]).items() if name in self.modules else ():
            if _is_size(value) and not attribute.startswith("_"):
                yield attribute, value
            elif isinstance(value, list | tuple):
                items = {f"{attribute}[{index}]": item for index, item in enumerate(value)}
                if all(
                    _is_size(item, 1) and (item in dims or (name, key) in self.known) for key, item in items.items()
                ):
                    yield from items.items()


def _is_size(value: object, least: int = 2) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
