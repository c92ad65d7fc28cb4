"""Tasks: the loss and the values of classification."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from bnprune.training.tasks.classification import Classification
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


def test_every_task_of_the_table_exists() -> None:
    assert TASKS
    for name in TASKS:
        assert callable(make_task(name).evaluate)
