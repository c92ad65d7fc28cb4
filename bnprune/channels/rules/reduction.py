"""Reductions: what is reduced together goes together, so a reduction over all channels freezes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bnprune.channels.call import Call
from bnprune.channels.facets import NONE, Facets, varying
from bnprune.channels.rules.registry import rule
from bnprune.channels.trees import operands


def _reduce(call: Call, x: torch.Tensor, dims: Sequence[int], keepdim: bool) -> list[Facets]:
    dims = [dim % x.dim() for dim in dims] if x.dim() else []
    kept: list[torch.Tensor] = []
    for facet in call.facets(x):
        rest = facet if all(facet.shape[dim] == 1 for dim in dims) else call.merge(facet, dims, "is reduced")
        if rest is None:
            continue
        if not keepdim:
            rest = rest.reshape([size for dim, size in enumerate(rest.shape) if dim not in dims])
        kept.append(rest)
    return [tuple(kept)] * len(operands((call.output,), {}))


@rule(
    "mean.dim",
    "sum.dim_IntList",
    "nansum",
    "amax",
    "amin",
    "logsumexp",
    "prod.dim_int",
    "any.dims",
    "all.dims",
    "aminmax",
)
def reduction(
    call: Call, x: torch.Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False, **_: Any
) -> list[Facets]:
    """Reduce over `dim`; no dimension, or an empty list, means all."""
    dims = [dim] if isinstance(dim, int) else list(dim or range(x.dim()))
    return _reduce(call, x, dims, keepdim)


@rule("max.dim", "min.dim", "argmax", "argmin", "any.dim", "all.dim", "median.dim", "mode")
def reduction_of_one(
    call: Call, x: torch.Tensor, dim: int | None = None, keepdim: bool = False, **_: Any
) -> list[Facets]:
    """Reduce over one dimension, or over all."""
    return _reduce(call, x, range(x.dim()) if dim is None else [dim], keepdim)


@rule("var.correction", "std.correction", "var_mean.correction", "std_mean.correction")
def moments(
    call: Call, x: torch.Tensor, dim: Sequence[int] | None = None, *, keepdim: bool = False, **_: Any
) -> list[Facets]:
    """Reduce to variance, standard deviation, or them and the mean."""
    return _reduce(call, x, list(dim or range(x.dim())), keepdim)


@rule("linalg_vector_norm", "norm.ScalarOpt_dim", "norm.ScalarOpt_dim_dtype")
def norm(
    call: Call, x: torch.Tensor, ord: Any = 2, dim: Sequence[int] | None = None, keepdim: bool = False, **_: Any
) -> list[Facets]:
    """Reduce to a vector norm."""
    return _reduce(call, x, list(dim or range(x.dim())), keepdim)


@rule("mean", "sum", "max", "min", "prod", "any", "all", "var", "std", "median", "norm.Scalar", "_local_scalar_dense",
      "equal", "is_nonzero")  # fmt: skip
def reduction_of_all(call: Call, x: torch.Tensor, *others: Any, **_: Any) -> list[Facets]:
    """Reduce everything to a scalar; a scalar read by the model's Python code counts too."""
    for leaf in (x, *others):
        for facet in call.facets(leaf):
            call.merge(facet, varying(facet), "is reduced to one number")
    return [NONE] * len(operands((call.output,), {}))


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "cumsum", "cumprod", "logcumsumexp",
      "cummax", "cummin")  # fmt: skip
def mix(call: Call, x: torch.Tensor, dim: int, *_: Any, **__: Any) -> list[Facets]:
    """Mix elements along one dimension and keep the shape (softmax, cumulative sums)."""
    dim %= x.dim() or 1
    for facet in call.facets(x):
        if facet.shape[dim] > 1:
            call.merge(facet, [dim])
    return [call.facets(x)] * len(operands((call.output,), {}))
