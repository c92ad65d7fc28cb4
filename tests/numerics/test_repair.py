"""Repair with calibration data: it never does harm by its measure, and is exact where it can be."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import bnprune
from bnprune.pruning.calibration import Calibration, batch_size
from bnprune.recovery.output_distance import output_distance
from bnprune.recovery.repair import repair
from tests.nets import Net, chain, conv_bn, head, noise, norms, randomized

X = torch.zeros(1, 3, 8, 8)
IMAGES = noise(64, 3, 8, 8).float()


def constant_channels() -> nn.Module:
    """Half of the channels between two 1x1 convolutions always write act(β) = β > 0."""
    model = randomized(nn.Sequential(conv_bn(3, 8), conv_bn(8, 8, 1), head(8)))
    with torch.no_grad():
        norms(model)[0].weight[:4], norms(model)[0].bias[:4] = 0.0, 2.0
    return model


def test_constants_are_made_up_for_exactly() -> None:
    model = constant_channels()
    result = bnprune.prune(model, X, ratio=0.25, calibrate=[IMAGES])
    assert result.report.max_relative_error is not None  # the proof has passed before the repair
    assert result.repair is not None
    assert result.repair.chosen in ("compensated", "reconstructed")  # both are exact
    assert result.repair.distances["plain"] > 0.01
    assert result.repair.distances["compensated"] < 1e-5
    with torch.no_grad():
        assert torch.allclose(result.model.eval()(IMAGES), model.eval()(IMAGES), atol=1e-5)


def test_the_nearest_to_the_dense_network_is_kept() -> None:
    model = randomized(chain())
    result = bnprune.prune(model, X, ratio=0.5, calibrate=IMAGES.split(16))
    assert result.repair is not None
    distances = result.repair.distances
    ways = {"compensated", "reconstructed"}
    assert set(distances) == {"plain", "recalibrated", *ways, *(f"{way} + recalibrated" for way in ways)}
    assert distances[result.repair.chosen] == min(distances.values())
    plain = bnprune.prune(model, X, ratio=0.5)
    held = [batch[12:] for batch in IMAGES.split(16)]
    assert distances["plain"] == pytest.approx(output_distance(model, plain.model, held), rel=1e-6)
    assert output_distance(model, result.model, held) == pytest.approx(min(distances.values()), rel=1e-6)
    assert result.plan == plain.plan
    assert plain.repair is None


def test_neither_network_is_changed() -> None:
    model = randomized(chain())
    cut = bnprune.prune(model, X, ratio=0.5)
    before = [copy.deepcopy(network.state_dict()) for network in (model, cut.model)]
    done = repair(model, cut.model, cut.plan, X, Calibration.of([IMAGES]))
    assert done.chosen != "plain"
    for network, state in zip((model, cut.model), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert (done.images, done.held_out) == (48, 16)


def test_weights_stay_if_only_statistics_may_change() -> None:
    model = randomized(chain())
    cut = bnprune.prune(model, X, ratio=0.5)
    done = repair(model, cut.model, cut.plan, X, Calibration.of([IMAGES]), compensated=False)
    assert set(done.distances) == {"plain", "recalibrated"}
    assert all(torch.equal(a, b) for a, b in zip(done.model.parameters(), cut.model.parameters(), strict=True))


def test_lists_of_labels_are_cut_like_the_images() -> None:
    boxes = [{"boxes": torch.full((2, 4), float(index))} for index in range(6)]
    kept = Calibration.of([(torch.zeros(6, 3, 8, 8), boxes, "name")], 4)
    ((images, labels, name),) = kept.batches
    assert images.shape[0] == 4
    assert [int(label["boxes"][0, 0]) for label in labels] == [0, 1, 2, 3]
    assert name == "name"


def test_the_distance_is_relative_to_the_dense_outputs() -> None:
    model = randomized(chain())
    twice = copy.deepcopy(model)
    with torch.no_grad():
        twice[-1][2].weight *= 2
        twice[-1][2].bias *= 2
    assert output_distance(model, twice, [IMAGES]) == pytest.approx(1.0, rel=1e-5)
    assert output_distance(model, model, [IMAGES]) == 0


def test_outputs_of_any_scale_count_alike() -> None:
    """The first output is a million times as large, and 30% too large; the second is 40% too large."""

    class Pair(nn.Module):
        def __init__(self, *factors: float) -> None:
            super().__init__()
            self.factors = factors

        def forward(self, *, image: torch.Tensor) -> list[torch.Tensor]:
            return [factor * image for factor in self.factors]

    batches = [{"image": IMAGES[:10]}, {"image": IMAGES[10:]}]
    assert output_distance(Pair(1e6, 1), Pair(1.3e6, 1.4), batches) == pytest.approx((0.125) ** 0.5, rel=1e-5)


def test_outputs_of_different_shapes_cannot_be_compared() -> None:
    wide, narrow = (nn.Sequential(conv_bn(3, 4), head(4)) for _ in range(2))
    narrow[1][2] = nn.Linear(4, 3)
    assert output_distance(wide, narrow, [IMAGES]) == float("inf")


def test_a_way_that_fails_leaves_the_others() -> None:
    """One image gives a BatchNorm behind global pooling one value per channel, of which there is no variance."""
    model = randomized(nn.Sequential(conv_bn(3, 8), nn.AdaptiveAvgPool2d(1), conv_bn(8, 8, 1), head(8)))
    result = bnprune.prune(model, X, ratio=0.5, calibrate=[IMAGES[:1]])
    assert result.repair is not None
    assert set(result.repair.distances) == {"plain", "compensated", "reconstructed"}


# -- batches -----------------------------------------------------------------------------------------------------------


def sizes(calibration: Calibration) -> list[int]:
    return [batch_size(batch) for batch in calibration.batches]


def test_as_many_images_are_kept_as_are_asked_for() -> None:
    endless = (IMAGES[:20] for _ in iter(int, 1))
    assert sizes(Calibration.of(endless, 50)) == [20, 20, 10]
    assert Calibration.of(IMAGES.split(20), 1000).images == 64
    assert sizes(Calibration.of(IMAGES, 30)) == [30]  # one tensor is one batch


def test_batches_are_divided_by_images() -> None:
    labels = torch.arange(64)
    first, second = Calibration.of([(IMAGES, labels)]).parts(0.25)
    assert torch.equal(first[0][0], IMAGES[:48])
    assert torch.equal(second[0][1], labels[48:])
    alone, again = Calibration.of([IMAGES[:1]]).parts(0.25)
    assert torch.equal(alone[0], again[0])


@pytest.mark.parametrize(
    "batch",
    [{"image": IMAGES, "gain": torch.ones(())}, ({"image": IMAGES, "gain": torch.ones(())}, torch.zeros(64))],
    ids=["mapping", "pair"],
)
def test_batches_may_be_keyword_arguments(batch: Any) -> None:
    def forward(net: Net, image: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return net.head(net.layers(image * gain))

    model = randomized(Net(forward, layers=conv_bn(3, 8), head=head(8)))
    example: Mapping[str, torch.Tensor] = {"image": X, "gain": torch.ones(())}
    result = bnprune.prune(model, example, ratio=0.5, criterion="activation", calibrate=[batch])
    assert result.repair is not None
    assert result.repair.distances[result.repair.chosen] < result.repair.distances["plain"]


def test_the_images_stay_as_they_are_if_the_network_changes_its_inputs() -> None:
    model = randomized(Net(lambda n, x: n.body(x.sub_(1).div_(2)), body=chain()))
    images = noise(64, 3, 8, 8).float()
    before = images.clone()
    bnprune.prune(model, X, ratio=0.5, calibrate=images.split(16))
    assert torch.equal(images, before)


def test_an_output_that_loses_channels_does_not_prevent_the_repair() -> None:
    def forward(n: Net, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = n.stem(x)
        return n.head(features), features

    model = randomized(Net(forward, stem=conv_bn(3, 16), head=head(16)))
    result = bnprune.prune(model, X, ratio=0.5, outputs="0", calibrate=IMAGES.split(16))
    assert result.repair is not None
    assert result.repair.chosen != "plain"
