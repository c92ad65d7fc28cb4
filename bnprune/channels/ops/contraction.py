"""Convolutions and matrix products: the input's channels tie to one side of the weight, the other side is new.

Legend: N batch, Ci input channels, Co output channels, g groups, K kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from bnprune.channels.labels import NONE, Labels, along, varying
from bnprune.channels.op_context import OpContext
from bnprune.channels.ops.registry import rule

_FREE_THE_OTHER = "let the other operand have channels as well, or exclude this layer"

_ZERO = "use an activation that is zero at zero (ReLU, SiLU, GELU, tanh) on one side"


@rule("convolution", "convolution_overrideable", "cudnn_convolution", "mkldnn_convolution")
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
    """Prune whole groups where there are many, or the same positions of every group where there are few."""
    ci = width // groups
    co = weight.shape[1] if transposed else weight.shape[0] // groups
    own = ctx.side(weight, 0)  # transposed: the input's channels; else the output's
    inside = ctx.side(weight, 1)  # positions inside a group, of the other side
    if ids is None:
        ids = torch.zeros(width, dtype=torch.int64, device="cpu")
    if ci == 1 or groups >= max(ci, co):
        ctx.freeze([inside], "is a position inside a group that goes as a whole")
        return _by_group(ctx, ids.view(groups, ci), own, transposed, groups, co)
    return _by_position(ctx, ids.view(groups, ci), own, inside, transposed, groups, co)


def _by_group(
    ctx: OpContext, ids: torch.Tensor, own: torch.Tensor | None, transposed: bool, groups: int, co: int
) -> torch.Tensor | None:
    leaders = ids[:, :1]
    if ids.shape[1] > 1:
        ctx.unite(ids, leaders)
    if own is not None:
        ctx.unite(own.view(groups, -1), leaders)
    ctx.count("groups", leaders.reshape(-1))
    return own if not transposed else leaders.expand(groups, co).reshape(-1)


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
    """MACs = elements of the weight x batch x output positions (input positions when transposed)."""
    factor = positions.shape[0] * math.prod(positions.shape[2:]) * math.prod(weight.shape[2:])
    first, second = (ctx.side(weight, dim) for dim in (0, 1))
    sides = [axis if axis is not None else weight.shape[dim] for dim, axis in enumerate((first, second))]
    inputs, outputs = (sides[0], sides[1]) if transposed else (sides[1], sides[0])
    ctx.work(factor, inputs, outputs, layer=True)


@rule("mm", "bmm", "matmul")
def product(ctx: OpContext, a: torch.Tensor, b: torch.Tensor, *_: Any, **__: Any) -> Labels:
    """Multiply (..., N, K) with (..., K, M)."""
    return contract(ctx, a, b)


@rule("addmm", "baddbmm", "addbmm")
def add_product(ctx: OpContext, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **_: Any) -> Labels:
    """Multiply (..., N, K) with (..., K, M) and add a bias that broadcasts to (..., N, M)."""
    return ctx.join([contract(ctx, a, b), ctx.labels(bias)], a.dim())


@rule("linear")
def linear(ctx: OpContext, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Labels:
    """Multiply (..., Ci) with the transpose of (Co, Ci)."""
    passed, ids = _rows(ctx, x)
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
    """Products that contract to a vector or a number: everything contracted stays."""
    for tensor in args:
        ctx.freeze(
            ctx.labels(tensor), "is contracted to a vector", "exclude this layer, or remove the spectral norm first"
        )
    return NONE


def contract(ctx: OpContext, a: torch.Tensor, b: torch.Tensor) -> Labels:
    """Unite channels along the contracted dimension; those along the others pass to the output."""
    rank = a.dim()
    row, column = rank - 2, rank - 1
    left = [_settle(ctx, f, column, row) for f in ctx.labels(a)]
    right = [_settle(ctx, f, row, column) for f in ctx.labels(b)]
    met = [f for f in left if f is not None and f.shape[column] > 1]
    meets = [f.transpose(row, column) for f in right if f is not None and f.shape[row] > 1]
    if met and meets and not ctx.is_zero(a) and not ctx.is_zero(b):
        ctx.freeze([*met, *meets], "is summed up in a product where it is not zero", _ZERO)
    _meet(ctx, met, meets)
    rows = tuple(f for f in left if f is not None and f.shape[column] == 1)
    columns = tuple(f for f in right if f is not None and f.shape[row] == 1)
    _count_product(ctx, a, met, b, columns)
    return ctx.join([rows, columns], rank)


def _settle(ctx: OpContext, label: torch.Tensor, contracted: int, other: int) -> torch.Tensor | None:
    """Make a label that changes along the contracted dimension independent of the free one."""
    if label.shape[contracted] > 1 and label.shape[other] > 1:
        return ctx.merge(label, [other], "is spread over the rows of a matrix product")
    return label


def _meet(ctx: OpContext, left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    by_dims = {varying(label): label for label in right}
    for label in left:
        twin = by_dims.pop(varying(label), None)
        if twin is None and by_dims:
            twin = by_dims.pop(next(iter(by_dims)))
            ctx.join([(label,), (twin,)], label.dim())
        elif twin is None:
            ctx.freeze([label], "meets a dimension of a matrix product that cannot shrink", _FREE_THE_OTHER)
        else:
            ctx.unite(label, twin)
    ctx.freeze(by_dims.values(), "meets a dimension of a matrix product that cannot shrink", _FREE_THE_OTHER)


def _count_product(ctx: OpContext, a: torch.Tensor, met: list[torch.Tensor], b: torch.Tensor, columns: Labels) -> None:
    batch = math.prod(a.shape[:-2])
    inputs: torch.Tensor | int = a.shape[-1]
    for label in met:
        if varying(label) == (a.dim() - 1,):
            inputs = label.reshape(-1)
    outputs: torch.Tensor | int = b.shape[-1]
    for label in columns:
        if varying(label) == (a.dim() - 1,):
            outputs = label.reshape(-1)
    layer = ctx.op.startswith(("aten::mm", "aten::addmm"))
    if layer:
        _count_features(ctx, inputs, outputs)
    ctx.work(batch * a.shape[-2], inputs, outputs, layer=layer)
