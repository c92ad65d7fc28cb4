"""BatchNorm by hand (Ioffe & Szegedy 2015), the reference of the tests. Reduces over every dimension but 1."""

from __future__ import annotations

import torch


def _dims(x: torch.Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _per_channel(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))


def forward(x, gamma, beta, mean, var, eps):
    """z = γ·(x - μ)/√(σ² + ε) + β."""
    normalised = (x - _per_channel(mean, x)) / _per_channel((var + eps).sqrt(), x)
    return _per_channel(gamma, x) * normalised + _per_channel(beta, x)


def statistics(x):
    """Batch mean and biased variance."""
    mean = x.mean(_dims(x))
    return mean, (x - _per_channel(mean, x)).square().mean(_dims(x))


def backward(x, gamma, grad, eps):
    """Gradients of x, γ and β in train mode, from the gradient of z."""
    mean, var = statistics(x)
    count = x.numel() / x.shape[1]
    deviation = (var + eps).sqrt()
    normalised = (x - _per_channel(mean, x)) / _per_channel(deviation, x)
    grad_beta = grad.sum(_dims(x))
    grad_gamma = (grad * normalised).sum(_dims(x))
    inner = count * grad - _per_channel(grad_beta, x) - normalised * _per_channel(grad_gamma, x)
    return _per_channel(gamma / (count * deviation), x) * inner, grad_gamma, grad_beta


def running(old_mean, old_var, x, momentum):
    """Moving averages after one batch; the variance is the unbiased one."""
    mean, var = statistics(x)
    count = x.numel() / x.shape[1]
    return (1 - momentum) * old_mean + momentum * mean, (1 - momentum) * old_var + momentum * var * count / (count - 1)
