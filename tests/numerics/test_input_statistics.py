"""Images that differ from those a network was trained on are found by the statistics of its first BatchNorm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bnprune.recovery.input_statistics import unlike_training
from bnprune.recovery.recalibrate import recalibrate
from tests.nets import conv_bn, head, noise

IMAGES = noise(64, 3, 8, 8).float()


@pytest.fixture
def trained() -> nn.Module:
    """A network whose running statistics are those of the images."""
    model = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), head(8))
    return recalibrate(model, [IMAGES]).eval()


@pytest.mark.parametrize("count", [64, 16])
def test_images_as_in_training_are_fine(trained: nn.Module, count: int) -> None:
    assert unlike_training(trained, [IMAGES[:count]]) is None


def test_the_factor_of_the_variance_is_that_of_the_images(trained: nn.Module) -> None:
    note = unlike_training(trained, [(4 * IMAGES, "labels do not matter")])
    assert note is not None  # the first layer is linear in the image
    assert (note.code, note.level) == ("calibration.unlike", "warning")
    assert "variance is 16 times as large" in note
    assert "variance is 0.063 times" in str(unlike_training(trained, [IMAGES / 4]))
    assert unlike_training(trained, [1.2 * IMAGES]) is None


def test_small_batches_are_put_together(trained: nn.Module) -> None:
    assert unlike_training(trained, [4 * image for image in IMAGES.split(1)]) is not None
    assert (
        unlike_training(trained, [image * (0.5 + index % 4) / 2 for index, image in enumerate(IMAGES.split(1))]) is None
    )
    assert unlike_training(trained, [4 * image for image in IMAGES[:31].split(1)]) is None, "too few images"


def test_one_value_per_channel_has_no_variance() -> None:
    values = noise(64, 6).float()
    model = recalibrate(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)), [values]).eval()
    assert unlike_training(model, values.split(1)) is None
    assert unlike_training(model, (5 * values).split(1)) is not None


def test_a_shift_of_the_mean_is_found(trained: nn.Module) -> None:
    assert unlike_training(trained, [IMAGES + 8]) is not None


def test_a_network_without_statistics_says_nothing() -> None:
    new = nn.Sequential(conv_bn(3, 8), head(8)).eval()
    assert unlike_training(new, [100 * IMAGES]) is None
    of_batches = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), head(8)).eval()
    assert unlike_training(of_batches, [100 * IMAGES]) is None
    assert unlike_training(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), [100 * IMAGES]) is None


def test_the_network_is_left_as_it_was(trained: nn.Module) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    unlike_training(trained, [IMAGES])
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert not any(module._forward_pre_hooks for module in trained.modules())
