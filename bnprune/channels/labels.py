"""Labels: which channel each element of a tensor belongs to, in compact form.

A label of a tensor of shape (d0, d1, ...) is an int64 tensor of the same rank that broadcasts to that shape: it has
size 1 along every dimension in which the channel does not change. The output of a convolution, (N, C, H, W), has one
label of shape (1, C, 1, 1). A tensor with several labels (a weight: output and input channels) loses an element
if *any* of its labels names a removed channel. A tensor without labels belongs to no channel.

Labels are immutable: every function returns a new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from bnprune.channels.union_find import Ids

Label = torch.Tensor
Labels = tuple[Label, ...]

NONE: Labels = ()


def varying(label: Label) -> tuple[int, ...]:
    """Return the dimensions along which the channel changes: (1,) for a label of shape (1, C, 1, 1)."""
    return tuple(dim for dim, size in enumerate(label.shape) if size > 1)


def lines(label: Label) -> Iterator[tuple[int, Ids]]:
    """Yield each dimension along which the channel changes, and the ids along it at index 0 of the other dimensions."""
    for dim in varying(label):
        line = label
        for other in varying(label):
            if other != dim:
                line = line.narrow(other, 0, 1)
        yield dim, line.reshape(-1).numpy()


def compact(full: torch.Tensor) -> Label:
    """Reduce every dimension along which `full` is constant to size 1."""
    for dim, (size, stride) in enumerate(zip(full.shape, full.stride(), strict=True)):
        if size > 1 and stride == 0:
            full = full.narrow(dim, 0, 1)
    dims = [dim for dim, size in enumerate(full.shape) if size > 1]
    for dim in dims:
        if bool((full == full.narrow(dim, 0, 1)).all()):
            full = full.narrow(dim, 0, 1)
    # A small view must not keep a large tensor alive.
    return full.clone() if full.untyped_storage().nbytes() > 4 * full.nbytes + 1024 else full


def along(ids: torch.Tensor, dim: int, rank: int) -> Label:
    """Return the label of a tensor of that rank whose channel changes along `dim` only; `ids` has shape (size,)."""
    shape = [1] * rank
    shape[dim] = ids.numel()
    return ids.view(shape)


def with_rank(label: Label, rank: int) -> Label:
    """Prepend dimensions of size 1, as broadcasting does."""
    return label.view((1,) * (rank - label.dim()) + tuple(label.shape)) if label.dim() < rank else label


def full(label: Label, shape: Sequence[int], dims: Sequence[int]) -> torch.Tensor:
    """Expand the label along `dims` only, to the sizes of `shape`; other dimensions stay as they are."""
    return label.expand([shape[d] if d in dims else size for d, size in enumerate(label.shape)])
