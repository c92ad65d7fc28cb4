"""Elementwise operators: channels that meet go together."""

from __future__ import annotations

from typing import Any

import torch

from bnprune.channels.call import Call
from bnprune.channels.facets import NONE, Facet, Facets, varying
from bnprune.channels.rules.registry import rule
from bnprune.channels.trees import operands


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
def elementwise(call: Call, *args: Any, **kwargs: Any) -> Facets | list[Facets]:
    """Unite the channels of all tensor operands where they meet."""
    first = operands((call.output,), {})
    rank = first[0].dim()
    met = [facets for facets in map(call.facets, operands(args, kwargs)) if facets]
    plain = len(met) == 1 and all(facet.dim() == rank for facet in met[0])
    joined = met[0] if plain else call.join(met, rank)
    return [joined] * len(first)


@rule("copy_", "copy")
def copy(call: Call, target: torch.Tensor, source: torch.Tensor, *_: Any, **__: Any) -> Facets:
    """Overwrite: what the target held before is gone."""
    return call.join([call.facets(source)], target.dim())


@rule("_prelu_kernel", "prelu")
def prelu(call: Call, x: torch.Tensor, weight: torch.Tensor) -> Facets:
    """Elementwise with a slope per channel; `weight` has shape (C,) or broadcasts."""
    if weight.dim() == 1 and weight.numel() > 1:
        ids = call.axis(x, 1)
        call.bind(weight, 0, ids)
        return call.facets(x)
    return call.join([call.facets(x), call.facets(weight)], x.dim())


@rule("glu")
def glu(call: Call, x: torch.Tensor, dim: int = -1) -> Facets:
    """Gate one half of the channels with the other: both halves lose the same positions."""
    dim %= x.dim()
    return call.join([_half(call, facet, dim) for facet in call.facets(x)], x.dim())


def _half(call: Call, facet: Facet, dim: int) -> Facets:
    if facet.shape[dim] == 1:
        return (facet,)
    first, second = facet.chunk(2, dim)
    call.unite(first, second)
    return (call.moved(first),) if varying(first) else NONE
