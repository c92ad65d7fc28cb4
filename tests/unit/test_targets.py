"""MACs, parameters, milliseconds; caps, multiples, ratios of single layers. Costs are counted independently."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import bnprune
from bnprune.config.schema import PruneConfig
from bnprune.pruning.cost_model import CostModel
from bnprune.pruning.planner import plan_cut, score_network
from bnprune.pruning.request import Request
from bnprune.pruning.scores import CRITERIA
from bnprune.runs.passes import request_of
from tests.nets import MOTIFS, Net, conv_bn, head, norms, randomized
from tests.unit.test_select import X, set_gammas, stack, widths


def stream(width: int = 16, blocks: int = 3) -> nn.Module:
    """Pre-activation blocks that read and write one stream, each with BatchNorms of its own."""

    def forward(n: Net, x: torch.Tensor) -> torch.Tensor:
        y = n.stem(x)
        for index in range(blocks):
            y = y + getattr(n, f"b{index}")(y)
        return n.head(F.relu(n.norm(y)))

    parts = {
        f"b{index}": nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), conv_bn(width, width), nn.Conv2d(width, width, 1, bias=False)
        )
        for index in range(blocks)
    }
    stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
    return Net(forward, stem=stem, norm=nn.BatchNorm2d(width), head=head(width), **parts)


@pytest.mark.parametrize("options", [{"ratio": 0.3}, {"ratio": 0.5}, {"ratio": 0.7, "min_channels": 2}])
def test_with_gates_a_ratio_counts_what_really_goes(options) -> None:
    """Channels of the stream come back where a BatchNorm still reads them; the ratio is met all the same."""
    report = bnprune.prune(randomized(stream()), X, coupling="gates", **options).report
    assert abs(report.ratio_realised - options["ratio"]) < 0.5 / report.channels_before + 1e-9


def test_with_gates_a_ratio_out_of_reach_has_reasons() -> None:
    report = bnprune.prune(randomized(stream()), X, coupling="gates", ratio=0.9, cap=0.25).report
    assert report.ratio_realised <= 0.25
    assert any("cap" in why.reason for why in report.refusals)


class OneHead(nn.Module):
    """Attention whose MACs are no product of two widths that the tally knows."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (conv_bn(16, 32, 1) for _ in range(3))
        self.a, self.head = conv_bn(3, 16), head(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        q, k, v = (layer(y).flatten(2) for layer in (self.q, self.k, self.v))
        return self.head(((q.transpose(1, 2) @ k) @ v.transpose(1, 2)).transpose(1, 2).view(len(x), -1, 8, 8))


@pytest.mark.parametrize("share", [0.9, 0.8, 0.5, 0.3])
def test_a_cost_the_tally_misjudges_is_corrected(share: float) -> None:
    model = randomized(OneHead())
    kept = macs(bnprune.prune(model, X, macs=share).model) / macs(model)
    assert share - 0.03 < kept <= share


def macs(model: nn.Module, x: torch.Tensor = X) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    return counter.get_total_flops() // 2


def params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("motif", MOTIFS)
def test_the_tally_is_what_the_slim_network_costs(motif: str) -> None:
    """Known before anything is built, for every way channels are coupled."""
    build, shape = MOTIFS[motif]
    model, x = randomized(build()), torch.zeros(shape)
    found = score_network(model, x, Request(ratio=0.5))
    draft = plan_cut(model, x, found)
    cost_model, slim = CostModel(found.graph, model), bnprune.prune(model, x, ratio=0.5).model
    assert cost_model.macs(draft.removed) == draft.macs == macs(slim, x)
    assert cost_model.params(draft.removed) == params(slim)


@pytest.mark.parametrize("share", [0.7, 0.5, 0.3])
@pytest.mark.parametrize(("kind", "cost"), [("macs", macs), ("params", params)])
def test_a_cost_is_met_from_below(kind: str, cost, share: float) -> None:
    model = randomized(stack(64, 96, 128))
    result = bnprune.prune(model, X, **{kind: share})
    kept = cost(result.model) / cost(model)
    assert share - 0.015 < kept <= share
    assert result.report.target == bnprune.pruning.draft_plan.Target(kind, share, pytest.approx(kept))
    assert result.plan.requested[kind] == share
    assert result.plan.realised[kind] == pytest.approx(kept)


def test_a_large_step_is_passed_over_for_smaller_ones() -> None:
    """Half of the network is one channel per unit, half goes in blocks of 16 (whole groups)."""
    grouped = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    model = randomized(nn.Sequential(conv_bn(3, 64), grouped, conv_bn(64, 64), head(64)))
    kept = macs(bnprune.prune(model, X, macs=0.6).model) / macs(model)
    assert 0.585 < kept <= 0.6


def test_a_cost_out_of_reach_is_refused_with_the_nearest() -> None:
    model = randomized(stack(16, 16))
    with pytest.raises(
        bnprune.PruningError, match=r"macs 0.05 cannot be reached: the channels that must stay cost (0\.\d+)"
    ) as why:
        bnprune.prune(model, X, macs=0.05, min_channels=8)
    nearest = float(str(why.value).split("stay cost ")[1].split()[0])
    assert bnprune.prune(model, X, macs=nearest, min_channels=8).report.channels_after == 16


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize(
    "constraints", [{"min_channels": 499}, {"min_channels": 300}, {"cap": 0.37}, {"cap": 0.8, "round_to": 4}]
)
def test_the_suggested_cost_is_accepted(kind: str, constraints: dict[str, Any]) -> None:
    """Of the wide layers, only one of 500 channels may go in the first case: 0.99927 of the MACs stay."""
    model = randomized(stack(500, 500, 500))
    options = {"include": ["0.0"], **constraints} if constraints == {"min_channels": 499} else constraints
    with pytest.raises(bnprune.PruningError) as why:
        bnprune.plan(model, X, **{kind: 0.001}, **options)
    suggested = str(why.value).partition(f"Ask for {kind} ")[2].partition(" or more")[0]
    assert 0 < bnprune.plan(model, X, **{kind: float(suggested)}, **options).realised[kind] <= float(suggested) < 1


@pytest.mark.parametrize("coupling", ["shared", "gates"])
@pytest.mark.parametrize("motif", [*MOTIFS, "stream"])
@pytest.mark.parametrize("multiple", [4, 8])
def test_multiples_stay_multiples(motif: str, multiple: int, coupling: str) -> None:
    build, shape = {**MOTIFS, "stream": (stream, (1, 3, 8, 8))}[motif]
    result = bnprune.prune(randomized(build()), torch.zeros(shape), ratio=0.5, round_to=multiple, coupling=coupling)
    assert result.report.max_relative_error < 1e-12
    for layer in result.report.layers:
        assert layer.before % multiple or layer.after % multiple == 0 < layer.after, layer


def test_a_multiple_is_the_nearest() -> None:
    """Five of 32 round to 4, seven to 8; the best channels stay."""
    for dead, width in ((5, 28), (7, 24)):
        gamma = torch.linspace(0.5, 1, 32)
        gamma[3 : 3 + dead] = 0.01
        model = set_gammas(stack(32, 32), gamma, torch.ones(32))
        result = bnprune.prune(model, X, ratio=dead / 64, round_to=4)
        assert widths(result) == [width, 32]
        assert result.model[0][1].weight.min() >= (0.01 if dead == 5 else 0.5)


def test_a_layer_too_small_for_a_portion_is_named() -> None:
    report = bnprune.prune(randomized(stack(8, 32)), X, ratio=0.5, round_to=8).report
    assert next(layer.after for layer in report.layers if layer.name == "0.1") == 8
    assert [why.site for why in report.refusals] == ["0.1"]
    assert report.refusals[0].fix == "lower round_to"


def test_no_layer_loses_more_than_its_cap() -> None:
    model = set_gammas(stack(8, 8, 8), torch.ones(8), torch.full((8,), 1e-4), torch.ones(8))
    assert widths(bnprune.prune(model, X, ratio=0.4, cap=0.5))[1] == 4
    report = bnprune.prune(model, X, ratio=0.9, cap=0.25).report
    assert report.ratio_realised == 0.25
    assert "cap" in report.refusals[0].reason


def test_layers_with_a_ratio_of_their_own() -> None:
    model = set_gammas(stack(8, 8, 8), torch.ones(8), torch.full((8,), 1e-4), torch.full((8,), 2.0))
    result = bnprune.prune(model, X, ratio=0.5, layer_ratios={"1": 0.25, "2.0": 0.5})
    assert widths(result)[1:] == [6, 4]
    assert result.report.ratio_realised == 0.5
    assert widths(bnprune.prune(model, X, macs=0.9, layer_ratios={"1": 0}))[1] == 8
    rounded = bnprune.prune(randomized(stack(32, 32)), X, ratio=0.3, layer_ratios={"0": 15 / 32}, round_to=8)
    assert widths(rounded)[0] == 16
    with pytest.raises(bnprune.ConfigError, match="layer_ratios: must map patterns to ratios"):
        bnprune.prune(model, X, ratio=0.5, layer_ratios=["1"])
    with pytest.raises(bnprune.ConfigError, match="layer_ratios: no layer matches 'fc'"):
        bnprune.prune(model, X, ratio=0.5, layer_ratios={"fc": 0.5})


def test_ratios_of_layers_over_passes_come_to_what_was_asked() -> None:
    config = PruneConfig(ratio=0.5, passes=2, layer_ratios={"0": 0.36})
    assert request_of(config).layer_ratios == {"0": pytest.approx(0.2)}


def test_channels_that_count_twice_are_rounded_as_channels() -> None:
    """A BatchNorm over two copies of one stream: every unit has two of its channels."""
    model = Net(
        lambda n, x: n.h(n.n(torch.cat([y := n.a(x), y], 1))), a=conv_bn(3, 32), n=nn.BatchNorm2d(64), h=head(64)
    )
    report = bnprune.prune(randomized(model), X, ratio=0.3, round_to=8, layer_ratios={"n": 0.4}).report
    assert next(layer.after for layer in report.layers if layer.name == "n") == 32


def test_ratios_that_cannot_be_had_are_noted() -> None:
    capped = bnprune.prune(randomized(stack(16, 16)), X, ratio=0.5, cap=0.5, layer_ratios={"0": 0.9}).report
    assert any("layer_ratios: 0.0: 0.500 of its channels are removed, not 0.9" in note for note in capped.notes)
    alone = bnprune.prune(randomized(stack(16, 16)), X, ratio=0.1, layer_ratios={"0": 0.75}).report
    assert alone.ratio_realised == 0.375
    assert alone.notes[0] == "ratio 0.375 instead of 0.1: layer_ratios alone remove that much"


@pytest.mark.parametrize(
    ("constraints", "reason"),
    [
        ({"min_channels": 8}, "ratio 0.500 instead of 0.9: limited by min_channels"),
        ({"cap": 0.25, "min_channels": 2}, "ratio 0.250 instead of 0.9: limited by min_channels and cap"),
        ({"round_to": 8}, "ratio 0.500 instead of 0.9: limited by round_to"),
        ({"layer_ratios": {"0": 0.25}, "exclude": ["1"]}, "ratio 0.250 instead of 0.9: limited by layer_ratios"),
        ({}, None),
    ],
)
def test_a_ratio_that_constraints_forbid_is_noted(constraints: dict[str, Any], reason: str | None) -> None:
    plan = bnprune.plan(randomized(stack(16, 16)), X, ratio=0.9, **constraints)
    assert [note for note in plan.notes if note.code == "target.not_met"] == ([reason] if reason else [])


def test_a_ratio_between_two_multiples_is_noted() -> None:
    report = bnprune.prune(randomized(stack(16, 16)), X, ratio=0.35, round_to=8).report
    [note] = [note for note in report.notes if note.code == "target.not_met"]
    assert note == f"ratio {report.ratio_realised:.3f} instead of 0.35: widths stay multiples of 8"


class Waits(nn.Module):
    """Takes 0.1 ms for each channel: a latency that depends on the widths, and hardly on what else the machine does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(1e-4 * x.shape[1])
        return x


def test_a_latency_is_met_when_measured_again() -> None:
    """`scripts/bench_targets.py` has the figures for networks that compute."""
    model, x = randomized(stack(64, 128, 128)), X
    for layer in list(model)[:3]:
        layer.append(Waits())
    report = bnprune.prune(model, x, latency_ms=16).report  # of 32 ms, and the time that it computes
    assert report.target.kind == "latency_ms"
    assert 8 < report.target.realised <= 16
    assert 100 < report.channels_after < 180  # of 320
    with pytest.raises(bnprune.PruningError, match="already runs in"):
        bnprune.prune(model, x, latency_ms=1e6)
    with pytest.raises(bnprune.PruningError, match="cannot be reached: the fastest network found takes"):
        bnprune.prune(model, x, latency_ms=1e-4)


def test_exactly_one_target() -> None:
    for targets in ({}, {"ratio": 0.5, "macs": 0.5}):
        with pytest.raises(bnprune.ConfigError, match="give exactly one of ratio, macs, params, latency_ms"):
            bnprune.prune(stack(4), X, **targets)
    with pytest.raises(bnprune.ConfigError, match=r"For example, ratio=0.5 removes half .* and macs=0.5 keeps half"):
        bnprune.prune(stack(4), X)


@pytest.mark.parametrize("function", [bnprune.prune, bnprune.plan])
@pytest.mark.parametrize(("named", "meant"), [("latency", "latency_ms"), ("min_channel", "min_channels")])
def test_a_misspelt_argument_gets_a_suggestion(function, named: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{named}'. Did you mean '{meant}'"):
        function(stack(4), X, **{named: 5})


def ranked(criterion: str, model: nn.Module, **options) -> list[int]:
    return widths(bnprune.prune(model, X, criterion=criterion, **options))


def test_criteria() -> None:
    """Two layers of 8; γ says the first is unimportant, weights say the second is."""
    model = set_gammas(stack(8, 8), torch.linspace(0.1, 0.2, 8), torch.linspace(1, 2, 8))
    with torch.no_grad():
        model[0][0].weight.copy_(torch.arange(1, 9.0).view(8, 1, 1, 1).expand(8, 3, 1, 1))
        model[1][0].weight.fill_(0.5)
    assert ranked("gamma", model, ratio=0.25) == [4, 8]
    assert ranked("uniform", model, ratio=0.25) == [6, 6]
    assert ranked("l1", model, ratio=0.25, cap=0.5) == [8, 4]
    assert ranked("l2", model, ratio=0.25, cap=0.5) == [8, 4]
    assert ranked("random", model, ratio=0.5) == ranked("random", model, ratio=0.5)
    kept = bnprune.prune(model, X, ratio=0.5, criterion="uniform").model[0][1].weight
    assert torch.equal(kept, model[0][1].weight[4:])


def test_a_new_criterion_is_one_function_in_a_table(monkeypatch) -> None:
    """Python, recipes and the command line all look it up there."""
    monkeypatch.setitem(
        CRITERIA, "backwards", lambda graph, tensors, reduce: -CRITERIA["gamma"](graph, tensors, reduce)
    )
    model = set_gammas(stack(8, 8), torch.linspace(0.1, 0.2, 8), torch.linspace(1, 2, 8))
    assert ranked("backwards", model, ratio=0.25) == [8, 4]
    assert request_of(PruneConfig(criterion="backwards")).ranked_by == "backwards"
    with pytest.raises(
        bnprune.ConfigError, match="criterion: 'forwards' is unknown. Choose one of: gamma, gamma-per-mac"
    ):
        request_of(PruneConfig(criterion="forwards"))


def test_filters_that_are_no_numbers_are_refused() -> None:
    model = randomized(stack(8, 8))
    with torch.no_grad():
        model[0][0].weight[0] = float("nan")
    with pytest.raises(bnprune.PruningError, match=r"0\.0\.weight: not all weights are finite"):
        bnprune.prune(model, X, ratio=0.5, criterion="l1")


def test_gamma_per_mac_spares_cheap_layers() -> None:
    """Equal γ: what costs four times as much counts half."""
    narrow, wide = conv_bn(3, 16), conv_bn(16, 16)
    model = Net(lambda n, x: n.head(n.wide(n.narrow(x)[:, :, ::4, ::4])), narrow=narrow, wide=wide, head=head(16))
    with torch.no_grad():
        for norm in norms(model):
            norm.weight.fill_(1)
    found = score_network(model, X, Request(ratio=0.5, criterion="gamma-per-mac"))
    units = found.graph.gamma_units
    first, second = (found.scores[units[f"{name}.1.weight"]] for name in ("narrow", "wide"))
    work = {work.site: work.factor for work in found.graph.traces["eval"].work}
    costs = 64 * 27 + 4 * 9 * 16, 4 * 9 * 16 + 5
    assert work["narrow.0"] == 64 * 9
    assert first == pytest.approx(costs[0] ** -0.5)
    assert second == pytest.approx(costs[1] ** -0.5)
