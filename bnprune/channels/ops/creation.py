"""Operators that create tensors: constants, random numbers, positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from bnprune.channels.labels import NONE, Labels
from bnprune.channels.op_context import OpContext
from bnprune.channels.op_context import constant as frozen_positions
from bnprune.channels.ops.spec import numeric_arguments, rule


def fill(output: torch.Tensor, number: float, _: Sequence[Any]) -> torch.Tensor:
    """Fill the output of a random operator with one number."""
    return output.fill_(number)


def fill_between(output: torch.Tensor, number: float, args: Sequence[Any]) -> torch.Tensor:
    """Fill with a number between the bounds of a uniform distribution, from one in [0, 1)."""
    low, high = bounds if len(bounds := _floats(args)) == 2 else (0.0, 1.0)
    return output.fill_(low + (high - low) * number)


def fill_with_mean(output: torch.Tensor, _: float, args: Sequence[Any]) -> torch.Tensor:
    """Fill with the mean of a Bernoulli distribution: together with dropout's factor 1 / (1 - p), the identity."""
    probability = _floats(args)
    return output.fill_(probability[0]) if probability else output.copy_(args[0])


def _floats(args: Sequence[Any]) -> list[float]:
    return [arg for arg in args[1:] if isinstance(arg, float)]


@rule("empty", kind="allocation")
@rule("full", "new_full", numbers=numeric_arguments, kind="constant")
@rule("scalar_tensor", numbers=numeric_arguments)
@rule("rand", "randn", constant_draw=fill)
@rule("empty_permuted", "empty_strided", "zeros", "ones", "new_empty", "new_empty_strided", "new_zeros", "new_ones",
      kind="constant")  # fmt: skip
@rule("randint")
def uniform(ctx: OpContext, *_: Any, **__: Any) -> Labels:
    """Every element is the same, or drawn from the same distribution: it belongs to no channel."""
    return NONE


@rule("rand_like", "randn_like", "normal", "exponential", constant_draw=fill)
@rule("uniform", constant_draw=fill_between)
@rule("bernoulli", constant_draw=fill_with_mean)
@rule("full_like", "fill_.Scalar", numbers=numeric_arguments)
@rule("empty_like", "zeros_like", "ones_like", "randint_like", "fill", "zero")
def like(ctx: OpContext, x: torch.Tensor, *_: Any, **__: Any) -> Labels:
    """As `uniform`, in the shape of another tensor: the output shrinks with that tensor."""
    same = isinstance(ctx.output, torch.Tensor) and ctx.output.shape == x.shape
    return ctx.labels(x) if same else NONE


def _value_of_scalar(tensor: torch.Tensor) -> Iterable[float]:
    return numeric_arguments(tensor.item()) if tensor.numel() == 1 else ()


@rule("lift_fresh", keeps_zero="first", numbers=_value_of_scalar)
@rule("arange", "linspace", "logspace", "eye", "tril_indices", "triu_indices", "randperm", "hann_window")
def positions(ctx: OpContext, *_: Any, **__: Any) -> Labels:
    """Each position has a value of its own, so a channel that is combined with it cannot be removed."""
    output = ctx.output
    if not isinstance(output, torch.Tensor):
        return NONE
    why = ctx.refusal("is combined with a constant whose values depend on the position")
    return frozen_positions(ctx.facts.ids, output, why)
