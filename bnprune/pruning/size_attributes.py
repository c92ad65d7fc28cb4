"""Integer attributes of modules, some of which hold widths (`self.num_heads`, `self.sizes`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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

    def holding(self, site: str, sizes: Sequence[Ids], parts: Sequence[Ids]) -> list[Count]:
        """Return attributes of a module, or else of its parent, whose value is one of these sizes before the cut.

        If the operator splits a tensor, a list of the sizes of all `parts`, in order, is preferred.
        """
        listed = self._list_of(site, parts)
        if listed:
            return listed
        by_size: dict[int, Ids] = {}
        for ids in sizes:
            by_size.setdefault(len(ids), ids)
        for name in (site, site.rpartition(".")[0]):
            module = self.modules.get(name)
            found = (
                []
                if module is None
                else [
                    Count(name, attribute, by_size[value])
                    for attribute, value in _integers(module)
                    if value in by_size and (name, attribute) not in self.known
                ]
            )
            if found:
                return found
        return []

    def _list_of(self, site: str, parts: Sequence[Ids]) -> list[Count]:
        sizes = [len(ids) for ids in parts]
        for name, value in vars(self.modules[site]).items() if site in self.modules and parts else ():
            if isinstance(value, list | tuple) and list(value) == sizes and (site, f"{name}[0]") not in self.known:
                return [Count(site, f"{name}[{index}]", ids) for index, ids in enumerate(parts)]
        return []


def _integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    for name, value in vars(module).items():
        if isinstance(value, int) and not isinstance(value, bool) and value > 1 and not name.startswith("_"):
            yield name, value
        elif isinstance(value, list | tuple):
            yield from (
                (f"{name}[{index}]", item)
                for index, item in enumerate(value)
                if isinstance(item, int) and not isinstance(item, bool) and item > 1
            )
