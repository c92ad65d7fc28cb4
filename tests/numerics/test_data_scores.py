"""Criteria that measure calibration data, against impulse responses and finite differences; the choice by `auto`."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnprune
from bnprune.config.tables import CRITERIA
from bnprune.pruning.calibration import Calibration
from bnprune.pruning.cost import cost
from bnprune.pruning.criterion_choice import is_separated
from bnprune.pruning.data_scores import RunningMoments
from bnprune.pruning.planner import score_network
from bnprune.pruning.request import Request
from bnprune.pruning.scores import measure_statistics
from tests.nets import Net, chain, concat, conv_bn, head, noise, norms, randomized, residual

X = torch.zeros(1, 3, 8, 8)
IMAGES = noise(24, 3, 8, 8).float()


def scores(model: nn.Module, criterion: str, batches: object, example: torch.Tensor = X) -> dict[str, np.ndarray]:
    """The score of each BatchNorm channel, by name of the scale factors."""
    statistics = measure_statistics(model, criterion, Calibration.of(batches))
    scored = score_network(model, example, Request(ratio=0.5, criterion=criterion), statistics=statistics)
    return {name: scored.scores[units] for name, units in scored.graph.gamma_units.items()}


READERS: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "convolution": (lambda: nn.Conv2d(8, 6, 3, padding=1), [*range(8)]),
    "groups, cut by position": (lambda: nn.Conv2d(8, 12, 3, padding=1, groups=2), [0, 1, 2, 3, 0, 1, 2, 3]),
    "groups, cut as a whole": (lambda: nn.Conv2d(8, 12, 3, padding=1, groups=4), [0, 0, 1, 1, 2, 2, 3, 3]),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), [*range(8)]),
    "depthwise with a multiplier": (lambda: nn.Conv2d(8, 16, 3, padding=1, groups=8), [*range(8)]),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3, padding=1), [*range(8)]),
    "transposed with groups": (lambda: nn.ConvTranspose2d(8, 6, 3, padding=1, groups=2), [0, 1, 2, 3, 0, 1, 2, 3]),
    "linear behind flatten": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(8 * 16, 5)), [*range(8)]),
}
"""Layers that read 8 channels of 4x4, and which of the channels must go together."""


def impulse_energies(reader: nn.Module, positions: list[tuple[int, int]]) -> torch.Tensor:
    """The sum of squares that an input value of 1 writes: the squared norm of its weights; (8 channels, positions)."""
    x = torch.zeros(8, len(positions), 8, 4, 4, dtype=torch.float64)
    for channel in range(8):
        for index, (row, column) in enumerate(positions):
            x[channel, index, channel, row, column] = 1
    with torch.no_grad():
        written = reader(x.flatten(0, 1)) - reader(torch.zeros(1, 8, 4, 4, dtype=torch.float64))
    return written.square().flatten(1).sum(1).view(8, -1)


@pytest.mark.parametrize("name", READERS)
def test_activation_is_the_deviation_times_the_norm_of_the_weights_that_read_it(name: str) -> None:
    build, unit_of = READERS[name]
    first, reader, images = randomized(conv_bn(3, 8)).eval(), build(), IMAGES[..., :4, :4]
    found = scores(nn.Sequential(first, reader), "activation", [images], images[:1])["0.1.weight"]
    reader.double()
    with torch.no_grad():
        read = first.double()(images.double())
    if "flatten" in name:  # every position has weights of its own
        variances, positions = read.var(0, correction=0).flatten(1), [(i, j) for i in range(4) for j in range(4)]
    else:
        variances, positions = read.var((0, 2, 3), correction=0)[:, None], [(1, 1)]
    energy = (impulse_energies(reader, positions) * variances).sum(1).numpy()
    together = [sum(e for e, other in zip(energy, unit_of, strict=True) if other == unit) for unit in unit_of]
    assert found == pytest.approx(np.sqrt(together), rel=1e-5)


def test_a_stream_counts_for_the_layer_that_needs_it_most() -> None:
    model = randomized(residual()).eval()
    found = scores(model, "activation", [IMAGES])["stem.1.weight"]
    with torch.no_grad():
        stem = model.stem(IMAGES)
        summed = F.relu(stem + model.branch(stem))
    branch = stem.double().var((0, 2, 3), correction=0) * model.branch[0][0].weight.double().square().sum((0, 2, 3))
    last = summed.double().mean((2, 3)).var(0, correction=0) * model.head[2].weight.double().square().sum(0)
    assert found == pytest.approx(torch.maximum(branch, last).sqrt().detach().numpy(), rel=1e-5)


def test_a_channel_that_always_writes_the_same_says_nothing_however_large_its_scale_factor() -> None:
    """γ = 3 behind a ReLU with β = -100, beside γ = 1."""
    model = chain()
    with torch.no_grad():
        norms(model)[1].weight[5], norms(model)[1].bias[5] = 3.0, -100.0
    found = scores(model, "activation", [IMAGES])
    assert found["1.1.weight"][5] == 0
    assert (np.delete(found["1.1.weight"], 5) > 0).all()
    plan = bnprune.plan(model, X, ratio=1 / 36, criterion="activation", calibrate=[IMAGES])
    assert [tuple(cut.removed) for cut in plan.cuts if ("1.1.weight", 0) in cut.at] == [(5,)]


def test_batches_do_not_matter_for_activations() -> None:
    model = randomized(concat())
    whole = scores(model, "activation", [IMAGES])
    parts = scores(model, "activation", ((x, "no labels") for x in IMAGES.split([5, 11, 8])))
    for name, expected in whole.items():
        assert parts[name] == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_taylor_is_the_slope_of_the_loss_in_a_common_factor_of_scale_and_shift() -> None:
    model = randomized(residual()).double().eval()
    images, labels = noise(12, 3, 8, 8), torch.arange(12) % 5
    batches = [(images[:8], labels[:8]), (images[8:], labels[8:])]
    expected: dict[str, list[float]] = defaultdict(list)
    for name, module in model.named_modules():
        if not isinstance(module, nn.BatchNorm2d):
            continue
        for channel in range(module.num_features):
            slopes = []
            for x, y in batches:
                losses = []
                for factor in (1 + 1e-5, 1 - 1e-5):
                    changed = copy.deepcopy(model)
                    norm = changed.get_submodule(name)
                    with torch.no_grad():
                        norm.weight[channel] *= factor
                        norm.bias[channel] *= factor
                        losses.append(float(F.cross_entropy(changed(x), y)))
                slopes.append((losses[0] - losses[1]) / 2e-5)
            expected[f"{name}.weight"].append(float(np.sqrt(np.mean(np.square(slopes)))))
    statistics = measure_statistics(model, "taylor", Calibration.of(batches))
    assert statistics is not None
    assert {name for name, _ in statistics} == set(expected)
    for (name, _), values in statistics.items():
        assert values.numpy() == pytest.approx(np.array(expected[name]), rel=1e-6, abs=1e-9)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_taylor_takes_a_loss_of_the_users_own() -> None:
    """A loss that reads one output of two heads: the scale factors of the other do not matter for it."""
    model = randomized(Net(lambda n, x: (n.a(x), n.b(x)), a=conv_bn(3, 4), b=conv_bn(3, 4)))
    batches = [(IMAGES, torch.zeros(24))]
    calibration = Calibration.of(batches, loss=lambda outputs, labels: (outputs[0].mean() - labels.mean()).square())
    statistics = measure_statistics(model, "taylor", calibration)
    assert statistics is not None
    assert {name for name, _ in statistics} == {"a.1.weight"}


def test_measuring_leaves_the_network_as_it_was() -> None:
    model = randomized(chain()).train()
    model[1].eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for criterion in ("activation", "taylor"):
        measure_statistics(model, criterion, Calibration.of([(IMAGES, torch.arange(24) % 5)]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (model.training, model[1].training) == (True, False)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("criterion", "options", "message"),
    [
        ("activation", {}, "'activation' ranks channels by data, and no calibration data is given"),
        ("activation", {"calibrate": [IMAGES], "calibrate_images": 0}, "no calibration data is given"),
        ("taylor", {"calibrate": [IMAGES]}, "'taylor' needs labels: give batches of"),
        ("taylor", {"calibrate": [(IMAGES, torch.zeros(3).long())]}, "the loss of the calibration data fails"),
        ("taylor", {"calibrate": [(IMAGES, torch.zeros(24))], "loss": lambda o, y: 1.0}, "one number with a gradient"),
        ("activation", {"calibrate": []}, "there are no images"),
        ("activation", {"calibrate": ["cats"]}, "a batch must be a tensor"),
        ("activation", {"calibrate": 3}, "reading the calibration data failed: TypeError"),
        ("activation", {"calibrate": (1 / 0 for _ in "a")}, "reading the calibration data failed: ZeroDivisionError"),
    ],
)
def test_missing_or_wrong_data_is_refused(criterion: str, options: dict, message: str) -> None:
    with pytest.raises(bnprune.ConfigError, match=message):
        bnprune.prune(randomized(chain()), X, ratio=0.5, criterion=criterion, **options)


def test_images_that_the_network_cannot_take_are_refused() -> None:
    with pytest.raises(bnprune.ForwardError, match="the forward pass fails on the calibration data"):
        bnprune.prune(randomized(chain()), X, ratio=0.5, criterion="activation", calibrate=[torch.zeros(2, 4, 8, 8)])
    bad = IMAGES.clone()
    bad[0, 0, 0, 0] = float("inf")
    with pytest.raises(bnprune.PruningError, match=r"0\.0: not all activations are finite"):
        bnprune.prune(randomized(chain()), X, ratio=0.5, criterion="activation", calibrate=[bad])


# -- the default cap ---------------------------------------------------------------------------------------------------


def weak_layer() -> nn.Module:
    """The second of three layers has filters that are a thousand times smaller, which a BatchNorm cancels."""
    model = randomized(nn.Sequential(conv_bn(3, 16), conv_bn(16, 16), conv_bn(16, 16), head(16)))
    with torch.no_grad():
        model[1][0].weight *= 1e-3
    return model


def kept(result: bnprune.PruningResult, name: str = "1.1") -> int:
    return next(layer.after for layer in result.report.layers if layer.name == name)


def codes(result: bnprune.PruningResult) -> set[str]:
    return {note.code for note in result.report.notes}


def test_by_default_no_layer_loses_far_more_than_others_by_scores_of_another_scale() -> None:
    """Equal pruning for `ratio` 0.3 leaves 0.7 · 16 = 11.2 channels, of which a layer keeps at least 0.7: 8."""
    limited = bnprune.prune(weak_layer(), X, ratio=0.3, criterion="l2")
    assert kept(limited) == 8
    assert "least_width" in codes(limited)
    free = bnprune.prune(weak_layer(), X, ratio=0.3, criterion="l2", cap=1.0)
    assert kept(free) <= 2
    assert not codes(free) & {"least_width", "least_width.lifted"}


@pytest.mark.parametrize("target", [{"ratio": 0.6}, {"macs": 0.25}, {"params": 0.04}])
def test_least_widths_hold_for_scores_that_are_compared_across_layers(target: dict) -> None:
    for criterion in ("l1", "l2", "activation", "taylor"):
        assert Request(**target, criterion=criterion).least_width == 0.7
        assert Request(**target, criterion=criterion, cap=1.0).least_width == 0
        assert Request(**target, criterion=criterion, layer_ratios={"0": 0.5}).least_width == 0
    for criterion in ("gamma", "gamma-per-mac"):  # a ratio is met by the paper's global threshold
        assert Request(**target, criterion=criterion).least_width == (0 if "ratio" in target else 0.7)
    for criterion in ("uniform", "random"):
        assert Request(**target, criterion=criterion).least_width == 0


def test_a_weak_layer_keeps_its_least_width_for_a_target_in_macs() -> None:
    """γ of the middle layer are ten times smaller, which the next BatchNorm cancels: none of its channels is dead."""
    model = weak_layer()
    with torch.no_grad():
        model[1][1].weight *= 0.1
    limited = bnprune.prune(model, X, macs=0.25, criterion="gamma")
    assert kept(limited) == math.ceil(0.7 * 0.5 * 16)
    assert "least_width" in codes(limited)
    assert kept(bnprune.prune(model, X, macs=0.25, criterion="gamma", cap=1.0)) < kept(limited)


def test_dead_channels_do_not_count_for_least_widths() -> None:
    """10 of 16 channels are dead; of the others, the layer keeps at least 0.7 of what equal pruning would leave."""
    model = weak_layer()
    with torch.no_grad():
        model[1][1].weight[:10] = 1e-9
        model[1][1].bias[:10] = 0
    result = bnprune.prune(model, X, macs=0.3, criterion="gamma")
    assert kept(result) <= 6
    whole = cost(model, X).macs
    alive = cost(bnprune.prune(model, X, criterion="gamma", layer_ratios={"1": 10 / 16}, ratio=0.01).model, X).macs
    width = min(1.0, math.sqrt(0.3 * whole / alive))
    assert kept(result) >= math.ceil(0.7 * width * 6)


def test_a_limit_that_rounding_stops_short_of_is_noted() -> None:
    """Three layers of 32 lose 8 channels at a time: the second may not go from 16 to 8."""
    model = randomized(nn.Sequential(conv_bn(3, 32), conv_bn(32, 32), conv_bn(32, 32), head(32)))
    with torch.no_grad():
        model[1][0].weight *= 0.01
    result = bnprune.prune(model, X, macs=0.3, criterion="l1", round_to=8)
    assert kept(result) == 16
    assert "least_width" in codes(result)
    assert kept(bnprune.prune(model, X, macs=0.3, criterion="l1", round_to=8, cap=1.0)) == 8


def test_nothing_is_said_of_least_widths_where_another_constraint_decides() -> None:
    model = randomized(nn.Sequential(conv_bn(3, 16), conv_bn(16, 16), head(16)))
    for constraint in ({"ratio": 0.95, "min_channels": 8}, {"ratio": 0.9, "round_to": 8}):
        assert not codes(bnprune.prune(model, X, criterion="l1", **constraint)) & {"least_width", "least_width.lifted"}


def test_least_widths_give_way_to_a_target_that_they_forbid() -> None:
    """With two of three layers excluded, the third has to become narrower than its least width."""
    asked = {"macs": 0.3, "exclude": ["0", "2"]}
    result = bnprune.prune(weak_layer(), X, criterion="l2", **asked)
    assert kept(result) < 0.7 * math.sqrt(0.3) * 16
    assert "least_width.lifted" in codes(result)
    assert result.report.macs_after <= 0.3 * result.report.macs_before


# -- auto --------------------------------------------------------------------------------------------------------------


def with_gammas(share_near_zero: float) -> nn.Module:
    model = chain()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in norms(model):
            norm.weight.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
            norm.weight[: round(share_near_zero * norm.num_features)] = 1e-6
    return model


@pytest.mark.parametrize(
    ("near_zero", "batches", "choice"),
    [(0.5, [IMAGES], "activation"), (0.5, None, "gamma"), (0.0, [IMAGES], "activation"), (0.0, None, "uniform")],
)
def test_auto_is_decided_by_the_scale_factors_and_by_the_data_at_hand(
    near_zero: float, batches: list | None, choice: str
) -> None:
    model = with_gammas(near_zero)
    chosen = bnprune.plan(model, X, ratio=0.5, criterion="auto", calibrate=batches)
    named = bnprune.plan(model, X, ratio=0.5, criterion=choice, calibrate=batches)
    assert chosen.cuts == named.cuts
    result = bnprune.prune(model, X, ratio=0.5, criterion="auto", calibrate=batches)
    [why] = [note for note in result.report.notes if note.code == "criterion.auto"]
    assert why.startswith(f"criterion auto: {choice}, because")
    assert codes(bnprune.prune(model, X, macs=0.5, calibrate=batches)) & {"criterion.auto"}  # the default for MACs


def test_another_criterion_is_recommended_if_the_scale_factors_are_not_separated() -> None:
    notes = bnprune.prune(with_gammas(0.0), X, ratio=0.5).report.notes
    [note] = [note for note in notes if note.code in ("cut.live_channels", "criterion.not_separated")]
    assert "'activation'" in note
    assert "criterion.not_separated" not in codes(bnprune.prune(with_gammas(0.5), X, ratio=0.5))
    assert "criterion.not_separated" not in codes(bnprune.prune(with_gammas(0.0), X, ratio=0.5, criterion="uniform"))


def test_two_groups_of_scale_factors() -> None:
    rng = np.random.default_rng(0)
    alive = rng.uniform(0.1, 1, 900)
    assert is_separated(np.concatenate([alive, np.full(100, 1e-8)]))
    assert is_separated(1e-4 * np.concatenate([alive, np.full(100, 1e-8)]))  # their size does not matter
    assert not is_separated(alive)
    assert not is_separated(np.abs(rng.normal(size=1000)))  # many near zero, but no gap
    assert not is_separated(np.zeros(9))
    assert not is_separated(np.zeros(0))


def test_the_scores_of_auto_are_those_of_its_choice() -> None:
    model = with_gammas(0.0)
    statistics = measure_statistics(model, "auto", Calibration.of([IMAGES]))
    graph = score_network(model, X, Request(ratio=0.5)).graph
    tensors = dict(model.state_dict())
    by_auto = CRITERIA["auto"](graph, tensors, "max", statistics)
    assert np.array_equal(by_auto, CRITERIA["activation"](graph, tensors, "max", statistics))


def test_a_small_deviation_beside_a_large_mean_is_measured() -> None:
    """Sums of squares in float32 would lose it: 1000² + 0.01²."""
    values = 1000 + 0.01 * noise(1, 4096).float()
    parts = [RunningMoments.of(part) for part in values.split([1000, 3096], 1)]
    together = (parts[0] + parts[1]).variances("layer")
    assert together.numpy() == pytest.approx(values.double().var(1, correction=0).numpy(), rel=1e-3)


def test_a_layer_may_lose_all_channels_that_a_penalty_has_brought_to_zero() -> None:
    model = with_gammas(0.0)
    with torch.no_grad():
        norms(model)[0].weight[:7] = 1e-6
        norms(model)[0].bias[:7] = 0
    result = bnprune.prune(model, X, ratio=7 / 36, criterion="activation", calibrate=[IMAGES])
    assert kept(result, "0.1") == 1
    assert not codes(result) & {"least_width.lifted"}
