"""Operators on space (pooling, interpolation, padding): channels pass through; channels along space are merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bnprune.channels.labels import Label, Labels, varying
from bnprune.channels.op_context import NO_CHANNEL, OpContext
from bnprune.channels.ops.spec import rule
from bnprune.channels.pytrees import operands

_BY_SPACE = {
    1: ["max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "upsample_linear1d", "upsample_nearest1d",
        "_upsample_nearest_exact1d", "reflection_pad1d", "replication_pad1d", "adaptive_max_pool1d"],
    2: ["max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d",
        "adaptive_max_pool2d", "fractional_max_pool2d", "max_unpool2d", "upsample_bilinear2d", "upsample_nearest2d",
        "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact2d",
        "reflection_pad2d", "replication_pad2d"],
    3: ["max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool3d", "adaptive_max_pool3d", "upsample_trilinear3d",
        "upsample_nearest3d", "_upsample_nearest_exact3d", "reflection_pad3d", "replication_pad3d"],
}  # fmt: skip
SPACE = {name: space for space, names in _BY_SPACE.items() for name in names}
"""Number of trailing dimensions that each operator mixes."""


def local(ctx: OpContext, x: torch.Tensor, dims: Sequence[int]) -> Labels:
    """Return the labels of `x` once elements along `dims` have been mixed with their neighbours."""
    merged = [label if not _touches(label, dims) else ctx.merge(label, dims) for label in ctx.labels(x)]
    return tuple(label for label in merged if label is not None)


def _touches(label: Label, dims: Sequence[int]) -> bool:
    return any(label.shape[dim] > 1 for dim in dims)


@rule(*SPACE, keeps_zero="first")
def space(ctx: OpContext, x: torch.Tensor, *_: Any, **__: Any) -> list[Labels]:
    """Mix neighbours in the last one, two or three dimensions."""
    name = ctx.op.split("::")[1].split(".")[0]
    passed = local(ctx, x, range(x.dim() - SPACE[name], x.dim()))
    return [passed] * len(operands((ctx.output,), {}))


_ADDED = -1


def _padding_keeps_zero(zeros: Sequence[bool], args: Sequence[Any]) -> bool:
    return any(zeros[:1]) and (len(args) < 3 or args[2] == 0)


@rule("constant_pad_nd", keeps_zero=_padding_keeps_zero)
def constant_pad(ctx: OpContext, x: torch.Tensor, pad: Sequence[int], value: float = 0) -> Labels:
    """Pad; an element added beside channels may be removed with a channel that it is added to."""
    widths = list(pad) + [0] * (2 * x.dim() - len(pad))
    dims = [dim for dim in range(x.dim()) if any(widths[2 * (x.dim() - 1 - dim) :][:2])]
    padded = []
    for label in ctx.labels(x):
        padded_dims = [dim for dim in dims if label.shape[dim] > 1]
        if padded_dims:
            only = [w if x.dim() - 1 - i // 2 in padded_dims else 0 for i, w in enumerate(widths)]
            padded_label = torch.nn.functional.pad(label, only, value=_ADDED)
            added = padded_label == _ADDED
            if len(varying(label)) == 1:
                padded_label[added] = ctx.new(int(added.sum()))
            label = ctx.moved(padded_label.masked_fill(padded_label == _ADDED, NO_CHANNEL))
        padded.append(label)
    return tuple(padded)


@rule("im2col", keeps_zero="first")
def im2col(ctx: OpContext, x: torch.Tensor, kernel: Sequence[int], *_: Any, **__: Any) -> Labels:
    """Unfold (N, C, H, W) into (N, C*k*k, L): every channel becomes k*k consecutive rows."""
    ids = ctx.axis(x, 1)
    return () if ids is None else (ids.repeat_interleave(kernel[0] * kernel[1]).view(1, -1, 1),)


@rule("col2im", keeps_zero="first")
def col2im(ctx: OpContext, x: torch.Tensor, size: Sequence[int], kernel: Sequence[int], *_: Any, **__: Any) -> Labels:
    """Fold (N, C*k*k, L) into (N, C, H, W): k*k consecutive rows make one channel."""
    ids = ctx.axis(x, 1)
    if ids is None:
        return ()
    rest = ctx.merge(ids.view(-1, kernel[0] * kernel[1]), [1])
    return () if rest is None else (rest.view(1, -1, 1, 1),)


@rule("grid_sampler_2d", "grid_sampler_3d", "torchvision::roi_align", "torchvision::roi_pool", keeps_zero="first")
def sampler(ctx: OpContext, x: torch.Tensor, grid: torch.Tensor, *_: Any, **__: Any) -> Labels:
    """Sample space at computed places: channels pass through dimension 1."""
    ctx.freeze(ctx.labels(grid), "gives the positions to sample")
    ids = ctx.axis(x, 1)
    output = ctx.output
    rank = output.dim() if isinstance(output, torch.Tensor) else x.dim()
    return () if ids is None else (ids.view(1, -1, *[1] * (rank - 2)),)
