"""Elementwise operators: channels that meet go together."""

from __future__ import annotations

from typing import Any

import torch

from bnprune.channels.labels import NONE, Label, Labels, varying
from bnprune.channels.op_context import OpContext
from bnprune.channels.ops.registry import rule
from bnprune.channels.pytrees import operands


@rule(
    "elementwise::any",
    "hardswish",
    "hardsigmoid",
    "relu6",
    "log_sigmoid_forward",
    "floor_divide",
    "_to_copy",
    "detach",
    "alias",
    "lift",
    "dropout",
    "alpha_dropout",
    "feature_dropout",
    "native_dropout",
    "contiguous",
    "rrelu_with_noise",
    "clamp",
)
def elementwise(ctx: OpContext, *args: Any, **kwargs: Any) -> Labels | list[Labels]:
    """Unite the channels of all tensor operands where they meet."""
    first = operands((ctx.output,), {})
    rank = first[0].dim()
    met = [labels for labels in map(ctx.labels, operands(args, kwargs)) if labels]
    plain = len(met) == 1 and all(label.dim() == rank for label in met[0])
    joined = met[0] if plain else ctx.join(met, rank)
    return [joined] * len(first)


@rule("copy_", "copy")
def copy(ctx: OpContext, target: torch.Tensor, source: torch.Tensor, *_: Any, **__: Any) -> Labels:
    """Overwrite: what the target held before is gone."""
    return ctx.join([ctx.labels(source)], target.dim())


@rule("_prelu_kernel", "prelu")
def prelu(ctx: OpContext, x: torch.Tensor, weight: torch.Tensor) -> Labels:
    """Elementwise with a slope per channel; `weight` has shape (C,) or broadcasts."""
    if weight.dim() == 1 and weight.numel() > 1:
        ids = ctx.axis(x, 1)
        ctx.bind(weight, 0, ids)
        return ctx.labels(x)
    return ctx.join([ctx.labels(x), ctx.labels(weight)], x.dim())


@rule("glu")
def glu(ctx: OpContext, x: torch.Tensor, dim: int = -1) -> Labels:
    """Gate one half of the channels with the other: both halves lose the same positions."""
    dim %= x.dim()
    return ctx.join([_half(ctx, label, dim) for label in ctx.labels(x)], x.dim())


def _half(ctx: OpContext, label: Label, dim: int) -> Labels:
    if label.shape[dim] == 1:
        return (label,)
    first, second = label.chunk(2, dim)
    ctx.unite(first, second)
    return (ctx.moved(first),) if varying(first) else NONE
