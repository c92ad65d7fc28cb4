"""Writes into a part of a tensor (`out[:, :4] = x`): the labels of the whole tensor afterwards.

The parts of a tensor of constants may be written one by one, as `torch.cat` does::

    out = x.new_zeros(n, 6, h, w)      no labels
    out[:, :4] = a                     [1 2 3 4  9 10]    two new channels, for zeros that may never be overwritten
    out[:, 4:] = b                     [1 2 3 4  5 6]

A slice that begins and ends at the boundaries of such parts (`out[:, 4:]`) is one part, not a slice at fixed
positions.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from bnprune.channels.labels import Labels, along, varying

if TYPE_CHECKING:
    from bnprune.channels.op_context import OpContext


USE_CAT = "use torch.cat"


@dataclass(slots=True)
class _Written:
    """The parts that have been written into one tensor, along one dimension."""

    tensor: weakref.ref[torch.Tensor]
    dim: int
    unwritten: torch.Tensor
    """Channel ids of the constants before any write, shape (size,)."""
    seams: set[int] = field(default_factory=set)


class ViewWrites:
    """Keeps track of all writes into views in one forward pass."""

    def __init__(self) -> None:
        self._written: dict[int, _Written] = {}

    def at_seams(self, tensor: torch.Tensor, dim: int, start: int, stop: int) -> bool:
        """True if a slice of a tensor begins and ends at the boundaries of parts that were written one by one."""
        known = self._known(tensor)
        return known is not None and known.dim == dim and {start, stop} <= known.seams

    def has_parts(self, tensor: torch.Tensor) -> bool:
        """True if something has been written into a part of a tensor."""
        return self._known(tensor) is not None

    def write(
        self, call: OpContext, base: torch.Tensor, whole: Labels, part: torch.Tensor, labels: Labels
    ) -> Labels | None:
        """Return the labels of `base` after `labels` have been written into `part`, a view of it.

        Args:
            call: The operator that writes.
            base: The tensor of which `part` is a view: made of constants, except for what was written before.
            whole: Its labels so far.
            part: The view.
            labels: Labels of the view after the write.

        Returns:
            None if the channels of the two tensors lie in different dimensions, or if the view is not made of slices.
        """
        place = _place(part, base)
        dims = {dim for label in (*whole, *labels) for dim in varying(label)}
        if place is None or len(dims) != 1 or len(labels) != 1 or len(whole) > 1:
            return None
        (dim,) = dims
        size = base.shape[dim]
        taken = torch.arange(size, device="cpu")[place[dim]]
        first, last = int(taken[0]), int(taken[-1]) + 1
        known = self._known(base)
        if known is None:
            known = self._written[id(base)] = _Written(weakref.ref(base), dim, call.new(size), {0, size})
        line = whole[0].reshape(-1).clone() if whole else known.unwritten.clone()
        new = labels[0].reshape(-1)
        call.unite(line[taken], new)
        line[taken] = new
        rest = known.unwritten[:first]
        call.freeze([rest[torch.isin(rest, line)]], "lies before a part that is written at a fixed place", USE_CAT)
        known.seams |= {first, last}
        return (along(line, dim, base.dim()),)

    def _known(self, tensor: torch.Tensor) -> _Written | None:
        known = self._written.get(id(tensor))
        return known if known is not None and known.tensor() is tensor else None


def _place(part: torch.Tensor, base: torch.Tensor) -> list[slice] | None:
    """Return the slice along each dimension of `base` that a view covers; None if it is not made of slices."""
    if part.dim() != base.dim():
        return None
    offset = int(part.storage_offset()) - int(base.storage_offset())
    starts: dict[int, int] = {}
    strides = [int(stride) for stride in base.stride()]
    for dim in sorted(range(base.dim()), key=strides.__getitem__, reverse=True):
        starts[dim], offset = divmod(offset, strides[dim]) if base.shape[dim] > 1 else (0, offset)
    place = []
    for dim in range(base.dim()):
        step = part.stride(dim) // strides[dim] if part.shape[dim] > 1 else 1
        stop = starts[dim] + (part.shape[dim] - 1) * step + 1
        if (part.shape[dim] > 1 and part.stride(dim) != step * strides[dim]) or not step or stop > base.shape[dim]:
            return None
        place.append(slice(starts[dim], stop, step))
    return None if offset else place
