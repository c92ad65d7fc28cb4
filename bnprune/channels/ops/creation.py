"""Operators that make tensors out of nothing, or whose output has nothing to do with their input's channels."""

from __future__ import annotations

from typing import Any

import torch

from bnprune.channels.labels import NONE, Labels
from bnprune.channels.op_context import OpContext
from bnprune.channels.op_context import constant as frozen_positions
from bnprune.channels.ops.registry import rule


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
def uniform(ctx: OpContext, *_: Any, **__: Any) -> Labels:
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
def like(ctx: OpContext, x: torch.Tensor, *_: Any, **__: Any) -> Labels:
    """The same, made in the shape of another tensor: it shrinks with that tensor."""
    same = isinstance(ctx.output, torch.Tensor) and ctx.output.shape == x.shape
    return ctx.labels(x) if same else NONE


@rule("arange", "linspace", "logspace", "eye", "lift_fresh", "tril_indices", "triu_indices", "randperm", "hann_window")
def positions(ctx: OpContext, *_: Any, **__: Any) -> Labels:
    """Each position has a value of its own, so a channel that meets it cannot go."""
    output = ctx.output
    if not isinstance(output, torch.Tensor):
        return NONE
    why = ctx.refusal("is combined with a constant whose values depend on the position")
    return frozen_positions(ctx.findings.ids, output, why)
