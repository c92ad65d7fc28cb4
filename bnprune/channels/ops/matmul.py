"""Matrix products: channels along the contracted dimension are united, those along the others pass to the output.

Legend: N rows, K contracted dimension, M columns; Ci input channels, Co output channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from bnprune.channels.labels import NONE, Labels, along, varying
from bnprune.channels.op_context import OpContext
from bnprune.channels.ops.spec import rule, zero_if_weights_are

_FREE_THE_OTHER = "let the other operand have channels as well, or exclude this layer"


def _one_row(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    """Multiply (N, K) with (K, M), with all but the first row of the second at zero."""
    return a[:, :1] * (b[:1] * math.sqrt(b.shape[0])) if a.shape[1] == b.shape[0] else None


def _one_row_and_bias(bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    """Multiply like `_one_row`, and add a bias of shape (M,)."""
    product = _one_row(a, b)
    return None if product is None else product + bias


def _product_on_meta(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    """Allocate the product of (N, K) and (K, M)."""
    fits = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and a.dtype == b.dtype
    return torch.empty((a.shape[0], b.shape[1]), dtype=a.dtype, device="meta") if fits else None


def _sum_on_meta(bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    """Allocate the product of (N, K) and (K, M), to which a bias of shape (M,) is added."""
    fits = bias.dtype == a.dtype and bias.shape == b.shape[1:]
    return _product_on_meta(a, b) if fits else None


@rule("mm", keeps_zero="any", kind="linear", weight=1, surrogate=_one_row, meta=_product_on_meta)
@rule("bmm", "matmul", keeps_zero="any")
def product(ctx: OpContext, a: torch.Tensor, b: torch.Tensor, *_: Any, **__: Any) -> Labels:
    """Multiply (..., N, K) with (..., K, M)."""
    return contract(ctx, a, b)


@rule("addmm", keeps_zero="any", kind="linear", weight=2, surrogate=_one_row_and_bias, meta=_sum_on_meta)
@rule("baddbmm", "addbmm", "_sparse_addmm")
def add_product(ctx: OpContext, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **_: Any) -> Labels:
    """Multiply (..., N, K) with (..., K, M) and add a bias that broadcasts to (..., N, M)."""
    return ctx.join([contract(ctx, a, b), ctx.labels(bias)], a.dim())


@rule("linear", keeps_zero=zero_if_weights_are, kind="linear", weight=1)
def linear(ctx: OpContext, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Labels:
    """Multiply (..., Ci) with the transpose of (Co, Ci)."""
    passed, ids = _rows(ctx, x)
    ctx.contract(x, weight, [ids])
    ctx.bind(weight, 1, ids)
    out = ctx.side(weight, 0)
    if bias is not None:
        ctx.bind(bias, 0, out)
    _count_features(ctx, ids, out)
    ctx.work(math.prod(x.shape[:-1]), *_sides(ids, x.shape[-1], out, weight.shape[0]), layer=True)
    return passed if out is None else (*passed, along(out, x.dim() - 1, x.dim()))


def _count_features(ctx: OpContext, inputs: torch.Tensor | int | None, outputs: torch.Tensor | int | None) -> None:
    for attribute in ("in_features", "input_size"):  # the latter in recurrent layers
        ctx.count(attribute, inputs)
    ctx.count("out_features", outputs)


def _rows(ctx: OpContext, x: torch.Tensor) -> tuple[Labels, torch.Tensor | None]:
    last = x.dim() - 1
    passed = tuple(label for label in ctx.labels(x) if label.shape[last] == 1)
    return passed, ctx.axis(x, last, passing=range(last))


def _sides(
    ids: torch.Tensor | None, width: int, out: torch.Tensor | None, out_width: int
) -> tuple[torch.Tensor | int, torch.Tensor | int]:
    return (width if ids is None else ids), (out_width if out is None else out)


@rule("mv", "dot", "vdot", "addmv")
def vector_product(ctx: OpContext, *args: Any, **_: Any) -> Labels:
    """Contract to a vector or a number: all channels that are contracted stay."""
    for tensor in args:
        ctx.freeze(
            ctx.labels(tensor), "is contracted to a vector", "exclude this layer, or remove the spectral norm first"
        )
    return NONE


def contract(ctx: OpContext, a: torch.Tensor, b: torch.Tensor) -> Labels:
    """Unite channels along the contracted dimension; those along the others pass to the output."""
    rank = a.dim()
    row, column = rank - 2, rank - 1  # a: (..., N, K) contracts its columns, b: (..., K, M) its rows
    left = [_without_rows(ctx, f, column, row) for f in ctx.labels(a)]
    right = [_without_rows(ctx, f, row, column) for f in ctx.labels(b)]
    contracted_a = [f for f in left if f is not None and f.shape[column] > 1]
    contracted_b = [f.transpose(row, column) for f in right if f is not None and f.shape[row] > 1]
    if contracted_a and contracted_b:
        ctx.contract(a, b, [*contracted_a, *contracted_b])
    _unite_contracted(ctx, contracted_a, contracted_b)
    rows = tuple(f for f in left if f is not None and f.shape[column] == 1)
    columns = tuple(f for f in right if f is not None and f.shape[row] == 1)
    _count_product(ctx, a, contracted_a, b, columns)
    return ctx.join([rows, columns], rank)


def _without_rows(ctx: OpContext, label: torch.Tensor, contracted: int, other: int) -> torch.Tensor | None:
    """Return a label that varies along the contracted dimension or along the other one, not along both.

    With whole heads, a label that varies along the batch dimensions, which are the heads, varies along these alone: the
    contracted dimension of each head stays whole.
    """
    if ctx.whole_heads and label.shape[contracted] > 1 and any(size > 1 for size in label.shape[:-2]):
        return ctx.merge(label, [contracted, other], "is contracted within a head")
    if label.shape[contracted] > 1 and label.shape[other] > 1:
        return ctx.merge(label, [other], "is spread over the rows of a matrix product")
    return label


def _unite_contracted(ctx: OpContext, left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    by_dims = {varying(label): label for label in right}
    for label in left:
        partner = by_dims.pop(varying(label), None)
        if partner is None and by_dims:
            partner = by_dims.pop(next(iter(by_dims)))
            ctx.join([(label,), (partner,)], label.dim())
        elif partner is None:
            ctx.freeze([label], "meets a dimension of a matrix product that cannot shrink", _FREE_THE_OTHER)
        else:
            ctx.unite(label, partner)
    ctx.freeze(by_dims.values(), "meets a dimension of a matrix product that cannot shrink", _FREE_THE_OTHER)


def _count_product(
    ctx: OpContext, a: torch.Tensor, contracted: list[torch.Tensor], b: torch.Tensor, columns: Labels
) -> None:
    batch = math.prod(a.shape[:-2])
    inputs: torch.Tensor | int = a.shape[-1]
    for label in contracted:
        if varying(label) == (a.dim() - 1,):
            inputs = label.reshape(-1)
    outputs: torch.Tensor | int = b.shape[-1]
    for label in columns:
        if varying(label) == (a.dim() - 1,):
            outputs = label.reshape(-1)
    if ctx.kind == "linear":
        _count_features(ctx, inputs, outputs)
    ctx.work(batch * a.shape[-2], inputs, outputs, layer=ctx.kind == "linear")
