"""Notes on a cut: whether scale factors tell which channels matter, and which layers never ran."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from tests.nets import Net, chain, conv_bn, head, norms, randomized, residual

X = torch.zeros(1, 3, 8, 8)
ON_SCALE_FACTORS = {"gamma.equal", "cut.live_channels", "cut.ties"}


def codes(notes: tuple[bnprune.notes.Note, ...]) -> list[str]:
    return [note.code for note in notes]


def sparse(model: nn.Module, share: float, *, size: float = 1e-5) -> nn.Module:
    """A network like one trained with an L1 penalty: the first channels of every layer are about zero."""
    randomized(model)
    with torch.no_grad():
        for norm in norms(model):
            norm.weight[: round(share * norm.num_features)] *= size
    return model


@pytest.mark.parametrize("net", [chain, residual])
def test_an_ordinarily_trained_network_gets_a_warning(net) -> None:
    model = randomized(net())
    [note] = bnprune.prune(model, X, ratio=0.3).report.notes
    assert (note.code, note.level) == ("cut.live_channels", "warning")
    assert bnprune.plan(model, X, ratio=0.3).notes == (note,)
    assert bnprune.inspect(model, X).notes == (), "nothing is cut"


def test_the_warning_states_the_removed_share_of_the_variance() -> None:
    model = nn.Sequential(conv_bn(3, 4), head(4))
    with torch.no_grad():
        model[0][1].weight.copy_(torch.tensor([0.3, -0.4, 2.0, 1.0]))
    [note] = bnprune.prune(model, X, ratio=0.5).report.notes
    assert "have 4.8% of the sum" in note  # (0.3^2 + 0.4^2) / (0.3^2 + 0.4^2 + 2^2 + 1^2) = 0.25 / 5.25


@pytest.mark.parametrize("net", [chain, residual])
@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.0])
def test_a_sparse_trained_network_gets_no_note(net, size: float) -> None:
    model = sparse(net(), 0.5, size=size)
    for ratio in (0.2, 0.5):
        assert bnprune.prune(model, X, ratio=ratio).report.notes == ()
    assert bnprune.inspect(model, X).notes == ()


def test_a_sparse_network_that_loses_more_than_what_is_dead_gets_the_warning() -> None:
    assert codes(bnprune.plan(sparse(chain(), 0.5), X, ratio=0.6).notes) == ["cut.live_channels"]


@pytest.mark.parametrize("criterion", ["gamma", "gamma-per-mac", "l1", "random"])
def test_equal_scale_factors_are_noted_once(criterion: str) -> None:
    fresh = chain()
    notes = bnprune.prune(fresh, X, ratio=0.5, criterion=criterion).report.notes
    [note] = [note for note in notes if note.code != "least_width"]
    assert (note.code, note.level) == ("gamma.equal", "warning")
    assert "|γ| = 1)" in note
    assert bnprune.inspect(fresh, X).notes == (note,)


def test_a_fresh_network_whose_residual_branches_start_at_zero_is_fresh() -> None:
    """As timm builds them (`zero_init_last`)."""
    fresh = residual()
    nn.init.zeros_(fresh.branch[2].weight)
    assert codes(bnprune.plan(fresh, X, ratio=0.5).notes) == ["gamma.equal"]


def test_equal_scale_factors_but_for_the_removed_ones_are_no_reason_for_a_note() -> None:
    masked = chain()
    with torch.no_grad():
        for norm in norms(masked):
            norm.weight[::2] = 0
    assert bnprune.plan(masked, X, ratio=0.5).notes == ()


def quantized(width: int = 64) -> nn.Module:
    """Scale factors of eight levels, as of a network in a narrow format."""
    model = nn.Sequential(conv_bn(3, width), conv_bn(width, width), head(width))
    with torch.no_grad():
        for norm in norms(model):
            norm.weight.copy_(1 + torch.arange(width) % 8)
    return model


def test_equal_scores_at_the_threshold_are_noted() -> None:
    """Sixteen channels have each level: half of 128 are four levels, 0.45 of them end within the fourth."""
    assert "cut.ties" not in codes(bnprune.plan(quantized(), X, ratio=0.5).notes)
    notes = {note.code: note for note in bnprune.plan(quantized(), X, ratio=0.45).notes}
    assert "10 removed sets of channels have the same score as 6 that stay" in notes["cut.ties"]
    assert notes["cut.ties"].level == "note"


def test_equal_scores_of_dead_channels_are_not_noted() -> None:
    assert bnprune.plan(sparse(chain(), 0.5, size=0.0), X, ratio=0.2).notes == ()


def unused() -> nn.Module:
    """Half of the network is never called: a whole part, and one BatchNorm of another."""
    part = nn.Sequential(conv_bn(8, 16), conv_bn(16, 16))
    mixed = Net(lambda n, x: n.layer(x), layer=conv_bn(8, 8), spare=nn.BatchNorm2d(24))
    net = Net(lambda n, x: n.head(n.mixed(n.used(x))), used=conv_bn(3, 8), part=part, mixed=mixed, head=head(8))
    return randomized(net)


def test_layers_that_never_ran_are_counted_and_named() -> None:
    found = bnprune.inspect(unused(), X)
    [note] = found.notes
    assert (note.code, note.level) == ("trace.idle_norms", "note")
    assert note.startswith("56 of 72 BatchNorm channels never ran in the forward pass")
    assert note.endswith(": part, mixed.spare"), "the outermost modules of which nothing ran"
    assert (found.channels, found.prunable) == (72, 16)
    assert note in bnprune.prune(unused(), X, ratio=0.5).report.notes


def test_many_layers_that_never_ran_make_a_short_list() -> None:
    layers = {name: conv_bn(3, 3) for name in "abcdef"}
    model = Net(lambda n, x: n.head(n.used(x)), **layers, used=conv_bn(3, 8), head=head(8))
    [note] = bnprune.inspect(randomized(model), X).notes
    assert note.startswith("18 of 26 ")
    assert note.endswith(": a, b, c, d and 2 more")


def test_a_batchnorm_that_runs_in_train_mode_only_has_run() -> None:
    def forward(net: Net, x: torch.Tensor) -> tuple[torch.Tensor, ...] | torch.Tensor:
        y = net.stem(x)
        return (net.head(y), net.auxiliary(y)) if net.training else net.head(y)

    auxiliary = nn.Sequential(conv_bn(8, 12), head(12))
    assert (
        bnprune.inspect(randomized(Net(forward, stem=conv_bn(3, 8), head=head(8), auxiliary=auxiliary)), X).notes == ()
    )


def test_a_shared_scale_factor_has_run() -> None:
    model = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), head(8))
    model[1][1].weight = model[0][1].weight
    assert bnprune.inspect(randomized(model), X).notes == ()


def test_a_batchnorm_whose_tensors_another_module_reads_has_run() -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        norm, y = net.norm, net.conv(x)
        return net.head(F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias))

    model = Net(forward, conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), head=head(8))
    assert bnprune.inspect(randomized(model), X).notes == ()


def test_what_the_code_never_came_to_is_not_said_twice() -> None:
    """If control flow depends on data, the trace names all layers that did not run."""

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.stem(x)
        return net.head(net.rare(y) if y.flatten().tolist()[0] == 12345.678 else y)

    model = Net(forward, stem=conv_bn(3, 8), head=head(8), rare=conv_bn(8, 8))
    assert codes(bnprune.inspect(randomized(model), X).notes) == ["trace.unused_layers"]
