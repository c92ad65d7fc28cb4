"""Tasks: the loss and the values of classification."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnprune.training.distill import as_teacher
from bnprune.training.tasks.classification import Classification
from bnprune.training.tasks.distillation import Distillation
from bnprune.training.tasks.table import TASKS, make_task

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
    found = make_task("distillation", teacher=teacher).evaluate(teacher.network, [(LOGITS, None)])
    assert found.values["agreement"] == 1
    assert abs(found.values["loss"]) < 1e-6


def test_every_task_of_the_table_exists() -> None:
    teacher = as_teacher(nn.Identity(), torch.device("cpu"), temperature=4.0, weight=0.9)
    options = {"distillation": {"teacher": teacher}}
    assert set(TASKS) == {"classification", "distillation"}
    for name in TASKS:
        assert callable(make_task(name, **options.get(name, {})).evaluate)
