"""Operators that make tensors out of nothing, or whose output has nothing to do with their input's channels."""

from __future__ import annotations

from typing import Any

import torch

from bnprune.channels.call import Call
from bnprune.channels.call import constant as frozen_positions
from bnprune.channels.facets import NONE, Facets
from bnprune.channels.rules.registry import rule


@rule(
    "empty",
    "empty_permuted",
    "empty_strided",
    "zeros",
    "ones",
    "full",
    "rand",
    "randn",
    "randint",
    "scalar_tensor",
)
def uniform(call: Call, *_: Any, **__: Any) -> Facets:
    """Every element is the same, or drawn from the same distribution: it belongs to no channel."""
    return NONE


@rule(
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
    "rand_like",
    "randn_like",
    "randint_like",
    "new_empty",
    "new_empty_strided",
    "new_zeros",
    "new_ones",
    "new_full",
    "fill",
    "zero",
    "uniform",
    "normal",
    "bernoulli",
    "exponential",
)
def like(call: Call, x: torch.Tensor, *_: Any, **__: Any) -> Facets:
    """The same, made in the shape of another tensor: it shrinks with that tensor."""
    same = isinstance(call.output, torch.Tensor) and call.output.shape == x.shape
    return call.facets(x) if same else NONE


@rule("arange", "linspace", "logspace", "eye", "lift_fresh", "tril_indices", "triu_indices", "randperm", "hann_window")
def positions(call: Call, *_: Any, **__: Any) -> Facets:
    """Each position has a value of its own, so a channel that meets it cannot go."""
    output = call.output
    if not isinstance(output, torch.Tensor):
        return NONE
    why = call.refusal("is combined with a constant whose values depend on the position")
    return frozen_positions(call.findings.ids, output, why)
