"""Mean and variance of each channel of a tensor, estimated without data, operator by operator.

A BatchNorm writes mean β and variance γ² per channel, whatever it reads. From there on, each operator changes them in
its own way; channels and positions are taken as independent, and inputs of the network as standard normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch


class Moments(NamedTuple):
    """Mean and variance of channels, float64."""

    ids: torch.Tensor
    """Channel ids, shape (n,)."""
    mean: torch.Tensor
    """Shape (n,)."""
    variance: torch.Tensor
    """Shape (n,)."""


def standard(ids: torch.Tensor) -> Moments:
    """Return mean 0 and variance 1, for values without an estimate."""
    return Moments(ids, torch.zeros(len(ids), dtype=torch.float64), torch.ones(len(ids), dtype=torch.float64))


def of_norm(ids: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None) -> Moments:
    """Return the moments of a normalisation's output: mean β, variance γ². Scale and shift have shape (n,)."""
    mean, variance = standard(ids)[1:]
    return Moments(ids, mean if shift is None else shift, variance if scale is None else scale.square())


def of_layer(ids: torch.Tensor, x: Moments | None, weight: torch.Tensor, bias: torch.Tensor | None) -> Moments:
    """Return the moments of the output of a convolution or linear layer.

    mean = Σ w·E[x] + b and variance = Σ w²·Var[x] over the inputs and kernel positions of each output channel.

    Args:
        ids: Channel ids of the output, shape (Co,).
        x: Moments of the input, of (Ci,) channels; None if its channels are unknown.
        weight: Shape (Co, Ci / groups, K...).
        bias: Shape (Co,).
    """
    taps = weight.detach().cpu() if weight.dim() > 2 else weight.detach().cpu()[..., None]
    taps = (taps if taps.dtype == torch.float64 else taps.float()).flatten(2)
    width = taps.shape[1]
    if x is None or len(x.ids) % width or taps.shape[0] % (len(x.ids) // width):
        mean, variance = standard(ids)[1:]
        return Moments(ids, mean, taps.square().sum((1, 2)).double() * variance)
    groups = len(x.ids) // width
    by_group = taps.unflatten(0, (groups, -1))  # (groups, Co / groups, Ci / groups, K)
    x_mean, x_variance = (values.to(taps.dtype).view(groups, width, 1) for values in (x.mean, x.variance))
    mean = (_sum_of_last(by_group) @ x_mean).flatten().double()
    variance = (_sum_of_last(by_group.square()) @ x_variance).flatten().double()
    return Moments(ids, mean if bias is None else mean + bias.detach().double().cpu(), variance)


def _sum_of_last(values: torch.Tensor) -> torch.Tensor:
    return values[..., 0] if values.shape[-1] == 1 else values.sum(-1)  # no copy of a large linear layer's weight


Rule = Callable[[Moments, tuple[float, ...]], tuple[torch.Tensor, torch.Tensor]]
"""Returns mean and variance of an operator's output, given those of its one input and the operator's numbers."""


def _relu(x: Moments, _: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the moments of max(x, 0) for normal x."""
    deviation = x.variance.sqrt()
    ratio = x.mean / deviation.clamp(min=1e-300)
    positive = torch.special.ndtr(ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    mean = x.mean * positive + deviation * density
    square = (x.mean.square() + x.variance) * positive + x.mean * deviation * density
    return mean, (square - mean.square()).clamp(min=0)


def _sigmoid(x: Moments, _: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the moments of sigmoid(x), with its slope at the mean."""
    mean = torch.sigmoid(x.mean)
    return mean, torch.minimum((mean * (1 - mean)).square() * x.variance, mean * (1 - mean))


def _tanh(x: Moments, _: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    mean = torch.tanh(x.mean)
    return mean, x.variance / (1 + x.variance)


def _scaled(x: Moments, numbers: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    factor = math.prod(numbers)
    return x.mean * factor, x.variance * factor**2


def _divided(x: Moments, numbers: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    return _scaled(x, tuple(1 / number for number in numbers if number))


def _shifted(x: Moments, numbers: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    return x.mean + sum(numbers[:1]), x.variance


_UNARY: dict[str, Rule] = {
    **dict.fromkeys(("relu", "relu6", "hardtanh", "gelu", "silu", "hardswish", "mish", "clamp_min"), _relu),
    **dict.fromkeys(("sigmoid", "hardsigmoid"), _sigmoid),
    "tanh": _tanh,
    "mul": _scaled,
    "div": _divided,
    "add": _shifted,
}
"""Rules of operators on one tensor; smooth activations are treated as ReLU, and all other operators as the identity."""


def base_name(op: str) -> str:
    """Return the name of an operator without namespace, overload and underscore: "aten::add_.Tensor" gives "add"."""
    return op.rpartition("::")[2].partition(".")[0].removesuffix("_")


def of_elementwise(op: str, numbers: tuple[float, ...], inputs: Sequence[Moments]) -> Moments | None:
    """Return the moments of an operator on one tensor, or of the sum or product of two.

    Args:
        op: Name of the operator, as from `base_name`.
        numbers: Its numeric arguments; for a sum of two tensors, the factor of the second.
        inputs: Moments of the tensors, with the same channels at the same positions.

    Returns:
        The moments with the ids of the first; None for all other operators.
    """
    first, *others = inputs
    if not others:
        rule = _UNARY.get(op)
        return None if rule is None else Moments(first.ids, *rule(first, numbers))
    second = others[0]
    if len(others) > 1 or len(first.ids) != len(second.ids):
        return None
    if op in ("add", "sub"):
        factor = (numbers[0] if numbers else 1.0) * (1 if op == "add" else -1)
        return Moments(first.ids, first.mean + factor * second.mean, first.variance + factor**2 * second.variance)
    if op == "mul":
        variance = (first.variance + first.mean.square()) * (second.variance + second.mean.square())
        mean = first.mean * second.mean
        return Moments(first.ids, mean, (variance - mean.square()).clamp(min=0))
    return None
