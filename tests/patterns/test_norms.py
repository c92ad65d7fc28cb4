"""Normalisations other than the plain BatchNorm."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torchvision.ops import FrozenBatchNorm2d

import bnprune
from tests.nets import conv_bn, head
from tests.patterns.builder import X, checked, framed, refusal, tail, width


def between(norm: nn.Module) -> nn.Module:
    """Stem, convolution, the norm in question, tail."""
    return framed(
        lambda n, x: n.tail(F.relu(n.norm(n.conv(n.stem(x))))),
        conv=nn.Conv2d(16, 16, 3, padding=1),
        norm=norm,
        tail=tail(16),
    )


def test_group_norm_reads_a_pruned_stream() -> None:
    """Whole groups go: their statistics change with their members."""
    net = framed(lambda n, x: n.tail(n.norm(n.stem(x))), norm=nn.GroupNorm(8, 16, affine=False), tail=tail(16))
    result = checked(net)
    assert result.model.norm.num_channels == width(result.model.stem) == 2 * result.model.norm.num_groups


def test_group_norm_of_one_group_keeps_its_channels() -> None:
    net = framed(lambda n, x: n.tail(n.norm(n.stem(x))), norm=nn.GroupNorm(1, 16), tail=tail(16))
    result = checked(net, free=16)
    assert width(result.model.stem) == 16
    assert refusal(result, "GroupNorm").site == "norm"


def test_group_norm_with_a_literal_number_of_groups() -> None:
    """Nothing fails when groups are missing, so a wrong cut would go unnoticed but for the proof."""
    net = framed(lambda n, x: n.tail(F.group_norm(n.stem(x), 4)), tail=tail(16))
    result = checked(net, free=16)
    assert width(result.model.stem) == 16
    refusal(result, "fixed number of groups")


def test_instance_norm() -> None:
    net = framed(lambda n, x: n.tail(n.norm(n.stem(x))), norm=nn.InstanceNorm2d(16), tail=tail(16))
    assert checked(net).model.norm.num_features < 16


def test_instance_norm_with_statistics() -> None:
    norm = nn.InstanceNorm2d(16, affine=True, track_running_stats=True)
    torch.nn.init.zeros_(norm.bias)
    net = framed(lambda n, x: n.tail(n.norm(n.stem(x))), norm=norm, tail=tail(16))
    assert checked(net).model.norm.running_mean.numel() < 16


def test_layer_norm_keeps_its_channels() -> None:
    def forward(n, x):
        return n.tail(n.norm(n.b(n.stem(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    result = checked(framed(forward, b=conv_bn(16, 16), norm=nn.LayerNorm(16), tail=tail(16)), free=32)
    assert width(result.model.b) == 16
    assert width(result.model.stem) < 16
    assert refusal(result, "LayerNorm").site == "norm"


def test_local_response_norm() -> None:
    checked(
        framed(
            lambda n, x: n.tail(n.norm(n.b(n.stem(x)))), b=conv_bn(16, 16), norm=nn.LocalResponseNorm(3), tail=tail(16)
        ),
        free=32,
    )


def test_batch_norm_without_scale() -> None:
    """`affine=False`: there is nothing to rank by, so the layer stays and is named."""
    result = checked(between(nn.BatchNorm2d(16, affine=False)))
    assert width(result.model.conv) == 16
    assert any(why.site == "conv" for why in result.report.refusals)


def test_batch_norm_without_scale_in_a_ranked_stream() -> None:
    norm = nn.BatchNorm2d(16, affine=False, track_running_stats=False)
    net = framed(lambda n, x: n.tail(n.norm(n.stem(x))), norm=norm, tail=tail(16))
    assert checked(net).model.norm.num_features < 16


def test_batch_norm_without_statistics() -> None:
    assert checked(between(nn.BatchNorm2d(16, track_running_stats=False))).model.norm.num_features < 16


def test_sync_batch_norm() -> None:
    import copy

    net = between(nn.SyncBatchNorm(16))
    result = bnprune.prune(net.double(), X, ratio=0.5)
    assert type(result.model.norm) is nn.SyncBatchNorm
    assert result.model.norm.num_features == width(result.model.conv) < 16
    assert copy.deepcopy(result.model).norm.num_features < 16


def test_frozen_layers_stay_frozen() -> None:
    net = between(nn.BatchNorm2d(16))
    for parameter in (net.norm.weight, net.norm.bias, net.conv.weight):
        parameter.requires_grad_(False)
    result = checked(net)
    assert width(result.model.conv) < 16
    assert [p.requires_grad for p in (result.model.norm.weight, result.model.conv.weight)] == [False, False]
    assert result.model.conv.bias.requires_grad


def test_frozen_batch_norm() -> None:
    result = checked(between(FrozenBatchNorm2d(16)), free=48)
    assert width(result.model.conv) == result.model.norm.weight.numel() < 16


def test_half_frozen_in_train_mode() -> None:
    """A norm the user keeps in eval mode."""
    net = between(nn.BatchNorm2d(16))
    net.norm.eval()
    checked(net)


WRAPS = {
    parametrizations.weight_norm: "weight-normed",
    parametrizations.orthogonal: "",
    parametrizations.spectral_norm: "contracted",
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_parametrized_layers_stay_with_a_reason(wrap) -> None:
    net = between(nn.BatchNorm2d(16))
    wrap(net.conv)
    result = checked(net, free=16)
    assert result.model.conv.weight.shape == (16, 16, 3, 3)
    assert refusal(result, WRAPS[wrap]).site.startswith("conv")


def test_elementwise_parametrizations_are_cut() -> None:
    class Positive(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return F.softplus(weight)

    net = between(nn.BatchNorm2d(16))
    parametrize.register_parametrization(net.conv, "weight", Positive())
    assert checked(net).model.conv.weight.shape[0] < 16


class MaxNorm(nn.Module):
    """Bound the norm of each filter (EEGNet)."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.renorm(2, 0, 1.0)


