"""Data movement: apply to the labels the operator that is applied to the elements.

Splitting a labelled dimension (chunk, split, view C -> (g, C/g)) is correct in a slim network only if all parts lose
the same positions, so these are united. ATen calls `chunk(2)` and `split(32)` the same; the dry run of the slim network
(`bnprune.pruning.dry_run`) tells them apart, and freezes channels whose code relies on a literal size::

    y = conv(x)                 channels [1 2 3 4]
    a, b = y.chunk(2, 1)        a = [1 2], b = [3 4]: unite 1-3 and 2-4
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bnprune.channels.labels import NONE, Label, Labels, along, full, varying, with_rank
from bnprune.channels.op_context import OpContext
from bnprune.channels.ops.spec import rule

aten = torch.ops.aten

_MOVES: dict[str, Callable[..., torch.Tensor]] = {
    "permute": torch.Tensor.permute,
    "transpose": torch.Tensor.transpose,
    "t": torch.Tensor.t,
    "numpy_T": torch.Tensor.t,
    "squeeze": torch.Tensor.squeeze,
    "unsqueeze": torch.Tensor.unsqueeze,
    "movedim": torch.Tensor.movedim,
}


@rule(*_MOVES, keeps_zero="first")
def move(ctx: OpContext, x: torch.Tensor, *args: Any) -> Labels:
    """Reorder dimensions, or add and drop those of size 1."""
    function = _MOVES[ctx.op.split("::")[1].split(".")[0]]
    return tuple(ctx.moved(function(label.expand(x.shape), *args)) for label in ctx.labels(x))


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", keeps_zero="first", kind="view")
def view(ctx: OpContext, x: torch.Tensor, shape: Sequence[int], *_: Any) -> Labels:
    """Reshape."""
    output = ctx.output
    assert isinstance(output, torch.Tensor)
    return tuple(ctx.moved(label.expand(x.shape).reshape(output.shape)) for label in ctx.labels(x))


@rule("expand", "broadcast_to", keeps_zero="first")
def expand(ctx: OpContext, x: torch.Tensor, shape: Sequence[int], **_: Any) -> Labels:
    """Broadcast: new dimensions carry no channel.

    An index or a mask of integers or booleans is broadcast to be read beside another tensor, and shrinks with it: each
    position has a new channel, which is united with those it meets. The first dimension is the batch.
    """
    labels = tuple(with_rank(label, len(shape)) for label in ctx.labels(x))
    output = ctx.output
    if not isinstance(output, torch.Tensor) or x.is_floating_point() or x.is_complex():
        return labels
    sizes = [1] * (output.dim() - x.dim()) + list(x.shape)
    grown = [dim for dim in range(1, output.dim()) if sizes[dim] == 1 < output.shape[dim]]
    return labels + tuple(along(ctx.new(output.shape[dim]), dim, output.dim()) for dim in grown)


@rule("repeat", keeps_zero="first")
def repeat(ctx: OpContext, x: torch.Tensor, repeats: Sequence[int]) -> Labels:
    """Tile."""
    moved = []
    for label in (with_rank(f, len(repeats)) for f in ctx.labels(x)):
        tiled = [n if size > 1 else 1 for n, size in zip(repeats, label.shape, strict=True)]
        moved.append(ctx.moved(label.repeat(tiled)))
    return tuple(moved)


@rule("flip", keeps_zero="first")
def flip(ctx: OpContext, x: torch.Tensor, dims: Sequence[int]) -> Labels:
    """Reverse dimensions."""
    return tuple(label.flip(list(dims)) for label in ctx.labels(x))


@rule("roll", keeps_zero="first")
def roll(ctx: OpContext, x: torch.Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Labels:
    """Rotate dimensions; a rotation of channels by a fixed number of places keeps them all."""
    dims = [dim % x.dim() for dim in dims] or list(range(x.dim()))
    return tuple(
        label
        for label in ctx.labels(x)
        if all(label.shape[dim] == 1 for dim in dims) or ctx.merge(label, dims, "is rotated") is not None
    )


@rule("cat", keeps_zero="all")
def cat(ctx: OpContext, tensors: Sequence[torch.Tensor], dim: int = 0) -> Labels:
    """Concatenate: channels side by side along `dim`; along other dimensions the parts must match.

    Option A shortcut of a ResNet: channels 3 and 4 of the branch may be removed with the zeros they are added to::

        cat([x, zeros])    [1 2] and [5 6]
        + branch           [7 8 9 10]: unite 1-7, 2-8, 5-9, 6-10
    """
    parts = [t for t in tensors if not (t.dim() == 1 and t.numel() == 0)]
    if not parts:
        return NONE
    rank = parts[0].dim()
    dim %= rank
    labels = [ctx.labels(t) for t in parts]
    if dim and any(label.shape[dim] > 1 for each in labels for label in each):
        labels = [each or _padding(ctx, t, dim) for each, t in zip(labels, parts, strict=True)]
    return _cat(ctx, [(each, t.shape[dim]) for each, t in zip(labels, parts, strict=True)], dim, rank)


def _padding(ctx: OpContext, tensor: torch.Tensor, dim: int) -> Labels:
    """Constants beside channels are removed with the channels they are added to, so each position has a new channel."""
    return (along(ctx.new(tensor.shape[dim]), dim, tensor.dim()),) if ctx.is_constant(tensor) else NONE


@rule("stack", keeps_zero="all")
def stack(ctx: OpContext, tensors: Sequence[torch.Tensor], dim: int = 0) -> Labels:
    """Concatenate along a new dimension."""
    rank = tensors[0].dim() + 1
    dim %= rank
    return _cat(ctx, [(tuple(f.unsqueeze(dim) for f in ctx.labels(t)), 1) for t in tensors], dim, rank)


def _cat(ctx: OpContext, parts: Sequence[tuple[Labels, int]], dim: int, rank: int) -> Labels:
    across = [tuple(f for f in labels if f.shape[dim] > 1) for labels, _ in parts]
    beside = ctx.join([tuple(f for f in labels if f.shape[dim] == 1) for labels, _ in parts], rank)
    joined = []
    for slot in range(max(map(len, across))):
        pieces = [labels[slot] if slot < len(labels) else None for labels in across]
        shape = [max(piece.shape[d] for piece in pieces if piece is not None) for d in range(rank)]
        blocks = []
        for piece, (_, size) in zip(pieces, parts, strict=True):
            shape[dim] = size
            blocks.append(torch.zeros(shape, dtype=torch.int64, device="cpu") if piece is None else piece.expand(shape))
        joined.append(ctx.moved(torch.cat(blocks, dim)))
    return (*joined, *beside)


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", keeps_zero="first", kind="split")
@rule("chunk", "unsafe_chunk", keeps_zero="first")
def split(ctx: OpContext, x: torch.Tensor, size: int | Sequence[int], dim: int = 0) -> list[Labels]:
    """Cut into parts."""
    output = ctx.output
    assert isinstance(output, tuple | list)
    dim %= x.dim()
    starts = [0]
    for part in output:
        starts.append(starts[-1] + part.shape[dim])
    if isinstance(size, list | tuple) and ctx.keeps_sizes(size):
        return [_part(ctx, x, dim, start, stop) for start, stop in itertools.pairwise(starts)]
    return [_slice(ctx, x, dim, start, stop, 1) for start, stop in itertools.pairwise(starts)]


@rule("slice", keeps_zero="first", kind="slice")
@rule("narrow", keeps_zero="first")
def slice_(
    ctx: OpContext, x: torch.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Labels:
    """Take every `step`-th position from `start` to `end`."""
    dim %= x.dim()
    size = x.shape[dim]
    first, last, step = slice(start, end, step).indices(size)
    last = max(first, last)
    bounds = [bound for bound in (first, last) if 0 < bound < size]
    unequal = step == 1 and len(bounds) == 1 and size % (last - first or 1) != 0
    if (unequal and ctx.keeps_bound(bounds[0])) or (step == 1 and ctx.at_seams(x, dim, first, last)):
        return _part(ctx, x, dim, first, last)
    return _slice(ctx, x, dim, first, last, step)


def _slice(ctx: OpContext, x: torch.Tensor, dim: int, start: int, stop: int, step: int) -> Labels:
    taken = []
    for label in ctx.labels(x):
        size = label.shape[dim]
        if size > 1 and (start, stop, step) != (0, size, 1):
            if not _periodic(ctx, label, dim, start, stop, step):
                continue
            label = ctx.moved(label.index_select(dim, torch.arange(start, stop, step, device="cpu")))
            if not varying(label):
                continue
        taken.append(label)
    return tuple(taken)


def _part(ctx: OpContext, x: torch.Tensor, dim: int, start: int, stop: int) -> Labels:
    """One of several parts whose sizes surgery can change: each may lose channels of its own."""
    parts = [label if label.shape[dim] == 1 else label.narrow(dim, start, stop - start) for label in ctx.labels(x)]
    return tuple(ctx.moved(part) for part in parts if varying(part))


def _periodic(ctx: OpContext, label: Label, dim: int, start: int, stop: int, step: int) -> bool:
    """Unite positions so that the slice selects the right ones in the slim network; False if they are frozen."""
    size = label.shape[dim]
    if step == 1:
        period = math.gcd(size, math.gcd(start, stop))
        blocks = label.unflatten(dim, (size // period, period))
        return ctx.merge(blocks, [dim], "is sliced at fixed places") is not None
    if start < step and stop == size and size % step == 0:
        blocks = label.unflatten(dim, (size // step, step))
        return ctx.merge(blocks, [dim + 1], "is sliced with a stride") is not None
    return ctx.merge(label, [dim], "is sliced at fixed places") is not None


@rule("select", keeps_zero="first")
def select(ctx: OpContext, x: torch.Tensor, dim: int, index: int) -> Labels:
    """Take one position."""
    dim %= x.dim()
    rests = (_pick(ctx, label, dim) for label in ctx.labels(x))
    return tuple(rest.squeeze(dim) for rest in rests if rest is not None)


def _pick(ctx: OpContext, label: Label, dim: int) -> Label | None:
    return label if label.shape[dim] == 1 else ctx.merge(label, [dim], "is picked by its index")


@rule("unbind", keeps_zero="first")
def unbind(ctx: OpContext, x: torch.Tensor, dim: int = 0) -> list[Labels]:
    """Cut into single positions: all of them must stay, each keeps what changes along other dimensions."""
    dim %= x.dim()
    for label in ctx.labels(x):
        _pick(ctx, label, dim)
    whole = [f for f in ctx.labels(x) if len(varying(f)) > (f.shape[dim] > 1)]
    return [tuple(ctx.moved(f.select(dim, i if f.shape[dim] > 1 else 0)) for f in whole) for i in range(x.shape[dim])]


@rule("index", keeps_zero="first")
def index(ctx: OpContext, x: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> Labels:
    """Pick positions by a tensor: the indexed dimensions must stay whole."""
    for picker in indices:
        if picker is not None:
            ctx.freeze(ctx.labels(picker), "is used as an index")
    dims = [dim for dim, picker in enumerate(indices) if picker is not None]
    output = ctx.output
    assert isinstance(output, torch.Tensor)
    if any(picker is not None and picker.dtype == torch.bool for picker in indices):
        for label in ctx.labels(x):
            ctx.freeze([label], "is picked by a mask")
        return NONE
    places = [
        None if picker is None else torch.zeros(picker.shape, dtype=torch.int64, device="cpu") for picker in indices
    ]
    picked = []
    for label in ctx.labels(x):
        if any(label.shape[dim] > 1 for dim in dims):
            ctx.freeze([label], "is picked by an index")
        else:
            shape = [1 if dim in dims else size for dim, size in enumerate(x.shape)]
            picked.append(ctx.moved(aten.index(full(label, shape, range(x.dim())), places)))
    return tuple(picked)


@rule("index_select", keeps_zero="first")
def index_select(ctx: OpContext, x: torch.Tensor, dim: int, places: torch.Tensor) -> Labels:
    """Pick positions along one dimension."""
    dim %= x.dim()
    ctx.freeze(ctx.labels(places), "is used as an index")
    rests = (
        label if label.shape[dim] == 1 else ctx.merge(label, [dim], "is picked by an index") for label in ctx.labels(x)
    )
    return tuple(rest for rest in rests if rest is not None)


@rule("embedding")
def embedding(ctx: OpContext, weight: torch.Tensor, places: torch.Tensor, *_: Any, **__: Any) -> Labels:
    """Look rows up: (rows, C) and (...) give (..., C)."""
    ctx.freeze([ctx.axis(weight, 0)], "is a table of embeddings")
    ids = ctx.axis(weight, 1)
    return NONE if ids is None else (ids.view([1] * places.dim() + [-1]),)


@rule("unfold", keeps_zero="first")
def unfold(ctx: OpContext, x: torch.Tensor, dim: int, size: int, step: int) -> Labels:
    """Slide a window along one dimension: windows become a new last dimension."""
    dim %= x.dim()
    rests = (label if label.shape[dim] == 1 else ctx.merge(label, [dim], "is unfolded") for label in ctx.labels(x))
    return tuple(rest.unsqueeze(-1) for rest in rests if rest is not None)


@rule("pixel_shuffle", "pixel_unshuffle", keeps_zero="first")
def pixels(ctx: OpContext, x: torch.Tensor, factor: int) -> Labels:
    """Move channels into space, or space into channels: factor x factor channels make one, and are removed together."""
    if "un" in ctx.op.split("::")[1]:
        return tuple(ctx.moved(torch.pixel_unshuffle(label.expand(x.shape), factor)) for label in ctx.labels(x))
    space = (x.dim() - 2, x.dim() - 1)
    moved = (ctx.moved(torch.pixel_shuffle(label.expand(x.shape), factor)) for label in ctx.labels(x))
    merged = (ctx.merge(label, space) for label in moved)
    return tuple(label for label in merged if label is not None)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(ctx: OpContext, x: torch.Tensor, groups: int) -> Labels:
    """Interleave groups of channels: every group loses the same positions, since their number is fixed."""
    ids = ctx.axis(x, 1)
    if ids is None:
        return NONE
    parts = ids.view(groups, -1)
    if ctx.merge(parts, [0]) is None:
        return NONE
    return (parts.t().reshape(1, -1, *[1] * (x.dim() - 2)),)


@rule("view_as_real", keeps_zero="first", kind="view")
def view_as_real(ctx: OpContext, x: torch.Tensor) -> Labels:
    """Put real and imaginary parts along a new last dimension."""
    return tuple(label.unsqueeze(-1) for label in ctx.labels(x))


@rule("view_as_complex", keeps_zero="first", kind="view")
def view_as_complex(ctx: OpContext, x: torch.Tensor) -> Labels:
    """Make complex numbers of pairs along the last dimension."""
    rests = (_pick(ctx, label, x.dim() - 1) for label in ctx.labels(x))
    return tuple(rest.squeeze(-1) for rest in rests if rest is not None)


@rule("set_.source_Tensor", keeps_zero="all")
def set_(ctx: OpContext, x: torch.Tensor, source: torch.Tensor) -> Labels:
    """Make a tensor an alias of another."""
    return ctx.labels(source)
