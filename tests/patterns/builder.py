"""The checks every pattern goes through, and the frame most patterns are put in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import bnprune
from bnprune.channels.pytrees import as_inputs, tensors
from tests.nets import Net, conv_bn, head, kill, noise, norms, randomized

X = noise(2, 3, 8, 8)


def framed(forward: Callable[..., Any], **layers: nn.Module) -> Net:
    """A pattern between a stem of 16 channels, `net.stem`, and whatever its forward function ends with."""
    return Net(forward, stem=conv_bn(3, 16), **layers)


def tail(channels: int) -> nn.Sequential:
    """A layer that reads the pattern's output, with a BatchNorm of its own, and a linear head."""
    return nn.Sequential(conv_bn(channels, 16), head(16))


def run(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    """Every output tensor, in eval mode and float64."""
    args, kwargs = as_inputs(inputs)
    with torch.no_grad():
        return list(tensors(model.double().eval()(*args, **kwargs)))


def assert_unchanged(before: nn.Module, after: nn.Module, inputs: Any) -> None:
    expected, got = run(before, inputs), run(after, inputs)
    assert len(expected) == len(got) > 0
    for reference, tensor in zip(expected, got, strict=True):
        assert reference.abs().max() > 0
        torch.testing.assert_close(tensor, reference, rtol=0, atol=1e-9 * float(reference.abs().max()))


def assert_trains(slim: nn.Module, dense: nn.Module, inputs: Any) -> None:
    """One step in train mode: every parameter gets a gradient that gets one in the original."""
    assert untrained(slim, inputs) == untrained(dense, inputs)


def untrained(model: nn.Module, inputs: Any) -> list[str]:
    """Parameters that get no gradient."""
    args, kwargs = as_inputs(inputs)
    model = copy.deepcopy(model).double().train()
    sum(t.sum() for t in tensors(model(*args, **kwargs)) if t.requires_grad).backward()
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


def level(model: nn.Module) -> nn.Module:
    """Equal scale factors everywhere: every layer loses the same share, so its width after the cut is known."""
    with torch.no_grad():
        for norm in (norm for norm in norms(model) if norm.affine):
            norm.weight.fill_(1)
    return model


def checked(
    model: nn.Module, inputs: Any = X, *, parts: int = 1, dead: float = 0.3, free: int | None = None, off: float = 0.02
) -> bnprune.PruningResult:
    """Check the function, not the shapes, and how much could go; return the result at ratio 0.5 of equal channels.

    Dead channels (γ = β = 0 on half of the positions of every BatchNorm, see `kill`) may go and the output must not
    change. At 0.5 bnprune's own proof holds, the ratio is met and the slim network trains.

    Args:
        model: The network.
        inputs: What its forward takes.
        parts: Into how many parts the pattern splits its channels, see `kill`.
        dead: The ratio of the first check, below one half.
        free: BatchNorm channels that may go; all by default.
        off: How far the realised ratio may be from the requested: half of the largest set that goes together.
    """
    model = randomized(model).double()
    emptied = kill(copy.deepcopy(model), parts)
    small = bnprune.prune(emptied, inputs, ratio=dead, proof=False)
    assert abs(small.report.ratio_realised - dead) <= 2 * off
    assert_unchanged(emptied, small.model, inputs)
    result = bnprune.prune(level(model), inputs, ratio=0.5)
    report = result.report
    everything = sum(norm.num_features for norm in norms(model) if norm.affine)
    assert report.channels_before == (everything if free is None else free), report.refusals
    assert abs(report.ratio_realised - 0.5) <= off, report.ratio_realised
    assert_trains(result.model, model, inputs)
    return result


def refusal(result: bnprune.PruningResult, reason: str) -> bnprune.Refusal:
    """The refusal whose reason contains these words; it must say what to do."""
    found = [why for why in result.report.refusals if reason in why.reason]
    assert found, [str(why) for why in result.report.refusals]
    assert all(why.fix for why in found)
    return found[0]


def width(model: nn.Module) -> int:
    """Output channels of the first convolution or linear layer in a module."""
    first = next(m for m in model.modules() if hasattr(m, "out_channels") or hasattr(m, "out_features"))
    return getattr(first, "out_channels", None) or first.out_features
