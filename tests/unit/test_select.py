"""Which channels go: ratio, ties, floors, exclusions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bnprune
from tests.nets import Net, chain, conv_bn, head, norms, randomized, residual

X = torch.zeros(1, 3, 8, 8)


def stack(*widths: int) -> nn.Sequential:
    channels, layers = 3, []
    for width in widths:
        layers.append(conv_bn(channels, width, 1))
        channels = width
    return nn.Sequential(*layers, head(channels))


def set_gammas(model: nn.Module, *values: torch.Tensor) -> nn.Module:
    with torch.no_grad():
        for norm, gamma in zip(norms(model), values, strict=True):
            norm.weight.copy_(gamma)
    return model


def widths(result: bnprune.PruningResult) -> list[int]:
    return [layer.after for layer in result.report.layers if layer.kind == "norm"]


def test_the_smallest_go_wherever_they_are() -> None:
    """The ranking is global and by magnitude: no normalisation per layer, negative γ like positive."""
    model = set_gammas(stack(4, 4), torch.tensor([0.9, -0.8, 0.7, 0.6]), torch.tensor([0.1, -0.2, 0.95, -0.3]))
    result = bnprune.prune(model, X, ratio=3 / 8)
    assert widths(result) == [4, 1]
    assert result.model[1][1].weight.item() == pytest.approx(0.95)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.66, 0.9])
def test_realised_ratio_is_the_nearest_possible(ratio: float) -> None:
    result = bnprune.prune(randomized(stack(16, 24, 32)), X, ratio=ratio)
    assert abs(result.report.ratio_realised - ratio) <= 0.5 / 72
    assert result.report.channels_after == sum(widths(result))


def test_equal_scores_cost_every_layer_the_same_share() -> None:
    assert widths(bnprune.prune(stack(8, 16, 32), X, ratio=0.5)) == [4, 8, 16]


def test_pruning_is_deterministic() -> None:
    plans = {bnprune.prune(randomized(stack(8, 16)), X, ratio=0.5).plan.to_json() for _ in range(3)}
    assert len(plans) == 1


def test_no_layer_is_emptied() -> None:
    dead = set_gammas(stack(8, 8, 8), torch.ones(8), torch.full((8,), 1e-4), torch.ones(8))
    with torch.no_grad():
        norms(dead)[1].weight[5] = 2e-4
    result = bnprune.prune(dead, X, ratio=0.4)
    assert widths(result)[1] == 1
    assert result.model[1][1].weight.item() == pytest.approx(2e-4), "the best channel stays"
    assert sum(widths(result)) == pytest.approx(24 * 0.6, abs=1)


def test_a_layer_of_zeros_does_not_halve_the_healthy_ones() -> None:
    model = set_gammas(stack(8, 16, 8), torch.ones(8), torch.zeros(16), torch.ones(8))
    assert widths(bnprune.prune(model, X, ratio=15 / 32)) == [8, 1, 8]


@pytest.mark.parametrize("floor", [2, 4])
def test_floor_holds_and_the_report_says_what_was_possible(floor: int) -> None:
    result = bnprune.prune(randomized(stack(16, 32)), X, ratio=0.97, min_channels=floor)
    assert widths(result) == [floor, floor]
    assert result.report.ratio_requested == 0.97
    assert result.report.ratio_realised == pytest.approx(1 - 2 * floor / 48)


def test_one_channel_layers_stay() -> None:
    assert widths(bnprune.prune(randomized(stack(8, 1, 8)), X, ratio=0.5))[1] == 1


def test_excluded_layers_keep_their_width_and_do_not_count() -> None:
    model = set_gammas(stack(8, 8), torch.full((8,), 0.1), torch.ones(8))
    result = bnprune.prune(model, X, ratio=0.5, exclude=["0"])
    assert widths(result) == [8, 4]
    assert result.report.ratio_realised == 0.5
    assert {refusal.site for refusal in result.report.refusals} == {"0.0"}
    assert widths(bnprune.prune(model, X, ratio=0.5, exclude=["1.*"])) == [4, 8]


def test_coupled_channels_score_by_their_best_member() -> None:
    def coupled() -> nn.Module:
        net = Net(lambda n, x: n.head(n.a(x) + n.b(x)), a=conv_bn(3, 2), b=conv_bn(3, 2), head=head(2))
        return set_gammas(net, torch.tensor([0.5, 0.0]), torch.tensor([0.5, 0.9]))

    kept = {
        reduce: bnprune.prune(coupled(), X, ratio=0.5, reduce=reduce).plan.cuts[0].keep for reduce in ("max", "mean")
    }
    assert kept == {"max": (1,), "mean": (0,)}


def test_layers_without_scale_factors_stay_and_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), head(8))
    result = bnprune.prune(randomized(model), X, ratio=0.5)
    assert result.model[0].out_channels == 8
    assert [(r.site, "no BatchNorm" in r.reason) for r in result.report.refusals] == [("0", True)]


def test_norm_without_affine_is_cut_but_not_ranked() -> None:
    model = nn.Sequential(conv_bn(3, 8, 1), nn.BatchNorm2d(8, affine=False), head(8))
    slim = bnprune.prune(randomized(model), X, ratio=0.5).model
    assert slim[1].num_features == slim[1].running_mean.numel() == 4


@pytest.mark.parametrize("criterion", ["gamma", "random", "l1"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_diverged_scale_factors_are_refused(bad: float, criterion: str) -> None:
    model = set_gammas(stack(4, 4), torch.ones(4), torch.tensor([1, bad, 1, 1]))
    with pytest.raises(bnprune.PruningError, match=r"1\.1\.weight: 1 of 4 scale factors are not finite"):
        bnprune.prune(model, X, ratio=0.5, criterion=criterion)


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5, float("nan")])
def test_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(bnprune.ConfigError, match="ratio: must be between 0 and 1"):
        bnprune.prune(stack(4), X, ratio=ratio)


def test_no_batchnorm() -> None:
    with pytest.raises(bnprune.PruningError, match="no BatchNorm"):
        bnprune.prune(nn.Sequential(nn.Conv2d(3, 8, 1), head(8)), X, ratio=0.5)


def test_everything_excluded() -> None:
    with pytest.raises(bnprune.PruningError, match=r"every BatchNorm channel must stay.*\n.*is excluded by '\*'"):
        bnprune.prune(stack(4, 4), X, ratio=0.5, exclude=["*"])


def test_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(bnprune.ConfigError, match=r"no layer matches '1\.7'\. Did you mean '1\.\d'\?"):
        bnprune.prune(stack(4, 4), X, ratio=0.5, exclude=["1.7"])


def test_unknown_criterion() -> None:
    with pytest.raises(bnprune.ConfigError, match="criterion: 'gama' is unknown"):
        bnprune.prune(stack(4), X, ratio=0.5, criterion="gama")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ratio": "0.5"}, "ratio: must be a number"),
        ({"ratio": True}, "ratio: must be a number"),
        ({"min_channels": 2.5}, "min_channels: must be a whole number"),
        ({"exclude": [1]}, "exclude: must be a list of patterns"),
        ({"coupling": "none"}, "coupling: 'none' is unknown. Choose one of: shared, gates"),
        ({"reduce": "min"}, "reduce: 'min' is unknown. Choose one of: max, mean, sum"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(wrong, message: str) -> None:
    with pytest.raises(bnprune.ConfigError, match=message):
        bnprune.prune(chain(), torch.zeros(1, 3, 8, 8), **{"ratio": 0.5, **wrong})


def test_one_pattern_need_not_stand_in_a_list() -> None:
    result = bnprune.prune(chain(), torch.zeros(1, 3, 8, 8), ratio=0.5, exclude="1")
    assert result.model[1][0].out_channels == 12


def test_only_included_layers_are_pruned_with_those_that_share_their_channels() -> None:
    model, x = randomized(residual()), torch.zeros(1, 3, 8, 8)
    result = bnprune.prune(model, x, ratio=0.5, include=["branch.0"])
    changed = {layer.name for layer in result.report.layers if layer.after < layer.before}
    assert changed == {"branch.0.0", "branch.0.1"}
    assert result.report.channels_before == 12
    assert result.report.ratio_realised == 0.5
    stream = bnprune.prune(model, x, ratio=0.5, include="stem.0")
    changed = {layer.name for layer in stream.report.layers if layer.after < layer.before}
    assert changed == {"stem.0", "stem.1", "branch.1", "branch.2"}
    neither = bnprune.prune(model, x, ratio=0.5, include=["branch.0", "stem.0"], exclude=["stem.1"])
    assert neither.report.channels_before == 12
    with pytest.raises(bnprune.ConfigError, match=r"include: no layer matches 'steam'. Did you mean 'stem'"):
        bnprune.prune(model, x, ratio=0.5, include=["steam"])
    assert bnprune.inspect(model, x, include=["branch.0"]).prunable == 12
