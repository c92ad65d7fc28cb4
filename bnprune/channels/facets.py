"""Facets: which channel each element of a tensor belongs to, stored without storing it per element.

A facet of a tensor of shape (d0, d1, ...) is an int64 tensor of the same rank that broadcasts to that shape: it has
size 1 along every dimension in which the channel does not change. The output of a convolution, (N, C, H, W), has one
facet of shape (1, C, 1, 1). A tensor with several facets (a weight: output and input channels) loses an element
when *any* of its facets names a removed channel. A tensor without facets belongs to no channel.

Facets are immutable: every function returns a new one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Facet = torch.Tensor
Facets = tuple[Facet, ...]

NONE: Facets = ()


def varying(facet: Facet) -> tuple[int, ...]:
    """Return the dimensions along which the channel changes."""
    return tuple(dim for dim, size in enumerate(facet.shape) if size > 1)


def compact(full: torch.Tensor) -> Facet:
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


def along(ids: torch.Tensor, dim: int, rank: int) -> Facet:
    """Return the facet of a tensor of that rank whose channel changes along `dim` only; `ids` has shape (size,)."""
    shape = [1] * rank
    shape[dim] = ids.numel()
    return ids.view(shape)


def with_rank(facet: Facet, rank: int) -> Facet:
    """Prepend dimensions of size 1, as broadcasting does."""
    return facet.view((1,) * (rank - facet.dim()) + tuple(facet.shape)) if facet.dim() < rank else facet


def full(facet: Facet, shape: Sequence[int], dims: Sequence[int]) -> torch.Tensor:
    """Expand the facet along `dims` only, to the sizes of `shape`; other dimensions stay as they are."""
    return facet.expand([shape[d] if d in dims else size for d, size in enumerate(facet.shape)])
