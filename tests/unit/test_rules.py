"""What operators say about channels: who goes together, and who must stay."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from bnprune.channels.graph import ChannelGraph
from bnprune.channels.ops import spec_of, unknown
from bnprune.channels.trace_network import trace
from tests.nets import Net, conv_bn, head

X = torch.zeros(1, 3, 8, 8)


def units(graph: ChannelGraph, name: str, dim: int = 0) -> np.ndarray:
    """Units of a tensor's slices along a dimension."""
    return graph.units(graph.axes[name, dim])


def frozen(graph: ChannelGraph, name: str, dim: int = 0) -> list[bool]:
    return [graph.frozen[unit] is not None for unit in units(graph, name, dim)]


def reasons(graph: ChannelGraph, name: str) -> set[str]:
    return {graph.frozen[unit].reason for unit in units(graph, name)}


def net(forward, x: torch.Tensor = X, **layers: nn.Module) -> ChannelGraph:
    return trace(Net(forward, **layers), x)


def test_convolution_ties_its_input_to_the_producer_and_its_output_to_the_norm() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), X)
    out = units(graph, "0.weight")
    for name, dim in (
        ("0.bias", 0),
        ("1.weight", 0),
        ("1.bias", 0),
        ("1.running_mean", 0),
        ("1.running_var", 0),
        ("2.weight", 1),
    ):
        assert (units(graph, name, dim) == out).all()
    assert len(set(out.tolist())) == 4
    assert not any(frozen(graph, "0.weight"))
    assert all(frozen(graph, "2.weight")), "the network's output stays"
    assert all(frozen(graph, "0.weight", 1)), "the network's input stays"


def test_addition_couples_both_branches() -> None:
    graph = net(lambda n, x: n.head(n.a(x) + n.b(x)), a=conv_bn(3, 4), b=conv_bn(3, 4), head=head(4))
    assert (units(graph, "a.1.weight") == units(graph, "b.1.weight")).all()


def test_concatenation_offsets_the_second_input() -> None:
    graph = net(
        lambda n, x: n.c(torch.cat([n.a(x), n.b(x)], 1)), a=conv_bn(3, 4), b=conv_bn(3, 6), c=nn.Conv2d(10, 2, 1)
    )
    joined = units(graph, "c.weight", 1)
    assert (joined[:4] == units(graph, "a.1.weight")).all()
    assert (joined[4:] == units(graph, "b.1.weight")).all()


def test_concatenation_along_space_needs_equal_channels() -> None:
    graph = net(
        lambda n, x: n.c(torch.cat([n.a(x), n.b(x)], 2)), a=conv_bn(3, 4), b=conv_bn(3, 4), c=nn.Conv2d(4, 2, 1)
    )
    assert (units(graph, "a.1.weight") == units(graph, "b.1.weight")).all()


def test_depthwise_convolution_follows_its_producer() -> None:
    graph = net(lambda n, x: n.c(n.b(n.a(x))), a=conv_bn(3, 4), b=conv_bn(4, 8, groups=4), c=nn.Conv2d(8, 2, 1))
    assert (units(graph, "b.0.weight") == units(graph, "a.1.weight").repeat(2)).all()


def test_many_groups_go_as_a_whole_and_few_groups_lose_the_same_positions() -> None:
    graph = net(lambda n, x: n.b(n.a(x)), a=conv_bn(3, 16), b=conv_bn(16, 16, groups=8))
    assert (units(graph, "a.1.weight").reshape(8, 2) == units(graph, "b.0.weight").reshape(8, 2)).all()
    assert all(frozen(graph, "b.0.weight", 1))
    graph = net(lambda n, x: n.c(n.b(n.a(x))), a=conv_bn(3, 16), b=conv_bn(16, 12, groups=2), c=nn.Conv2d(12, 2, 1))
    first, second = units(graph, "a.1.weight").reshape(2, 8)
    assert (first == second).all()
    assert (units(graph, "b.0.weight", 1) == first).all()
    assert set(units(graph, "b.0.weight").tolist()).isdisjoint(first.tolist())


def test_single_channel_convolution_is_not_depthwise() -> None:
    graph = net(lambda n, x: n.b(n.a(x)), a=conv_bn(3, 4), b=nn.Conv2d(4, 1, 1, groups=1))
    assert not any(frozen(graph, "a.1.weight"))
    assert (units(graph, "b.weight", 1) == units(graph, "a.1.weight")).all()


@pytest.mark.parametrize("groups", [1, 4])
def test_transposed_convolution_swaps_dimensions(groups: int) -> None:
    up = nn.ConvTranspose2d(4, 8, 2, groups=groups)
    graph = net(lambda n, x: n.c(n.up(n.a(x))), a=conv_bn(3, 4), up=up, c=nn.Conv2d(8, 2, 1))
    assert (units(graph, "up.weight") == units(graph, "a.1.weight")).all()
    assert (units(graph, "up.bias") == units(graph, "c.weight", 1)).all()
    if groups == 4:
        assert (units(graph, "up.bias") == units(graph, "a.1.weight").repeat(2)).all()


