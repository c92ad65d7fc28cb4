"""The detector of the zoo: its contract, and that what its losses ask for is what it then detects."""

from __future__ import annotations

import pytest
import torch

from bnprune.errors import ConfigError
from bnprune.models.centernet import CenterNet, _assigned, _detections, _losses

BOXES = torch.tensor([[4.0, 8.0, 20.0, 22.0], [25.0, 3.0, 44.0, 40.0]])
TARGETS = [
    {"boxes": BOXES, "labels": torch.tensor([3, 1])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()},
]


def perfect() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the centres and shapes as the losses ask for them, of two images with 3 classes."""
    heat, shapes = torch.zeros(2, 3, 12, 12), torch.zeros(2, 4, 12, 12)
    image, row, column, shape = _assigned(heat, TARGETS)
    shapes[image, :, row, column] = shape
    return torch.where(heat == 1, 12.0, -12.0), shapes


def test_what_the_losses_ask_for_is_detected() -> None:
    centres, shapes = perfect()
    losses = _losses(centres, shapes, TARGETS)
    assert float(sum(losses.values())) < 1e-3
    found, nothing = _detections(centres, shapes)
    assert found["labels"][:2].tolist() in ([3, 1], [1, 3])
    order = torch.argsort(found["labels"][:2], descending=True)
    torch.testing.assert_close(found["boxes"][:2][order], BOXES)
    assert (found["scores"][:2] > 0.99).all()
    assert (found["scores"][2:] < 0.01).all()
    assert (nothing["scores"] < 0.01).all()


@pytest.mark.parametrize("part", ["centre", "size", "place"])
def test_each_loss_rises_if_its_part_is_wrong(part: str) -> None:
    centres, shapes = perfect()
    before = _losses(centres, shapes, TARGETS)
    if part == "centre":
        centres = centres.roll(1, 3)
    else:
        shapes[:, 0 if part == "size" else 3] += 0.5
    after = _losses(centres, shapes, TARGETS)
    assert float(after[part]) > float(before[part]) + 0.2
    assert all(float(after[name]) == float(before[name]) for name in before if name != part)


def test_cells_beside_a_higher_score_are_no_objects() -> None:
    centres, shapes = torch.full((1, 2, 6, 6), -9.0), torch.zeros(1, 4, 6, 6)
    centres[0, 1, 2, 2], centres[0, 1, 2, 3] = 3.0, 2.0
    (found,) = _detections(centres, shapes)
    assert int((found["scores"] > 0.5).sum()) == 1
    assert int(found["labels"][0]) == 2


def test_a_class_that_the_network_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a class 3, and the network has classes up to 2"):
        _assigned(torch.zeros(2, 2, 12, 12), TARGETS)


def test_it_follows_the_contract_of_torchvision() -> None:
    model, images = CenterNet(num_classes=4, in_channels=1, width=4), torch.rand(2, 1, 48, 48)
    losses = model([*images], TARGETS)
    assert set(losses) == {"centre", "size", "place"}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        listed, batched = model([*images]), model(images)
    for one, two in zip(listed, batched, strict=True):
        assert set(one) == {"boxes", "labels", "scores"}
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert one["labels"].min() >= 1
        assert one["labels"].max() <= 3
        assert (one["scores"].diff() <= 0).all()
