"""Reductions: channels that are reduced to one value are frozen; a reduction over space passes channels through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bnprune.channels.labels import NONE, Labels, varying
from bnprune.channels.op_context import OpContext
from bnprune.channels.ops.spec import rule
from bnprune.channels.pytrees import operands


def _reduce(ctx: OpContext, x: torch.Tensor, dims: Sequence[int], keepdim: bool) -> list[Labels]:
    dims = [dim % x.dim() for dim in dims] if x.dim() else []
    kept: list[torch.Tensor] = []
    for label in ctx.labels(x):
        rest = label if all(label.shape[dim] == 1 for dim in dims) else ctx.merge(label, dims, "is reduced")
        if rest is None:
            continue
        if not keepdim:
            rest = rest.reshape([size for dim, size in enumerate(rest.shape) if dim not in dims])
        kept.append(rest)
    return [tuple(kept)] * len(operands((ctx.output,), {}))


def _mean_on_meta(x: torch.Tensor, dim: Sequence[int] | None = None, keepdim: bool = False) -> torch.Tensor | None:
    """Allocate the mean over some dimensions; PyTorch's meta kernel is a decomposition, which takes 0.5 ms."""
    if not dim or not x.is_floating_point() or not all(-x.dim() <= d < x.dim() for d in dim):
        return None
    dims = {d % x.dim() for d in dim}
    if not x.is_contiguous() or len(dims) < len(dim):
        return None
    shape = [1 if d in dims else size for d, size in enumerate(x.shape) if keepdim or d not in dims]
    return torch.empty(shape, dtype=x.dtype, device="meta")


@rule("mean.dim", keeps_zero="first", meta=_mean_on_meta)
@rule("sum.dim_IntList", "amax", "amin", keeps_zero="first")
@rule("nansum", "logsumexp", "prod.dim_int", "any.dims", "all.dims", "aminmax")
def reduction(
    ctx: OpContext, x: torch.Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False, **_: Any
) -> list[Labels]:
    """Reduce over `dim`; no dimension, or an empty list, means all."""
    dims = [dim] if isinstance(dim, int) else list(dim or range(x.dim()))
    return _reduce(ctx, x, dims, keepdim)


@rule("max.dim", "min.dim", "argmax", "argmin", "any.dim", "all.dim", "median.dim", "mode")
def reduction_of_one(
    ctx: OpContext, x: torch.Tensor, dim: int | None = None, keepdim: bool = False, **_: Any
) -> list[Labels]:
    """Reduce over one dimension, or over all."""
    return _reduce(ctx, x, range(x.dim()) if dim is None else [dim], keepdim)


@rule("var.correction", "std.correction", "var_mean.correction", "std_mean.correction")
def moments(
    ctx: OpContext, x: torch.Tensor, dim: Sequence[int] | None = None, *, keepdim: bool = False, **_: Any
) -> list[Labels]:
    """Reduce to variance, standard deviation, or them and the mean."""
    return _reduce(ctx, x, list(dim or range(x.dim())), keepdim)


@rule("linalg_vector_norm", keeps_zero="first")
@rule("norm.ScalarOpt_dim", "norm.ScalarOpt_dim_dtype")
def norm(
    ctx: OpContext, x: torch.Tensor, ord: Any = 2, dim: Sequence[int] | None = None, keepdim: bool = False, **_: Any
) -> list[Labels]:
    """Reduce to a vector norm."""
    return _reduce(ctx, x, list(dim or range(x.dim())), keepdim)


@rule("mean", "sum", keeps_zero="first")
@rule("max", "min", "prod", "any", "all", "var", "std", "median", "norm.Scalar", "_local_scalar_dense", "equal",
      "is_nonzero")  # fmt: skip
def reduction_of_all(ctx: OpContext, x: torch.Tensor, *others: Any, **_: Any) -> list[Labels]:
    """Reduce everything to a scalar; a scalar read by the model's Python code counts too."""
    for leaf in (x, *others):
        for label in ctx.labels(leaf):
            ctx.merge(label, varying(label), "is reduced to one number")
    return [NONE] * len(operands((ctx.output,), {}))


@rule("cumsum", keeps_zero="first")
@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "cumprod", "logcumsumexp", "cummax",
      "cummin")  # fmt: skip
def mix(ctx: OpContext, x: torch.Tensor, dim: int, *_: Any, **__: Any) -> list[Labels]:
    """Mix elements along one dimension and keep the shape (softmax, cumulative sums)."""
    dim %= x.dim() or 1
    for label in ctx.labels(x):
        if label.shape[dim] > 1:
            ctx.merge(label, [dim])
    return [ctx.labels(x)] * len(operands((ctx.output,), {}))


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c", keeps_zero="first")
def transform(ctx: OpContext, x: torch.Tensor, dims: Sequence[int], *_: Any, **__: Any) -> Labels:
    """Fourier transform over `dims`: its elements are mixed, those along other dimensions pass."""
    return _mixed(ctx, x, dims)


@rule("sort.stable")
def sort_stable(ctx: OpContext, x: torch.Tensor, *, dim: int = -1, **_: Any) -> list[Labels]:
    """Sort along one dimension: values and their positions."""
    return [_mixed(ctx, x, [dim])] * 2


@rule("sort")
def sort(ctx: OpContext, x: torch.Tensor, dim: int = -1, *_: Any) -> list[Labels]:
    """Sort along one dimension: values and their positions."""
    return [_mixed(ctx, x, [dim])] * 2


@rule("topk", "kthvalue")
def topk(ctx: OpContext, x: torch.Tensor, k: int, dim: int = -1, *rest: Any) -> list[Labels]:
    """Take the `k` largest along one dimension, or the `k`-th smallest: values and their positions."""
    keepdim = ctx.op.startswith("aten::topk") or bool(rest and rest[0])
    return _reduce(ctx, x, [dim], keepdim)


def _mixed(ctx: OpContext, x: torch.Tensor, dims: Sequence[int]) -> Labels:
    """Return the labels once elements along `dims` have been mixed; those that vary along these alone are frozen."""
    dims = [dim % x.dim() for dim in dims] if x.dim() else []
    rests = (f if all(f.shape[dim] == 1 for dim in dims) else ctx.merge(f, dims) for f in ctx.labels(x))
    return tuple(rest for rest in rests if rest is not None)