def test_flatten_repeats_each_channel() -> None:
    graph = net(lambda n, x: n.fc(n.a(x).flatten(1)), a=conv_bn(3, 4), fc=nn.Linear(4 * 64, 5))
    assert (units(graph, "fc.weight", 1) == units(graph, "a.1.weight").repeat(64)).all()


def test_gate_per_channel_couples_and_mask_for_all_does_not() -> None:
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
    graph = net(lambda n, x: n.c(n.gate(y := n.a(x)) * y), a=conv_bn(3, 4), gate=gate, c=nn.Conv2d(4, 2, 1))
    assert (units(graph, "gate.1.weight") == units(graph, "a.1.weight")).all()
    mask = nn.Conv2d(4, 1, 1)
    graph = net(lambda n, x: n.c(n.mask(y := n.a(x)) * y), a=conv_bn(3, 4), mask=mask, c=nn.Conv2d(4, 2, 1))
    assert not any(frozen(graph, "a.1.weight"))
    assert len(set(units(graph, "a.1.weight").tolist())) == 4


def test_chunks_lose_the_same_positions() -> None:
    graph = net(lambda n, x: n.c(torch.cat(n.a(x).chunk(2, 1)[::-1], 1)), a=conv_bn(3, 8), c=nn.Conv2d(8, 2, 1))
    first, second = units(graph, "a.1.weight").reshape(2, 4)
    assert (first == second).all()
    assert len(set(first.tolist())) == 4


def test_channel_shuffle_by_hand_and_built_in() -> None:
    def by_hand(n, x):
        x = n.a(x)
        return n.c(x.view(1, 2, 4, 8, 8).transpose(1, 2).reshape(1, 8, 8, 8))

    for forward in (by_hand, lambda n, x: n.c(F.channel_shuffle(n.a(x), 2))):
        graph = net(forward, a=conv_bn(3, 8), c=nn.Conv2d(8, 2, 1))
        parts = units(graph, "a.1.weight").reshape(2, 4)
        assert (parts[0] == parts[1]).all()
        assert (units(graph, "c.weight", 1) == parts.T.ravel()).all()


def test_unflattened_features_belong_to_their_channel() -> None:
    graph = net(
        lambda n, x: n.c(F.relu(n.fc(x.flatten(1))).view(1, 4, 8, 8)),
        fc=nn.Linear(3 * 64, 4 * 64),
        c=nn.Conv2d(4, 2, 1),
    )
    assert (units(graph, "fc.weight") == units(graph, "c.weight", 1).repeat(64)).all()


def test_group_norm_goes_by_groups_and_layer_norm_keeps_everything() -> None:
    graph = net(lambda n, x: n.c(n.g(n.a(x))), a=conv_bn(3, 8), g=nn.GroupNorm(4, 8), c=nn.Conv2d(8, 2, 1))
    groups = units(graph, "g.weight").reshape(4, 2)
    assert (groups[:, 0] == groups[:, 1]).all()
    assert len(set(groups[:, 0].tolist())) == 4
    graph = net(lambda n, x: n.c(n.g(n.a(x))), a=conv_bn(3, 8), g=nn.LayerNorm([8, 8, 8]), c=nn.Conv2d(8, 2, 1))
    assert any("LayerNorm" in reason for reason in reasons(graph, "a.1.weight"))


def test_instance_norm_is_exact() -> None:
    graph = net(
        lambda n, x: n.c(n.g(n.a(x))), a=conv_bn(3, 8), g=nn.InstanceNorm2d(8, affine=True), c=nn.Conv2d(8, 2, 1)
    )
    assert (units(graph, "g.weight") == units(graph, "a.1.weight")).all()
    assert not any(frozen(graph, "a.1.weight"))


def test_a_mean_over_channels_keeps_them() -> None:
    graph = net(lambda n, x: n.c(n.a(x).mean(1, keepdim=True)), a=conv_bn(3, 8), c=nn.Conv2d(1, 2, 1))
    assert all(frozen(graph, "a.1.weight"))


def test_a_module_called_twice_is_one_set_of_channels() -> None:
    graph = net(lambda n, x: n.c(n.b(n.b(n.a(x)))), a=conv_bn(3, 4), b=conv_bn(4, 4), c=nn.Conv2d(4, 2, 1))
    assert (units(graph, "a.1.weight") == units(graph, "b.1.weight")).all()


