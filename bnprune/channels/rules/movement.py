"""Data movement: whatever moves the elements moves their channels.

Splitting a labelled dimension (chunk, split, view C -> (g, C/g)) is right in a smaller network only if every part
loses the same positions, so positions are united across parts. ATen cannot tell `chunk(2)` from `split(32)`; the
rehearsal of the slim network (`bnprune.pruning.rehearsal`) decides, and freezes what relied on a literal size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bnprune.channels.call import Call
from bnprune.channels.facets import NONE, Facet, Facets, full, varying, with_rank
from bnprune.channels.rules.registry import rule

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


@rule(*_MOVES)
def move(call: Call, x: torch.Tensor, *args: Any) -> Facets:
    """Reorder dimensions, or add and drop those of size 1."""
    function = _MOVES[call.op.split("::")[1].split(".")[0]]
    return tuple(call.moved(function(facet.expand(x.shape), *args)) for facet in call.facets(x))


@rule("view", "_unsafe_view", "reshape", "_reshape_alias")
def view(call: Call, x: torch.Tensor, shape: Sequence[int], *_: Any) -> Facets:
    """Reshape."""
    output = call.output
    assert isinstance(output, torch.Tensor)
    return tuple(call.moved(facet.expand(x.shape).reshape(output.shape)) for facet in call.facets(x))


@rule("expand", "broadcast_to")
def expand(call: Call, x: torch.Tensor, shape: Sequence[int], **_: Any) -> Facets:
    """Broadcast: new dimensions carry no channel."""
    return tuple(with_rank(facet, len(shape)) for facet in call.facets(x))


@rule("repeat")
def repeat(call: Call, x: torch.Tensor, repeats: Sequence[int]) -> Facets:
    """Tile."""
    moved = []
    for facet in (with_rank(f, len(repeats)) for f in call.facets(x)):
        tiled = [n if size > 1 else 1 for n, size in zip(repeats, facet.shape, strict=True)]
        moved.append(call.moved(facet.repeat(tiled)))
    return tuple(moved)


@rule("flip")
def flip(call: Call, x: torch.Tensor, dims: Sequence[int]) -> Facets:
    """Reverse dimensions."""
    return tuple(facet.flip(list(dims)) for facet in call.facets(x))


@rule("roll")
def roll(call: Call, x: torch.Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Facets:
    """Rotate dimensions; a rotation of channels by a fixed number of places keeps them all."""
    dims = [dim % x.dim() for dim in dims] or list(range(x.dim()))
    return tuple(
        facet
        for facet in call.facets(x)
        if all(facet.shape[dim] == 1 for dim in dims) or call.merge(facet, dims, "is rotated") is not None
    )


@rule("cat")
def cat(call: Call, tensors: Sequence[torch.Tensor], dim: int = 0) -> Facets:
    """Concatenate: channels side by side along `dim`; along other dimensions the parts must match."""
    parts = [t for t in tensors if not (t.dim() == 1 and t.numel() == 0)]
    if not parts:
        return NONE
    return _cat(call, [(call.facets(t), t.shape[dim]) for t in parts], dim % parts[0].dim(), parts[0].dim())


@rule("stack")
def stack(call: Call, tensors: Sequence[torch.Tensor], dim: int = 0) -> Facets:
    """Concatenate along a new dimension."""
    rank = tensors[0].dim() + 1
    dim %= rank
    return _cat(call, [(tuple(f.unsqueeze(dim) for f in call.facets(t)), 1) for t in tensors], dim, rank)


def _cat(call: Call, parts: Sequence[tuple[Facets, int]], dim: int, rank: int) -> Facets:
    across = [tuple(f for f in facets if f.shape[dim] > 1) for facets, _ in parts]
    beside = call.join([tuple(f for f in facets if f.shape[dim] == 1) for facets, _ in parts], rank)
    joined = []
    for slot in range(max(map(len, across))):
        pieces = [facets[slot] if slot < len(facets) else None for facets in across]
        shape = [max(piece.shape[d] for piece in pieces if piece is not None) for d in range(rank)]
        blocks = []
        for piece, (_, size) in zip(pieces, parts, strict=True):
            shape[dim] = size
            blocks.append(torch.zeros(shape, dtype=torch.int64, device="cpu") if piece is None else piece.expand(shape))
        joined.append(call.moved(torch.cat(blocks, dim)))
    return (*joined, *beside)


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_chunk", "chunk", "unsafe_split_with_sizes")
def split(call: Call, x: torch.Tensor, size: int | Sequence[int], dim: int = 0) -> list[Facets]:
    """Cut into parts."""
    output = call.output
    assert isinstance(output, tuple | list)
    dim %= x.dim()
    starts = [0]
    for part in output:
        starts.append(starts[-1] + part.shape[dim])
    if isinstance(size, list | tuple) and call.keeps_sizes(size):
        return [_part(call, x, dim, start, stop) for start, stop in itertools.pairwise(starts)]
    return [_slice(call, x, dim, start, stop, 1) for start, stop in itertools.pairwise(starts)]


@rule("slice", "narrow")
def slice_(
    call: Call, x: torch.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Facets:
    """Take every `step`-th position from `start` to `end`."""
    dim %= x.dim()
    size = x.shape[dim]
    first, last, step = slice(start, end, step).indices(size)
    last = max(first, last)
    bounds = [bound for bound in (first, last) if 0 < bound < size]
    unequal = step == 1 and len(bounds) == 1 and size % (last - first or 1) != 0
    if unequal and call.keeps_bound(bounds[0]):
        return _part(call, x, dim, first, last)
    return _slice(call, x, dim, first, last, step)


def _slice(call: Call, x: torch.Tensor, dim: int, start: int, stop: int, step: int) -> Facets:
    taken = []
    for facet in call.facets(x):
        size = facet.shape[dim]
        if size > 1 and (start, stop, step) != (0, size, 1):
            if not _periodic(call, facet, dim, start, stop, step):
                continue
            facet = call.moved(facet.index_select(dim, torch.arange(start, stop, step, device="cpu")))
            if not varying(facet):
                continue
        taken.append(facet)
    return tuple(taken)


def _part(call: Call, x: torch.Tensor, dim: int, start: int, stop: int) -> Facets:
    """One of several parts whose sizes surgery can change: each may lose channels of its own."""
    parts = [facet if facet.shape[dim] == 1 else facet.narrow(dim, start, stop - start) for facet in call.facets(x)]
    return tuple(call.moved(part) for part in parts if varying(part))


def _periodic(call: Call, facet: Facet, dim: int, start: int, stop: int, step: int) -> bool:
    """Unite positions so that the slice selects the right ones also after channels have gone; False if frozen."""
    size = facet.shape[dim]
    if step == 1:
        period = math.gcd(size, math.gcd(start, stop))
        blocks = facet.unflatten(dim, (size // period, period))
        return call.merge(blocks, [dim], "is sliced at fixed places") is not None
    if start < step and stop == size and size % step == 0:
        blocks = facet.unflatten(dim, (size // step, step))
        return call.merge(blocks, [dim + 1], "is sliced with a stride") is not None
    return call.merge(facet, [dim], "is sliced at fixed places") is not None


@rule("select")
def select(call: Call, x: torch.Tensor, dim: int, index: int) -> Facets:
    """Take one position."""
    dim %= x.dim()
    rests = (_pick(call, facet, dim) for facet in call.facets(x))
    return tuple(rest.squeeze(dim) for rest in rests if rest is not None)


def _pick(call: Call, facet: Facet, dim: int) -> Facet | None:
    return facet if facet.shape[dim] == 1 else call.merge(facet, [dim], "is picked by its index")


@rule("unbind")
def unbind(call: Call, x: torch.Tensor, dim: int = 0) -> list[Facets]:
    """Cut into single positions: all of them must stay, each keeps what changes along other dimensions."""
    dim %= x.dim()
    for facet in call.facets(x):
        _pick(call, facet, dim)
    whole = [f for f in call.facets(x) if len(varying(f)) > (f.shape[dim] > 1)]
    return [tuple(call.moved(f.select(dim, i if f.shape[dim] > 1 else 0)) for f in whole) for i in range(x.shape[dim])]


@rule("index")
def index(call: Call, x: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> Facets:
    """Pick positions by a tensor: the indexed dimensions must stay whole."""
    for picker in indices:
        if picker is not None:
            call.freeze(call.facets(picker), "is used as an index")
    dims = [dim for dim, picker in enumerate(indices) if picker is not None]
    output = call.output
    assert isinstance(output, torch.Tensor)
    if any(picker is not None and picker.dtype == torch.bool for picker in indices):
        for facet in call.facets(x):
            call.freeze([facet], "is picked by a mask")
        return NONE
    places = [
        None if picker is None else torch.zeros(picker.shape, dtype=torch.int64, device="cpu") for picker in indices
    ]
    picked = []
    for facet in call.facets(x):
        if any(facet.shape[dim] > 1 for dim in dims):
            call.freeze([facet], "is picked by an index")
        else:
            shape = [1 if dim in dims else size for dim, size in enumerate(x.shape)]
            picked.append(call.moved(aten.index(full(facet, shape, range(x.dim())), places)))
    return tuple(picked)


@rule("index_put")
def index_put(
    call: Call, x: torch.Tensor, indices: Sequence[torch.Tensor | None], values: torch.Tensor, *_: Any
) -> Facets:
    """Overwrite the positions that tensors pick along the first dimensions; the other dimensions carry channels."""
    pickers = [picker for picker in indices if picker is not None]
    for picker in pickers:
        call.freeze(call.facets(picker), "is used as an index")
    if len(pickers) < len(indices):
        call.freeze([*call.facets(x), *call.facets(values)], "is written to by an index")
        return NONE
    picked = sum(picker.dim() if picker.dtype == torch.bool else 1 for picker in pickers)
    rest = x.dim() - picked
    written = [(with_rank(facet, rest), facet.dim() - rest) for facet in call.facets(values)]
    into = [(facet, picked) for facet in call.facets(x)]
    settled = []
    for facet, leading in (*written, *into):
        kept = facet if leading <= 0 else call.merge(facet, range(leading), "is written to by an index")
        if kept is not None:
            settled.append(kept.reshape([1] * picked + list(kept.shape[max(leading, 0) :])))
    return call.join([(facet,) for facet in settled], x.dim())


@rule("index_select")
def index_select(call: Call, x: torch.Tensor, dim: int, places: torch.Tensor) -> Facets:
    """Pick positions along one dimension."""
    dim %= x.dim()
    call.freeze(call.facets(places), "is used as an index")
    rests = (
        facet if facet.shape[dim] == 1 else call.merge(facet, [dim], "is picked by an index")
        for facet in call.facets(x)
    )
    return tuple(rest for rest in rests if rest is not None)


@rule("embedding")
def embedding(call: Call, weight: torch.Tensor, places: torch.Tensor, *_: Any, **__: Any) -> Facets:
    """Look rows up: (rows, C) and (...) give (..., C)."""
    call.freeze([call.axis(weight, 0)], "is a table of embeddings")
    ids = call.axis(weight, 1)
    return NONE if ids is None else (ids.view([1] * places.dim() + [-1]),)


@rule("unfold")
def unfold(call: Call, x: torch.Tensor, dim: int, size: int, step: int) -> Facets:
    """Slide a window along one dimension: windows become a new last dimension."""
    dim %= x.dim()
    rests = (facet if facet.shape[dim] == 1 else call.merge(facet, [dim], "is unfolded") for facet in call.facets(x))
    return tuple(rest.unsqueeze(-1) for rest in rests if rest is not None)


@rule("pixel_shuffle", "pixel_unshuffle")
def pixels(call: Call, x: torch.Tensor, factor: int) -> Facets:
    """Move channels into space, or space into channels: what makes one channel goes as a whole."""
    if "un" in call.op.split("::")[1]:
        return tuple(call.moved(torch.pixel_unshuffle(facet.expand(x.shape), factor)) for facet in call.facets(x))
    space = (x.dim() - 2, x.dim() - 1)
    moved = (call.moved(torch.pixel_shuffle(facet.expand(x.shape), factor)) for facet in call.facets(x))
    merged = (call.merge(facet, space) for facet in moved)
    return tuple(facet for facet in merged if facet is not None)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call, x: torch.Tensor, groups: int) -> Facets:
    """Interleave groups of channels: every group loses the same positions, since their number is fixed."""
    ids = call.axis(x, 1)
    if ids is None:
        return NONE
    parts = ids.view(groups, -1)
    if call.merge(parts, [0]) is None:
        return NONE
    return (parts.t().reshape(1, -1, *[1] * (x.dim() - 2)),)