class Transformed(nn.Module):
    """An operator without a rule, for one."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.flatten(1).tril(4).view_as(weight)


def grouped(groups: int, parametrization: nn.Module) -> nn.Module:
    net = between(nn.BatchNorm2d(16))
    net.conv = nn.Conv2d(16, 16, 3, padding=1, groups=groups)
    parametrize.register_parametrization(net.conv, "weight", parametrization)
    return net


@pytest.mark.parametrize("groups", [16, 8])
def test_filters_of_bounded_norm_go_with_their_group(groups: int) -> None:
    result = checked(grouped(groups, MaxNorm()), off=0.05)
    assert result.model.conv.groups < groups


def test_inputs_of_filters_of_bounded_norm_stay() -> None:
    """Their norm would change; the filters themselves go."""
    result = checked(grouped(1, MaxNorm()), free=32)
    assert result.model.conv.parametrizations.weight.original.shape[1] == 16
    assert refusal(result, "shares a norm").site.startswith("conv")


@pytest.mark.parametrize("groups", [16, 2])
@pytest.mark.parametrize("wrap", [None, *WRAPS])
def test_a_computed_weight_without_channels_keeps_those_of_a_grouped_convolution(groups: int, wrap) -> None:
    net = grouped(groups, Transformed())
    if wrap is not None:
        net.conv = wrap(nn.Conv2d(16, 16, 3, padding=1, groups=groups))
    assert width(checked(net, free=16).model.stem) == 16


def test_a_weight_that_is_never_zero_needs_an_input_that_is() -> None:
    """With exp, a weight of zero is a factor of one."""

    class Exp(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight.exp()

    net = grouped(1, Exp())
    assert checked(net).model.conv.in_channels < 16
    net._forward = lambda n, x: n.tail(F.relu(n.norm(n.conv(n.stem(x).sigmoid()))))
    assert width(bnprune.prune(net, X, ratio=0.5).model.stem) == 16


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_by_hooks_is_refused() -> None:
    net = between(nn.BatchNorm2d(16)).double()
    nn.utils.weight_norm(net.conv)
    with pytest.raises(bnprune.PruningError, match=r"conv keeps a computed tensor, 'weight'.*remove_weight_norm"):
        bnprune.prune(net, X, ratio=0.5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_spectral_norm_by_hooks_stays_with_a_reason() -> None:
    net = between(nn.BatchNorm2d(16))
    nn.utils.spectral_norm(net.conv)
    result = checked(net, free=16)
    assert refusal(result, "contracted").site == "conv"


def test_weight_standardisation() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            w = self.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
            return F.conv2d(x, w, self.bias, padding=1)

    net = framed(
        lambda n, x: n.tail(F.relu(n.norm(n.conv(n.stem(x))))),
        conv=Standardised(16, 16, 3),
        norm=nn.BatchNorm2d(16),
        tail=tail(16),
    )
    result = checked(net, free=32)
    assert width(result.model.conv) < 16
    assert width(result.model.stem) == 16


def test_norm_before_activation_and_convolution() -> None:
    """Pre-activation residual blocks."""

    def block() -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, bias=False))

    layers = {
        "entry": nn.Conv2d(16, 16, 1),
        "a": block(),
        "b": block(),
        "last": nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), head(16)),
    }

    def forward(n, x):
        x = n.entry(n.stem(x))
        x = x + n.a(x)
        return n.last(x + n.b(x))

    checked(framed(forward, **layers))
