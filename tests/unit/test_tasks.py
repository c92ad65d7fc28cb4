"""Tasks: their losses and values."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnprune.config.schema import TaskConfig
from bnprune.config.tables import TASKS
from bnprune.errors import ConfigError
from bnprune.training.distill import as_teacher
from bnprune.training.tasks.classification import Classification
from bnprune.training.tasks.detection import Detection
from bnprune.training.tasks.distillation import Distillation
from bnprune.training.tasks.factory import make_task
from bnprune.training.tasks.own_task import OwnTask
from bnprune.training.tasks.segmentation import Segmentation

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 1.0, 0.5], [1.0, 0.0, 0.0]])
LABELS = torch.tensor([0, 1, 2, 0])


def test_the_loss_is_the_smoothed_cross_entropy() -> None:
    loss = Classification(label_smoothing=0.1).loss(nn.Identity(), (LOGITS, LABELS))
    assert torch.equal(loss.value, F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1))
    assert (int(loss.correct), loss.count) == (3, 4)


def test_the_larger_share_of_a_mixed_sample_is_its_label() -> None:
    shares = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.9, 0.1]])  # of two classes; the network has three
    loss = Classification().loss(nn.Identity(), (LOGITS, shares))
    assert torch.equal(loss.value, F.cross_entropy(LOGITS, F.pad(shares, (0, 1))))
    assert int(loss.correct) == 3


def test_values_are_means_and_every_sample_has_a_score() -> None:
    batches = [(LOGITS[:3], LABELS[:3]), (LOGITS[3:], LABELS[3:])]
    found = Classification().evaluate(nn.Identity(), batches)
    assert found.scores is not None
    assert found.scores.tolist() == [True, True, False, True]
    assert next(iter(found.values)) == "top1"
    assert found.values["top1"] == 0.75
    assert abs(found.values["loss"] - float(F.cross_entropy(LOGITS, LABELS))) < 1e-6


def test_without_labels_the_loss_is_the_divergence_from_the_teacher_alone() -> None:
    torch.manual_seed(0)
    teacher = nn.Linear(3, 3)
    task = Distillation(as_teacher(teacher, torch.device("cpu"), temperature=2.0, weight=0.1))
    student = nn.Linear(3, 3).requires_grad_(False)
    with torch.no_grad():
        given, wanted = (F.softmax(model(LOGITS) / 2, 1) for model in (student, teacher))
        agreeing = given.argmax(1) == wanted.argmax(1)
    expected = 4 * (wanted * (wanted / given).log()).sum(1).mean()  # T²·KL, whatever the weight
    no_labels = torch.full((4,), -1)
    loss = task.loss(student, (LOGITS, no_labels))
    torch.testing.assert_close(loss.value, expected)
    assert (int(loss.correct), loss.count) == (int(agreeing.sum()), 4)
    found = task.evaluate(student, [(LOGITS[:3], no_labels[:3]), (LOGITS[3:], no_labels[3:])])
    assert list(found.values) == ["agreement", "loss"]  # choices are made by the first
    assert found.values["loss"] == pytest.approx(float(expected))
    assert found.scores is not None
    assert found.scores.tolist() == agreeing.tolist()


def test_the_teacher_itself_agrees_with_all_of_its_predictions() -> None:
    teacher = as_teacher(nn.Linear(3, 3), torch.device("cpu"), temperature=4.0, weight=0.9)
    found = Distillation(teacher).evaluate(teacher.network, [(LOGITS, None)])
    assert found.values["agreement"] == 1
    assert abs(found.values["loss"]) < 1e-6


def test_scores_of_pixels_are_compared_pixel_by_pixel() -> None:
    torch.manual_seed(0)
    teacher = as_teacher(nn.Conv2d(3, 4, 1), torch.device("cpu"), temperature=2.0, weight=0.1)
    student, images = nn.Conv2d(3, 4, 1).requires_grad_(False), torch.randn(2, 3, 2, 5)
    pixels = []
    for model in (student, teacher.network):
        with torch.no_grad():
            pixels.append(
                torch.stack([model(images)[i, :, y, x] for i in range(2) for y in range(2) for x in range(5)])
            )
    given, wanted = (F.softmax(scores / 2, 1) for scores in pixels)
    expected = 4 * (wanted * (wanted / given).log()).sum(1).mean()
    agreeing = (pixels[0].argmax(1) == pixels[1].argmax(1)).view(2, 10).float().mean(1)
    task = Distillation(teacher)
    torch.testing.assert_close(task.loss(student, (images, None)).value, expected)
    found = task.evaluate(student, [(images, None)])
    assert found.scores is not None
    torch.testing.assert_close(found.scores, agreeing)
    assert found.values["agreement"] == pytest.approx(float(agreeing.mean()))


# -- the table and tasks of the user's own -----------------------------------------------------------------------------


def test_every_task_of_the_table_exists() -> None:
    for name in TASKS:
        task = make_task(TaskConfig(name=name), classes=3)
        assert callable(task.loss)
        assert callable(task.evaluate)


class Regression:
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        inputs, targets = batch
        return F.mse_loss(model(inputs).squeeze(1), targets)

    def evaluate(self, model: nn.Module, batches: Any) -> dict[str, float]:
        errors = torch.cat([model(inputs).squeeze(1) - targets for inputs, targets in batches])
        return {"negative error": -float(errors.abs().mean())}


def test_a_task_of_the_users_own_returns_plain_values() -> None:
    task = OwnTask(Regression(), "Regression")
    model, batches = nn.Linear(3, 1), [(LOGITS[:3], torch.ones(3)), (LOGITS[3:], torch.ones(1))]
    loss = task.loss(model, batches[0])
    assert torch.equal(loss.value, F.mse_loss(model(LOGITS[:3]).squeeze(1), torch.ones(3)))
    assert (loss.count, loss.outputs) == (3, None)
    with torch.no_grad():
        found = task.evaluate(model, batches)
        expected = -float((model(LOGITS).squeeze(1) - 1).abs().mean())
    assert found.count == 4
    assert found.values["negative error"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        ("loss", torch.ones(2), "must return a scalar tensor (got shape (2,))"),
        ("loss", 0.5, "must return a scalar tensor (got float)"),
        ("evaluate", 0.5, "must return a mapping of names to numbers"),
        ("evaluate", {}, "must return a mapping of names to numbers"),
        ("evaluate", {"r2": float("inf")}, "must return a mapping of names to numbers"),
    ],
)
def test_other_results_of_a_users_task_are_refused(method: str, result: Any, message: str) -> None:
    own = Regression()
    setattr(own, method, lambda *_: result)
    task = OwnTask(own, "tasks:Regression")
    with pytest.raises(ConfigError, match=re.escape(f"{method} of tasks:Regression {message}")):
        task.loss(nn.Identity(), (LOGITS, LABELS)) if method == "loss" else task.evaluate(nn.Identity(), [])


def test_an_object_without_the_methods_is_no_task() -> None:
    with pytest.raises(ConfigError, match="evaluate is missing in SimpleNamespace"):
        OwnTask(SimpleNamespace(loss=len), "tasks:build")


# -- segmentation ------------------------------------------------------------------------------------------------------


def segmented(count: int = 3, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, K, 4, 5), and masks with ignored pixels."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(count, classes, 4, 5, generator=generator)
    masks = torch.randint(0, classes, (count, 4, 5), generator=generator)
    masks[:, 0, :2] = 255
    return logits, masks


def test_the_loss_of_segmentation_is_the_mean_over_the_pixels_with_a_class() -> None:
    logits, masks = segmented()
    terms = [
        -F.log_softmax(logits[i, :, y, x], 0)[masks[i, y, x]]
        for i, y, x in itertools.product(range(3), range(4), range(5))
        if masks[i, y, x] != 255
    ]
    loss = Segmentation().loss(nn.Identity(), (logits, masks))
    torch.testing.assert_close(loss.value, torch.stack(terms).mean())
    assert torch.equal(loss.outputs, logits)
    auxiliary = Segmentation().loss(lambda x: {"out": x, "aux": 2 * x}, (logits, masks))  # type: ignore[arg-type]
    other = Segmentation().loss(nn.Identity(), (2 * logits, masks))
    torch.testing.assert_close(auxiliary.value, loss.value + 0.5 * other.value)


def test_a_batch_without_a_counted_pixel_has_no_loss() -> None:
    logits, masks = segmented()
    assert float(Segmentation().loss(nn.Identity(), (logits, torch.full_like(masks, 255))).value) == 0


def test_miou_counts_pixels_of_all_images_together() -> None:
    logits, masks = segmented()
    predicted, counted = logits.argmax(1), masks != 255
    ious = [
        ((predicted == k) & (masks == k) & counted).sum() / (((predicted == k) | (masks == k)) & counted).sum()
        for k in range(3)
    ]
    batches = [(logits[:2], masks[:2]), (logits[2:], masks[2:])]
    found = Segmentation().evaluate(nn.Identity(), batches)
    assert list(found.values) == ["miou", "pixel_accuracy", "loss"]
    assert found.values["miou"] == pytest.approx(float(torch.stack(ious).mean()))
    assert found.values["pixel_accuracy"] == pytest.approx(float((predicted == masks)[counted].float().mean()))
    assert found.values["loss"] == pytest.approx(float(Segmentation().loss(nn.Identity(), (logits, masks)).value))
    assert found.count == 3


def test_logits_of_another_size_are_refused() -> None:
    logits, masks = segmented()
    with pytest.raises(ConfigError, match=r"needs logits of shape \(N, classes, 4, 5\)"):
        Segmentation().loss(nn.Identity(), (logits[..., :4], masks))


def test_fewer_scores_per_pixel_than_classes_are_refused() -> None:
    batch = segmented(classes=3)
    task = make_task(TaskConfig(name="segmentation"), 4)
    with pytest.raises(ConfigError, match=r"the masks have 4 classes.*it returns 3\. Most take num_classes=4"):
        task.loss(nn.Identity(), batch)
    with pytest.raises(ConfigError, match="the masks have 4 classes"):
        task.evaluate(nn.Identity(), [batch])


# -- detection ---------------------------------------------------------------------------------------------------------

BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]])
TARGETS = [
    {"boxes": BOXES, "labels": torch.tensor([1, 2])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()},
]
NOTHING = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}


def detector(*found: dict[str, torch.Tensor]) -> nn.Module:
    module = nn.Module()
    module.forward = lambda images: [*found]  # type: ignore[method-assign]
    return module


def test_average_precision_of_boxes_that_are_known() -> None:
    """Class 1: exact. Class 2: an intersection over union of 0.625, right at 3 of the 10 thresholds."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 32.5]])
    exact = {"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.8])}
    found = Detection().evaluate(detector(exact, NOTHING), [(torch.zeros(2, 1, 48, 48), TARGETS)])
    assert list(found.values) == ["map", "map50"]
    assert found.values["map50"] == pytest.approx(1.0)
    assert found.values["map"] == pytest.approx((1.0 + 0.3) / 2)
    nothing = Detection().evaluate(detector(NOTHING, NOTHING), [(torch.zeros(2, 1, 48, 48), TARGETS)])
    assert nothing.values == {"map": 0.0, "map50": 0.0}


def test_the_loss_of_a_detector_is_the_sum_of_its_losses() -> None:
    module = nn.Module()
    module.forward = lambda images, targets: {"box": images[0].sum(), "class": torch.tensor(2.0)}  # type: ignore[method-assign]
    assert float(Detection().loss(module, (torch.ones(1, 1, 2, 2), TARGETS[:1])).value) == 6


def test_another_contract_is_refused() -> None:
    with pytest.raises(ConfigError, match="must return a list with a mapping per image"):
        Detection().evaluate(nn.Identity(), [(torch.zeros(2, 1, 4, 4), TARGETS)])
    module = nn.Module()
    module.forward = lambda images, targets: images[0]  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="return a mapping of losses"):
        Detection().loss(module, (torch.zeros(2, 1, 4, 4), TARGETS))
