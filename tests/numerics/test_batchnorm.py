"""The hand-written BatchNorm agrees with PyTorch's in float64, and γ = β = 0 makes a channel carry nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bnprune
from tests.nets import noise, randomized
from tests.numerics import batchnorm

CASES = {
    "BatchNorm1d (N, C)": (nn.BatchNorm1d, (16, 6)),
    "BatchNorm1d (N, C, L)": (nn.BatchNorm1d, (8, 6, 5)),
    "BatchNorm2d": (nn.BatchNorm2d, (4, 6, 5, 3)),
}


@pytest.fixture(params=CASES)
def case(request):
    kind, shape = CASES[request.param]
    norm = randomized(kind(shape[1])).double()
    return norm, noise(*shape), noise(*shape, seed=2)


def test_forward_in_eval_mode(case) -> None:
    norm, x, _ = case
    expected = batchnorm.forward(x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    torch.testing.assert_close(norm.eval()(x), expected, rtol=1e-12, atol=1e-12)


def test_forward_and_running_statistics_in_train_mode(case) -> None:
    norm, x, _ = case
    mean, var = batchnorm.running(norm.running_mean.clone(), norm.running_var.clone(), x, norm.momentum)
    expected = batchnorm.forward(x, norm.weight, norm.bias, *batchnorm.statistics(x), norm.eps)
    torch.testing.assert_close(norm.train()(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_var, var, rtol=1e-12, atol=1e-12)


def test_backward(case) -> None:
    norm, x, grad = case
    x.requires_grad_()
    norm.train()(x).backward(grad)
    grad_x, grad_gamma, grad_beta = batchnorm.backward(x.detach(), norm.weight.detach(), grad, norm.eps)
    torch.testing.assert_close(x.grad, grad_x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(norm.weight.grad, grad_gamma, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(norm.bias.grad, grad_beta, rtol=1e-10, atol=1e-12)


def test_recalibration_is_the_average_of_batch_statistics(case) -> None:
    norm, x, other = case
    bnprune.recalibrate(norm, [x, other])
    (mean, var), (mean2, var2) = batchnorm.statistics(x), batchnorm.statistics(other)
    unbiased = (x.numel() / x.shape[1]) / (x.numel() / x.shape[1] - 1)
    torch.testing.assert_close(norm.running_mean, (mean + mean2) / 2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_var, unbiased * (var + var2) / 2, rtol=1e-12, atol=1e-12)
    assert norm.momentum == 0.1


def test_failed_recalibration_leaves_statistics_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), randomized(nn.BatchNorm2d(4)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def batches():
        yield torch.randn(2, 3, 4, 4)
        raise OSError("gone")

    for bad, error in ((batches(), OSError), ([], ValueError)):
        with pytest.raises(error):
            bnprune.recalibrate(model, bad)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
