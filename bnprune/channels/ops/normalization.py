"""Normalisation layers: BatchNorm, GroupNorm, LayerNorm. InstanceNorm is a BatchNorm of reshaped input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bnprune.channels.labels import NONE, Label, Labels, along, varying
from bnprune.channels.op_context import OpContext
from bnprune.channels.ops.elementwise import like_first
from bnprune.channels.ops.spec import rule
from bnprune.channels.torch_internals import pytree

MaybeTensor = torch.Tensor | None


def batch_norm(
    ctx: OpContext, x: torch.Tensor, weight: MaybeTensor, bias: MaybeTensor, mean: MaybeTensor, var: MaybeTensor
) -> Labels:
    """Bind scale, shift and running statistics, each of shape (C,), to the channels of `x`, or to those of a gate."""
    ids = out = ctx.axis(x, 1, passing=(0,))
    if ids is not None and weight is not None:
        ids, out = ctx.gate_site(x, weight, ids)
    for tensor in (weight, bias, mean, var):
        if tensor is not None:
            ctx.bind(tensor, 0, ids)
    if weight is not None:
        ctx.gamma(weight)
    ctx.count("num_features", ids)
    if weight is None or ctx.named(weight) is None:
        ctx.count("num_features", _of_one_sample(ids))
    passed: list[Label] = [label for label in ctx.labels(x) if varying(label) == (0,)]
    return (*passed, along(out, 1, x.dim())) if out is not None else tuple(passed)


def _of_one_sample(ids: torch.Tensor | None) -> torch.Tensor | None:
    """InstanceNorm runs as a BatchNorm of (1, N * C, ...): return the ids of the first C."""
    repeats = [] if ids is None else (ids == ids[0]).nonzero().reshape(-1).tolist()
    return ids[: repeats[1]] if ids is not None and len(repeats) > 1 else None


def _batch_norm_on_meta(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor | None, ...] | None:
    """Allocate the outputs: the normalised input, and empty tensors in place of those for the backward pass.

    PyTorch's meta kernel is a decomposition into twenty operators. Without this, pruning takes twice as long.
    """
    fits = all(tensor is None or tensor.shape == x.shape[1:2] for tensor in rest[:4])
    saved = torch.empty(0, dtype=x.dtype, device="meta")  # `x.new_empty` would be a decomposition, too
    return (like_first(x), saved, saved) if fits and x.is_floating_point() else None


@rule("native_batch_norm", "cudnn_batch_norm", keeps_zero="any", kind="batch_norm", meta=_batch_norm_on_meta)
@rule("miopen_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
      "_batch_norm_with_update", "_batch_norm_no_update", keeps_zero="any", kind="batch_norm")  # fmt: skip
def native_batch_norm(
    ctx: OpContext,
    x: torch.Tensor,
    weight: MaybeTensor,
    bias: MaybeTensor,
    mean: MaybeTensor = None,
    var: MaybeTensor = None,
    *_: Any,
    **__: Any,
) -> list[Labels]:
    """Normalise each channel with its own statistics."""
    return [batch_norm(ctx, x, weight, bias, mean, var)]


@rule("_native_batch_norm_legit.no_stats", keeps_zero="any", kind="batch_norm")
def batch_norm_without_statistics(
    ctx: OpContext, x: torch.Tensor, weight: MaybeTensor, bias: MaybeTensor, *_: Any, **__: Any
) -> list[Labels]:
    """Normalise with the statistics of the batch (`track_running_stats=False`)."""
    return [batch_norm(ctx, x, weight, bias, None, None)]


@rule("native_group_norm", keeps_zero="any")
def group_norm(
    ctx: OpContext,
    x: torch.Tensor,
    weight: MaybeTensor,
    bias: MaybeTensor,
    n: int,
    channels: int,
    positions: int,
    groups: int,
    eps: float,
) -> list[Labels]:
    """Normalise groups of channels: a group is removed as a whole, since its statistics depend on all its channels."""
    ids = ctx.axis(x, 1)
    if ids is not None:
        rest = ctx.merge(ids.view(groups, -1), [1], "shares GroupNorm statistics")
        module = ctx.facts.modules.get(ctx.site)
        if getattr(module, "num_groups", None) != groups:
            ctx.freeze([rest], "is normalised in a fixed number of groups", "use torch.nn.GroupNorm")
        if rest is not None:
            ctx.count("num_groups", rest.reshape(-1))
            ctx.count("num_channels", ids)
    for tensor in (weight, bias):
        if tensor is not None:
            ctx.bind(tensor, 0, ids)
    labels = NONE if ids is None else (along(ids, 1, x.dim()),)
    return [labels]


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", keeps_zero="first")
def layer_norm(
    ctx: OpContext, x: torch.Tensor, shape: Sequence[int], weight: MaybeTensor = None, *rest: Any
) -> list[Labels]:
    """Normalise over the last dimensions: the statistics change with every channel, so all of them stay."""
    dims = range(x.dim() - len(shape), x.dim())
    for label in ctx.labels(x):
        if any(label.shape[dim] > 1 for dim in dims):
            ctx.freeze(
                [label],
                "shares LayerNorm statistics with all other channels",
                "use BatchNorm here, or prune the layers before and after only",
            )
    for tensor in (weight, *rest):
        if isinstance(tensor, torch.Tensor):
            ctx.freeze(ctx.labels(tensor), "belongs to a LayerNorm")
    outputs = len(pytree.tree_leaves(ctx.output))
    return [ctx.labels(x)] + [NONE] * (outputs - 1)


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(ctx: OpContext, v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> list[Labels]:
    """Reparametrise a weight by its norm: the norm changes with the inputs, and that of a masked output is 0/0."""
    ids = ctx.axis(v, dim)
    for side in range(v.dim()):
        ctx.freeze(
            [ctx.axis(v, side)],
            "belongs to a weight-normed layer",
            "remove the weight norm first (torch.nn.utils.parametrize.remove_parametrizations)",
        )
    ctx.bind(g, dim, ids)
    labels = NONE if ids is None else (along(ids, dim, v.dim()),)
    return [labels] * len(pytree.tree_leaves(ctx.output))


@rule("renorm", keeps_zero="first")
def renorm(ctx: OpContext, x: torch.Tensor, p: float, dim: int, *_: Any) -> Labels:
    """Bound the norm of each slice along `dim`, which changes with everything else in the slice."""
    dim %= x.dim()
    for label in ctx.labels(x):
        if varying(label) != (dim,):
            ctx.freeze([label], "shares a norm with other channels", "remove the parametrization first")
    return ctx.labels(x)
