"""Reads and writes at computed positions along one dimension (message passing, pooling over segments, histograms).

Elements meet only along that dimension, so channels along the others pass, each by itself::

    out.scatter_add_(0, index, messages)    out[index[e, c], c] += messages[e, c]: channel c is removed in all three
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bnprune.channels.labels import NONE, Labels, with_rank
from bnprune.channels.op_context import OpContext
from bnprune.channels.ops.spec import rule


def _first_and_source(zeros: Sequence[bool], _: Sequence[Any]) -> bool:
    """Zero if the tensor and the values written to it are zero, whatever the index."""
    return len(zeros) == 3 and zeros[0] and zeros[2]


@rule("gather", keeps_zero="first")
@rule("scatter.src", "scatter_add", keeps_zero=_first_and_source)
@rule("scatter", "scatter_reduce")
def scatter(ctx: OpContext, x: torch.Tensor, dim: int, index: torch.Tensor, *source: Any, **_: Any) -> Labels:
    """Read or write `x[index[i, c], c]`, here for `dim` 0: the index has a value for each channel, too."""
    rank = max(x.dim(), 1)
    dim %= rank
    tensors = [x, index, *(tensor for tensor in source if isinstance(tensor, torch.Tensor))]
    return ctx.join([_beside(ctx, tensor, dim, index.shape) for tensor in tensors], rank)


def _beside(ctx: OpContext, tensor: torch.Tensor, dim: int, shape: Sequence[int]) -> Labels:
    """Return the labels without `dim`; those along a dimension of which the index covers only a part are frozen."""
    rests = []
    for label in ctx.labels(tensor):
        rest = _without(ctx, label, dim)
        if rest is None:
            continue
        if any(size > 1 and size != shape[d] for d, size in enumerate(rest.shape)):
            ctx.freeze([rest], "is picked in part by an index")
        else:
            rests.append(rest)
    return tuple(rests)


def _without(ctx: OpContext, label: torch.Tensor, dim: int) -> torch.Tensor | None:
    return label if label.shape[dim] == 1 else ctx.merge(label, [dim], "is picked by an index")


@rule("index_add", "index_copy", "index_reduce", "index_fill")
def index_add(ctx: OpContext, x: torch.Tensor, dim: int, index: torch.Tensor, *source: Any, **_: Any) -> Labels:
    """Write to the positions along `dim` that a vector of indices names; the other dimensions match."""
    ctx.freeze(ctx.labels(index), "is used as an index")
    rank = max(x.dim(), 1)
    parts = []
    for tensor in (x, *source):
        rests = (_without(ctx, label, dim % rank) for label in ctx.labels(tensor) if label.dim() == rank)
        parts.append(tuple(rest for rest in rests if rest is not None))
    return ctx.join(parts, rank)


@rule("segment_reduce", keeps_zero="first")
def segment_reduce(ctx: OpContext, x: torch.Tensor, *_: Any, axis: int = 0, **tensors: Any) -> Labels:
    """Reduce runs of elements along `axis`."""
    for tensor in tensors.values():
        ctx.freeze(ctx.labels(tensor), "is used as an index")
    rests = (_without(ctx, label, axis) for label in ctx.labels(x))
    return tuple(rest for rest in rests if rest is not None)


@rule("index_put")
def index_put(
    ctx: OpContext, x: torch.Tensor, indices: Sequence[torch.Tensor | None], values: torch.Tensor, *_: Any
) -> Labels:
    """Overwrite the positions that tensors pick along neighbouring dimensions; the other dimensions carry channels."""
    pickers = [picker for picker in indices if picker is not None]
    for picker in pickers:
        ctx.freeze(ctx.labels(picker), "is used as an index")
    before = next(position for position, picker in enumerate(indices) if picker is not None)
    if any(picker is None for picker in indices[before : before + len(pickers)]):
        ctx.freeze([*ctx.labels(x), *ctx.labels(values)], "is written to by an index")
        return NONE
    picked = sum(picker.dim() if picker.dtype == torch.bool else 1 for picker in pickers)
    flat = max(1 if picker.dtype == torch.bool else picker.dim() for picker in pickers)
    rests = [_around(ctx, label, before, picked, picked) for label in ctx.labels(x)]
    rank = x.dim() - picked + flat
    rests += [_around(ctx, with_rank(label, rank), before, flat, picked) for label in ctx.labels(values)]
    return ctx.join([(rest,) for rest in rests if rest is not None], x.dim())


def _around(ctx: OpContext, label: torch.Tensor, start: int, count: int, picked: int) -> torch.Tensor | None:
    """Return the label with `picked` dimensions of size 1 in the place of `count` dimensions that are merged."""
    dims = range(start, start + count)
    rest = label if all(label.shape[dim] == 1 for dim in dims) else ctx.merge(label, dims, "is written to by an index")
    if rest is None:
        return None
    return rest.reshape([*rest.shape[:start], *[1] * picked, *rest.shape[start + count :]])
