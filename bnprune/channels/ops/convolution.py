"""Convolutions: the channels of the input are bound to one dimension of the weight; those of the other are new.

Legend: N batch, Ci input channels, Co output channels, g groups, K kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count

from bnprune.channels.labels import Labels, along, varying
from bnprune.channels.op_context import OpContext
from bnprune.channels.ops.spec import rule, zero_if_weights_are


def _one_tap(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _: Sequence[int],
    groups: int,
) -> torch.Tensor | None:
    """Convolve with all weights at zero but one kernel position of the first input channel of each group."""
    space = x.dim() - 2
    plain = not transposed and space == len(stride) == len(padding) == len(dilation) == weight.dim() - 2
    if not plain or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        return None
    kernel_index: list[Any] = [slice(None), 0]
    input_index: list[Any] = [...]
    for size, kernel, step, pad, spread in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True):
        tap = -(-pad // spread)  # the first kernel position that never reads the padding on the left
        count = (size + 2 * pad - spread * (kernel - 1) - 1) // step + 1
        first = tap * spread - pad
        last = first + (count - 1) * step
        if count < 1 or tap >= kernel or last >= size:
            return None
        kernel_index.append(tap)
        input_index.append(slice(first, last + 1, step))
    first_of_group = x.reshape(x.shape[0], groups, weight.shape[1], *x.shape[2:])[:, :, :1]
    scale = weight[tuple(kernel_index)] * math.sqrt(weight[0].numel())
    output = (first_of_group[tuple(input_index)] * scale.view(1, groups, -1, *[1] * space)).flatten(1, 2)
    return output if bias is None else output.add_(bias.view(-1, *[1] * space))


_TRANSPOSED = 6
"""Position of `transposed` among the arguments."""


def _macs(x: torch.Tensor, weight: torch.Tensor, *rest: Any, out_val: torch.Tensor) -> int:
    """Half of PyTorch's FLOPs; its registered formula first searches all arguments for tensors, which takes longer."""
    input_shape, weight_shape, output_shape = (list(tensor.shape) for tensor in (x, weight, out_val))
    flops = conv_flop_count(input_shape, weight_shape, output_shape, transposed=rest[_TRANSPOSED - 2])
    return int(flops) // 2


