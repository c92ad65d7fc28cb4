"""The values of a network on a split, for tasks of every kind."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import nn

import bnprune
from bnprune.config.schema import DataConfig, PruneConfig
from bnprune.data import load_data
from bnprune.pruning.request import Request
from bnprune.recovery.paired import loss_bounds
from bnprune.recovery.sweep import sweep
from bnprune.training.evaluate import Score, evaluate, paired_score, validation_score
from bnprune.training.tasks.classification import Classification
from bnprune.training.tasks.task import Batch, Evaluation, Loss

SPLITS = load_data(DataConfig(name="digits"))
CPU = torch.device("cpu")


class Confidence:
    """The probability of the right class, as a mean over all samples; with a score per sample, or without."""

    means = True
    counts = True

    def __init__(self, *, scored: bool) -> None:
        self.scored = scored

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        return Classification().loss(model, batch)

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
        found = torch.cat([model(inputs).softmax(1).gather(1, labels[:, None])[:, 0] for inputs, labels in batches])
        return Evaluation({"confidence": float(found.double().mean())}, len(found), found if self.scored else None)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    _, height, width = SPLITS.shape
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(8 * height * width, 10))
    with torch.no_grad():
        model[1].weight.copy_(torch.rand(8))
    return model


def test_a_score_is_the_main_value_of_its_task() -> None:
    model = network().eval()
    found = evaluate(model, SPLITS.validation, CPU, task=Confidence(scored=True))
    [(images, labels)] = SPLITS.validation.serve([torch.arange(len(SPLITS.validation))], CPU)
    with torch.no_grad():
        expected = model(images).softmax(1)[torch.arange(len(labels)), labels]
    assert found.samples is not None
    assert torch.allclose(found.samples, expected, atol=1e-6)
    assert (found.value, found.loss, found.count) == (pytest.approx(float(expected.mean())), 0.0, len(labels))
    other = evaluate(model, SPLITS.validation, CPU)
    assert other.samples is not None
    assert other.value == pytest.approx(other.samples.float().mean().item())


def test_without_a_score_per_sample_the_halves_are_evaluated() -> None:
    model, other = network().eval(), network(1).eval()
    whole, halves = Confidence(scored=True), Confidence(scored=False)
    found = paired_score(SPLITS, CPU, halves)(model)
    assert found.samples is None
    assert len(found.halves) == 20
    assert sum(found.halves) / 20 == pytest.approx(found.value, abs=1e-3)
    assert paired_score(SPLITS, CPU, whole)(model).halves == ()
    assert validation_score(SPLITS, CPU, halves)(model).halves == ()
    two = [loss_bounds(*(paired_score(SPLITS, CPU, task)(m) for m in (model, other))) for task in (whole, halves)]
    assert two[0] is not None
    assert two[1] is not None
    widths = [bounds.upper - bounds.lower for bounds in two]
    assert widths[1] == pytest.approx(widths[0], rel=0.7)  # two estimates of the same uncertainty


@pytest.mark.parametrize("scored", [True, False])
def test_a_sweep_knows_only_the_task(scored: bool) -> None:
    model, score = network(), paired_score(SPLITS, CPU, Confidence(scored=scored))
    config = PruneConfig(compensate=False, reconstruct=0, recalibrate=0)
    swept = sweep(model, SPLITS, CPU, Request(ratio=0.5), config, 64, score=score, values=[0.25, 0.5])
    start, small, large = swept.points
    assert start.accuracy == score(model).value
    slim = bnprune.prune(model, SPLITS.example, ratio=0.5).model
    assert large.accuracy == large.plain == pytest.approx(score(slim).value)
    for point in (small, large):
        assert point.lower is not None
        assert point.upper is not None
        assert point.lower < point.accuracy < point.upper
    assert (swept.images, swept.candidates) == (len(SPLITS.validation), 1)


def test_bounds_allow_for_the_choice_of_the_best_network() -> None:
    """Recovery tries six networks on the same images: each bound may be wrong with a probability of 5%/6."""
    model, scores = network(), list[Score]()

    def score(model: nn.Module) -> Score:
        scores.append(evaluate(model, SPLITS.validation, CPU))
        return scores[-1]

    config = PruneConfig(recalibrate=1)
    swept = sweep(model, SPLITS, CPU, Request(ratio=0.5), config, 64, score=score, values=[0.25])
    start, *tried = scores
    best = max(tried, key=lambda found: (found.value, -found.loss))
    bounds = loss_bounds(start, best, 0.05 / 6)
    assert bounds is not None
    assert swept.candidates == len(tried) == 6
    assert swept.points[1].lower == pytest.approx(max(start.value - bounds.upper, 0))
    assert swept.points[1].upper == pytest.approx(start.value - bounds.lower)


def test_scores_are_equal_if_their_values_are() -> None:
    assert Score(0.1, 0.9, 10, torch.ones(10)) == Score(0.1, 0.9, 10, None)
