"""Convolutions and matrix products: the input's channels tie to one side of the weight, the other side is new.

Legend: N batch, Ci input channels, Co output channels, g groups, K kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from bnprune.channels.call import Call
from bnprune.channels.facets import NONE, Facets, along, varying
from bnprune.channels.rules.registry import rule

_FREE_THE_OTHER = "let the other operand have channels as well, or exclude this layer"

_ZERO = "use an activation that is zero at zero (ReLU, SiLU, GELU, tanh) on one side"


@rule("convolution", "convolution_overrideable", "cudnn_convolution", "mkldnn_convolution")
def convolution(
    call: Call,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Facets:
    """Convolve (N, Ci, ...) with (Co, Ci/g, K...), transposed (Ci, Co/g, K...)."""
    passed = tuple(facet for facet in call.facets(x) if varying(facet) == (0,))
    ids = call.axis(x, 1, passing=(0,))
    _freeze_kernel(call, weight)
    if groups == 1:
        source, sink = (0, 1) if transposed else (1, 0)
        call.bind(weight, source, ids)
        out = call.side(weight, sink)
    else:
        out = _grouped(call, ids, x.shape[1], weight, transposed, groups)
    if bias is not None:
        call.bind(bias, 0, out)
    call.count("in_channels", ids)
    call.count("out_channels", out)
    output = call.output
    assert isinstance(output, torch.Tensor)
    _count_work(call, x if transposed else output, weight, transposed)
    return passed if out is None else (*passed, along(out, 1, x.dim()))


def _freeze_kernel(call: Call, weight: torch.Tensor) -> None:
    if call.named(weight) is None:
        for facet in call.facets(weight):
            if any(dim > 1 for dim in varying(facet)):
                call.freeze([facet], "is a kernel position")


def _grouped(
    call: Call, ids: torch.Tensor | None, width: int, weight: torch.Tensor, transposed: bool, groups: int
) -> torch.Tensor | None:
    """Prune whole groups where there are many, or the same positions of every group where there are few."""
    ci = width // groups
    co = weight.shape[1] if transposed else weight.shape[0] // groups
    own = call.side(weight, 0)  # transposed: the input's channels; else the output's
    inside = call.side(weight, 1)  # positions inside a group, of the other side
    if ids is None:
        ids = torch.zeros(width, dtype=torch.int64, device="cpu")
    if ci == 1 or groups >= max(ci, co):
        call.freeze([inside], "is a position inside a group that goes as a whole")
        return _by_group(call, ids.view(groups, ci), own, transposed, groups, co)
    return _by_position(call, ids.view(groups, ci), own, inside, transposed, groups, co)


def _by_group(
    call: Call, ids: torch.Tensor, own: torch.Tensor | None, transposed: bool, groups: int, co: int
) -> torch.Tensor | None:
    leaders = ids[:, :1]
    if ids.shape[1] > 1:
        call.unite(ids, leaders)
    if own is not None:
        call.unite(own.view(groups, -1), leaders)
    call.count("groups", leaders.reshape(-1))
    return own if not transposed else leaders.expand(groups, co).reshape(-1)


def _by_position(
    call: Call,
    ids: torch.Tensor,
    own: torch.Tensor | None,
    inside: torch.Tensor | None,
    transposed: bool,
    groups: int,
    co: int,
) -> torch.Tensor | None:
    leaders = ids[0]
    call.unite(ids, leaders)
    if not transposed:
        if inside is not None:
            call.unite(inside, leaders)
        if own is not None:
            call.unite(own.view(groups, co), own.view(groups, co)[:1])
        return own
    if own is not None:
        call.unite(own, ids.reshape(-1))
    return None if inside is None else inside.expand(groups, co).reshape(-1)


def _count_work(call: Call, positions: torch.Tensor, weight: torch.Tensor, transposed: bool) -> None:
    """MACs = elements of the weight x batch x output positions (input positions when transposed)."""
    factor = positions.shape[0] * math.prod(positions.shape[2:]) * math.prod(weight.shape[2:])
    first, second = (call.side(weight, dim) for dim in (0, 1))
    sides = [axis if axis is not None else weight.shape[dim] for dim, axis in enumerate((first, second))]
    inputs, outputs = (sides[0], sides[1]) if transposed else (sides[1], sides[0])
    call.work(factor, inputs, outputs, layer=True)


@rule("mm", "bmm", "matmul")
def product(call: Call, a: torch.Tensor, b: torch.Tensor, *_: Any, **__: Any) -> Facets:
    """Multiply (..., N, K) with (..., K, M)."""
    return contract(call, a, b)


@rule("addmm", "baddbmm", "addbmm")
def add_product(call: Call, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **_: Any) -> Facets:
    """Multiply (..., N, K) with (..., K, M) and add a bias that broadcasts to (..., N, M)."""
    return call.join([contract(call, a, b), call.facets(bias)], a.dim())


@rule("linear")
def linear(call: Call, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Facets:
    """Multiply (..., Ci) with the transpose of (Co, Ci)."""
    passed, ids = _rows(call, x)
    call.bind(weight, 1, ids)
    out = call.side(weight, 0)
    if bias is not None:
        call.bind(bias, 0, out)
    _count_features(call, ids, out)
    call.work(math.prod(x.shape[:-1]), *_sides(ids, x.shape[-1], out, weight.shape[0]), layer=True)
    return passed if out is None else (*passed, along(out, x.dim() - 1, x.dim()))


def _count_features(call: Call, inputs: torch.Tensor | int | None, outputs: torch.Tensor | int | None) -> None:
    for attribute in ("in_features", "input_size"):  # the latter in recurrent layers
        call.count(attribute, inputs)
    call.count("out_features", outputs)


def _rows(call: Call, x: torch.Tensor) -> tuple[Facets, torch.Tensor | None]:
    last = x.dim() - 1
    passed = tuple(facet for facet in call.facets(x) if facet.shape[last] == 1)
    return passed, call.axis(x, last, passing=range(last))


def _sides(
    ids: torch.Tensor | None, width: int, out: torch.Tensor | None, out_width: int
) -> tuple[torch.Tensor | int, torch.Tensor | int]:
    return (width if ids is None else ids), (out_width if out is None else out)


@rule("mv", "dot", "vdot", "addmv")
def vector_product(call: Call, *args: Any, **_: Any) -> Facets:
    """Products that contract to a vector or a number: everything contracted stays."""
    for tensor in args:
        call.freeze(
            call.facets(tensor), "is contracted to a vector", "exclude this layer, or remove the spectral norm first"
        )
    return NONE


def contract(call: Call, a: torch.Tensor, b: torch.Tensor) -> Facets:
    """Unite channels along the contracted dimension; those along the others pass to the output."""
    rank = a.dim()
    row, column = rank - 2, rank - 1
    left = [_settle(call, f, column, row) for f in call.facets(a)]
    right = [_settle(call, f, row, column) for f in call.facets(b)]
    met = [f for f in left if f is not None and f.shape[column] > 1]
    meets = [f.transpose(row, column) for f in right if f is not None and f.shape[row] > 1]
    if met and meets and not call.is_zero(a) and not call.is_zero(b):
        call.freeze([*met, *meets], "is summed up in a product where it is not zero", _ZERO)
    _meet(call, met, meets)
    rows = tuple(f for f in left if f is not None and f.shape[column] == 1)
    columns = tuple(f for f in right if f is not None and f.shape[row] == 1)
    _count_product(call, a, met, b, columns)
    return call.join([rows, columns], rank)


def _settle(call: Call, facet: torch.Tensor, contracted: int, other: int) -> torch.Tensor | None:
    """Make a facet that changes along the contracted dimension independent of the free one."""
    if facet.shape[contracted] > 1 and facet.shape[other] > 1:
        return call.merge(facet, [other], "is spread over the rows of a matrix product")
    return facet


def _meet(call: Call, left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    by_dims = {varying(facet): facet for facet in right}
    for facet in left:
        twin = by_dims.pop(varying(facet), None)
        if twin is None and by_dims:
            twin = by_dims.pop(next(iter(by_dims)))
            call.join([(facet,), (twin,)], facet.dim())
        elif twin is None:
            call.freeze([facet], "meets a dimension of a matrix product that cannot shrink", _FREE_THE_OTHER)
        else:
            call.unite(facet, twin)
    call.freeze(by_dims.values(), "meets a dimension of a matrix product that cannot shrink", _FREE_THE_OTHER)


def _count_product(call: Call, a: torch.Tensor, met: list[torch.Tensor], b: torch.Tensor, columns: Facets) -> None:
    batch = math.prod(a.shape[:-2])
    inputs: torch.Tensor | int = a.shape[-1]
    for facet in met:
        if varying(facet) == (a.dim() - 1,):
            inputs = facet.reshape(-1)
    outputs: torch.Tensor | int = b.shape[-1]
    for facet in columns:
        if varying(facet) == (a.dim() - 1,):
            outputs = facet.reshape(-1)
    layer = call.op.startswith(("aten::mm", "aten::addmm"))
    if layer:
        _count_features(call, inputs, outputs)
    call.work(batch * a.shape[-2], inputs, outputs, layer=layer)