def _on_meta(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _: Sequence[int],
    groups: int,
) -> torch.Tensor | None:
    """Allocate the output of a convolution whose arguments fit; PyTorch says what is wrong with others."""
    outputs = weight.shape[:1]
    space = x.dim() - 2
    plain = not transposed and space == len(stride) == len(padding) == len(dilation) == weight.dim() - 2
    if not plain or x.shape[1] != weight.shape[1] * groups or outputs[0] % groups or x.dtype != weight.dtype:
        return None
    if not x.shape[1] or (bias is not None and (bias.shape != outputs or bias.dtype != x.dtype)):
        return None
    shape = [x.shape[0], outputs[0]]
    for size, kernel, step, pad, spread in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True):
        shape.append((size + 2 * pad - spread * (kernel - 1) - 1) // step + 1)
    return torch.empty(shape, dtype=x.dtype, device="meta") if min(shape) > 0 else None


@rule(
    "convolution",
    "convolution_overrideable",
    macs=_macs,
    meta=_on_meta,
    keeps_zero=zero_if_weights_are,
    kind="convolution",
    weight=1,
    surrogate=_one_tap,
)
def convolution(
    ctx: OpContext,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Labels:
    """Convolve (N, Ci, ...) with (Co, Ci/g, K...), transposed (Ci, Co/g, K...)."""
    passed = tuple(label for label in ctx.labels(x) if varying(label) == (0,))
    ids = ctx.axis(x, 1, passing=(0,))
    ctx.contract(x, weight, [ids])
    _freeze_kernel(ctx, weight)
    if groups == 1:
        source, sink = (0, 1) if transposed else (1, 0)
        ctx.bind(weight, source, ids)
        out = ctx.side(weight, sink)
    else:
        out = _grouped(ctx, ids, x.shape[1], weight, transposed, groups)
    if bias is not None:
        ctx.bind(bias, 0, out)
    ctx.count("in_channels", ids)
    ctx.count("out_channels", out)
    output = ctx.output
    assert isinstance(output, torch.Tensor)
    _count_work(ctx, x if transposed else output, weight, transposed)
    return passed if out is None else (*passed, along(out, 1, x.dim()))


def _freeze_kernel(ctx: OpContext, weight: torch.Tensor) -> None:
    if ctx.named(weight) is None:
        for label in ctx.labels(weight):
            if any(dim > 1 for dim in varying(label)):
                ctx.freeze([label], "is a kernel position")


def _grouped(
    ctx: OpContext, ids: torch.Tensor | None, width: int, weight: torch.Tensor, transposed: bool, groups: int
) -> torch.Tensor | None:
    """Prune whole groups if there are many, or the same positions in every group if there are few.

    ::

        groups=8, 2 channels each    a unit is one group: both channels, and `groups` becomes smaller
        groups=2, 8 channels each    a unit is one position in both groups: `groups` stays 2
    """
    ci = width // groups
    co = weight.shape[1] if transposed else weight.shape[0] // groups
    own = ctx.side(weight, 0)  # output channels; if transposed, input channels
    inside = ctx.side(weight, 1)  # positions inside a group, of the other side
    if ids is None:
        ids = torch.zeros(width, dtype=torch.int64, device="cpu")
    if prunes_whole_groups(groups, ci, co):
        ctx.freeze([inside], "is a position inside a group that is removed as a whole")
        return _by_group(ctx, ids.view(groups, ci), own, transposed, groups, co)
    return _by_position(ctx, ids.view(groups, ci), own, inside, transposed, groups, co)


def prunes_whole_groups(groups: int, ci: int, co: int) -> bool:
    """Return True if a grouped convolution loses whole groups, of `ci` input and `co` output channels each."""
    return ci == 1 or groups >= max(ci, co)


def _by_group(
    ctx: OpContext, ids: torch.Tensor, own: torch.Tensor | None, transposed: bool, groups: int, co: int
) -> torch.Tensor | None:
    leaders = ids[:, :1]
    if ids.shape[1] > 1:
        ctx.unite(ids, leaders)
    if own is None:
        _freeze_beside_fixed_weight(ctx, leaders)
    else:
        ctx.unite(own.view(groups, -1), leaders)
    ctx.count("groups", leaders.reshape(-1))
    return own if not transposed else leaders.expand(groups, co).reshape(-1)


def _freeze_beside_fixed_weight(ctx: OpContext, ids: torch.Tensor) -> None:
    """A weight that `forward` computes may have no channels: then those of the input cannot be removed either."""
    ctx.freeze([ids], "meets a weight that cannot shrink", "exclude this layer, or free its weight")


def _by_position(
    ctx: OpContext,
    ids: torch.Tensor,
    own: torch.Tensor | None,
    inside: torch.Tensor | None,
    transposed: bool,
    groups: int,
    co: int,
) -> torch.Tensor | None:
    leaders = ids[0]
    ctx.unite(ids, leaders)
    if (own if transposed else inside) is None:
        _freeze_beside_fixed_weight(ctx, leaders)
    if not transposed:
        if inside is not None:
            ctx.unite(inside, leaders)
        if own is not None:
            ctx.unite(own.view(groups, co), own.view(groups, co)[:1])
        return own
    if own is not None:
        ctx.unite(own, ids.reshape(-1))
    return None if inside is None else inside.expand(groups, co).reshape(-1)


def _count_work(ctx: OpContext, positions: torch.Tensor, weight: torch.Tensor, transposed: bool) -> None:
    """MACs = elements of the weight x batch x output positions (input positions if transposed)."""
    factor = positions.shape[0] * math.prod(positions.shape[2:]) * math.prod(weight.shape[2:])
    first, second = (ctx.side(weight, dim) for dim in (0, 1))
    sides = [axis if axis is not None else weight.shape[dim] for dim, axis in enumerate((first, second))]
    inputs, outputs = (sides[0], sides[1]) if transposed else (sides[1], sides[0])
    ctx.work(factor, inputs, outputs, layer=True)