def test_positions_with_values_of_their_own_keep_channels() -> None:
    graph = net(lambda n, x: n.c(n.a(x) * torch.arange(4.0).view(1, 4, 1, 1)), a=conv_bn(3, 4), c=nn.Conv2d(4, 2, 1))
    assert all(frozen(graph, "a.1.weight"))
    graph = net(lambda n, x: n.c(n.a(x) + torch.zeros(1, 4, 8, 8)), a=conv_bn(3, 4), c=nn.Conv2d(4, 2, 1))
    assert not any(frozen(graph, "a.1.weight"))


def test_padding_of_channels_goes_with_what_it_meets() -> None:
    def forward(n, x):
        x = n.a(x)
        return n.c(F.pad(x, (0, 0, 0, 0, 0, 4)) + n.b(x))

    graph = net(forward, a=conv_bn(3, 4), b=conv_bn(4, 8), c=nn.Conv2d(8, 2, 1))
    assert not any(frozen(graph, "b.1.weight"))
    assert len(set(units(graph, "b.1.weight").tolist())) == 8
    assert (units(graph, "b.1.weight")[:4] == units(graph, "a.1.weight")).all()


def test_unknown_operators_freeze_what_enters_them_and_are_named() -> None:
    graph = net(lambda n, x: n.c(torch.cdist(y := n.a(x), y)), a=conv_bn(3, 4), c=nn.Conv2d(4, 2, 1))
    assert all(frozen(graph, "a.1.weight"))
    assert any("without a rule" in reason and "cdist" in reason for reason in reasons(graph, "a.1.weight"))


def test_a_user_can_teach_an_operator() -> None:
    @torch.library.custom_op("bnprune_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @double.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    model = Net(lambda n, x: n.c(double(n.a(x))), a=conv_bn(3, 4), c=nn.Conv2d(4, 2, 1))
    assert spec_of(torch.ops.bnprune_test.double.default).labels is unknown
    with pytest.raises(bnprune.PruningError, match="bnprune_test::double"):
        bnprune.prune(model, X, ratio=0.5)

    @bnprune.rule("bnprune_test::double")
    def passes(call, x):
        return call.labels(x)

    assert bnprune.prune(model, X, ratio=0.5).report.ratio_realised == 0.5


def test_frozen_batchnorm_has_scale_factors_too() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    graph = net(lambda n, x: n.c(n.b(n.a(x))), a=nn.Conv2d(3, 4, 1), b=FrozenBatchNorm2d(4), c=nn.Conv2d(4, 2, 1))
    assert graph.gammas == {"b.weight": "b"}
    assert (units(graph, "b.running_var") == units(graph, "a.weight")).all()


def test_channels_written_into_a_part_of_a_tensor_are_those_of_the_part() -> None:
    def forward(n, x):
        out = torch.zeros(1, 8, 8, 8)
        out[:, :4] = n.a(x)
        return n.c(out)

    graph = net(forward, a=conv_bn(3, 4), c=nn.Conv2d(8, 2, 1))
    read = units(graph, "c.weight", 1)
    assert (read[:4] == units(graph, "a.1.weight")).all()
    assert len(set(read.tolist())) == 8


def test_channels_written_into_a_part_that_cannot_be_located_stay() -> None:
    def forward(n, x):
        out = torch.zeros(1, 4, 8, 8)
        out[0] = n.a(x)[0]
        return n.c(out)

    graph = net(forward, a=conv_bn(3, 4), c=nn.Conv2d(4, 2, 1))
    assert all(frozen(graph, "a.1.weight"))
    assert all(frozen(graph, "c.weight", 1)), "its zeros have places of their own"


def test_the_worked_example_of_the_documentation_prunes() -> None:
    """The rule is taken from the docstring of `op_context`."""
    from bnprune.channels import op_context

    @torch.library.custom_op("mylib::fold_pairs", mutates_args=())
    def fold_pairs(x: torch.Tensor) -> torch.Tensor:
        return x[:, ::2] + x[:, 1::2]

    @fold_pairs.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return x.new_empty(x.shape[0], x.shape[1] // 2, *x.shape[2:])

    source = op_context.__doc__.partition("    @bnprune.rule")[2].partition("\n\n")[0]
    exec(inspect.cleandoc("    @bnprune.rule" + source), {"bnprune": bnprune})
    graph = net(lambda n, x: n.c(fold_pairs(n.b(n.a(x)))), a=conv_bn(3, 4), b=conv_bn(4, 4), c=nn.Conv2d(2, 1, 1))
    pairs = units(graph, "b.0.weight").reshape(2, 2)
    assert (pairs[:, 0] == pairs[:, 1]).all()
    assert (units(graph, "c.weight", 1) == pairs[:, 0]).all()
    assert not any(frozen(graph, "b.0.weight"))
    model = Net(lambda n, x: n.c(fold_pairs(n.b(n.a(x)))), a=conv_bn(3, 4), b=conv_bn(4, 4), c=nn.Conv2d(2, 1, 1))
    slim = bnprune.prune(model, X, ratio=0.5).model
    assert slim.b[0].out_channels == 2 * slim.c.in_channels
